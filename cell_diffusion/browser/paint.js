// The page "Paint a cell": choose a cell, paint a hole, fill it
import { Engine, describe, fetchFrom, settings, fillIn, labelName, fileName, wire, classNumber, trajectory, stepSlider, canvasOf, offer } from './common.js';
import { HoleCanvas } from './canvas.js';
import { noise } from './diffusion.js';
import { findWindow, closeUp, putBack, toPixels } from './picture.js';

const root = document.getElementById('paint-a-cell'), $ = s => root.querySelector(s), megapixels = 12;

const page = `
  <section class="cd-all" aria-labelledby="cd-1"><h2 id="cd-1"><b>1</b> Choose a cell</h2>
    <fieldset class="cd-cells"><legend class="visually-hidden">Cells to paint on</legend></fieldset>
    <div class="cd-row"><button type="button" name="open">Take a picture of my own …</button><input type="file" name="file" accept="image/*" hidden aria-label="A picture of my own">
    <span class="cd-hint" name="named"></span></div>
    <p class="cd-hint">None of these is a photograph: the network generated them, or a program drew them, as their names say. A picture of your own stays in your browser.</p></section>
  <section aria-labelledby="cd-2"><h2 id="cd-2"><b>2</b> Paint what is to be hidden</h2>
    <div class="cd-row"><label>Brush <input type="range" name="brush" class="form-range" min="1" max="25" value="8"></label>
      <button type="button" name="erase" aria-pressed="false">Erase</button><button type="button" name="undo">Undo</button><button type="button" name="clear">Clear</button></div>
    <div class="cd-row" role="group" aria-label="Ready-made holes"><span>Or hide</span><button type="button" name="nucleus">the nucleus</button><button type="button" name="middle">the middle</button><button type="button" name="half">one half</button><button type="button" name="all">all</button></div>
    <div class="cd-stage"><canvas class="cd-picture" aria-hidden="true"></canvas>
      <canvas class="cd-paint" tabindex="0" role="application" aria-label="Picture to paint on" aria-describedby="cd-keys cd-brush"></canvas><div class="cd-ring"></div></div>
    <p class="cd-hint" id="cd-brush" role="status"></p>
    <p class="cd-hint" id="cd-keys">With keys: arrows move the brush (with shift by one pixel), space paints, Enter lowers and lifts the pen, Ctrl+Z takes a stroke back.</p></section>
  <section aria-labelledby="cd-3"><h2 id="cd-3"><b>3</b> Fill it</h2>
    ${settings('Fill', 'Fill as the brush is lifted', '<label>How often <select name="fills" class="form-select"><option value="1">once</option><option value="2">twice</option><option value="3">three times</option><option value="4" selected>four times</option></select></label>')}
    <div class="cd-empty">Your fills will form here, out of noise.</div>
    <div class="cd-result" hidden><div class="cd-stage"><canvas class="cd-shown" role="img"></canvas></div>
      <fieldset class="cd-choose"><legend class="visually-hidden">Choose a fill</legend></fieldset>
      ${stepSlider}
      <div class="cd-row"><button type="button" name="original" aria-pressed="false">Show the original</button><a class="cd-button" name="download" hidden>Download this fill (PNG)</a></div></div></section>`;

const named = n => $(`[name=${n}]`);

async function begin() {
  const about = await describe(root), { size, channels } = about, beside = about.place.model.slice(0, about.place.model.lastIndexOf('/') + 1);
  const [cells, picture] = await Promise.all([fetchFrom(`${beside}cells.json`, 'The list of cells').then(r => r.json()),
    fetchFrom(`${beside}cells.png`, 'The picture of the cells').then(r => r.blob())]);
  const strip = await createImageBitmap(picture);
  root.innerHTML = page;
  fillIn(root, about, [['any', 'any', true]], 'any');
  const engine = new Engine(about), canvas = new HoleCanvas($('.cd-stage'), () => named('brush').valueAsNumber/100, tellBrush);
  const { say, fail, changed, end } = wire(root, engine, fill, () => !canvas.down && canvas.painted > 0);
  const { classes } = about, thumbnails = URL.createObjectURL(picture);
  let nucleus = null, result = null;
  $('.cd-cells').append(...cells.map(thumbnail));

  function thumbnail({ title }, i) {                                             // a cell to choose, from the strip of all
    const label = Object.assign(document.createElement('label'), { title }), input = document.createElement('input'), small = document.createElement('span');
    Object.assign(input, { type: 'radio', name: 'cell', value: i, ariaLabel: title });
    Object.assign(small.style, { backgroundImage: `url(${thumbnails})`, backgroundSize: `${100*cells.length}% 200%`, backgroundPosition: `${100*i/Math.max(1, cells.length - 1)}% 0` });
    label.append(input, small);
    return label;
  }

  function tellBrush() {
    const [x, y] = canvas.at.map(Math.floor), n = canvas.painted;
    $('#cd-brush').textContent = `${n ? `${n.toLocaleString('en')} of ${canvas.ink.length.toLocaleString('en')} pixels are hidden` : 'Nothing is hidden yet'}${canvas.down ? '; the pen is down' : ''}. Brush at ${x}, ${y}.`;
  }

  function take(pixels, title) {
    end();
    canvas.show(pixels);
    named('named').textContent = title;
    named('nucleus').disabled = !nucleus?.includes(1);
    result = null; $('.cd-result').hidden = true; $('.cd-empty').hidden = false;
    fail(''); say('');
  }

  function part(x, y, w, h) {
    const context = Object.assign(document.createElement('canvas'), { width: w, height: h }).getContext('2d');
    context.drawImage(strip, -x, -y);
    return context.getImageData(0, 0, w, h);
  }

  function choose(i) {
    const white = part(i*size, size, size, size).data;
    nucleus = Uint8Array.from({ length: size*size }, (_, k) => white[4*k] > 127 ? 1 : 0);
    take(part(i*size, 0, size, size), `${cells[i].title}, ${size} × ${size} pixels`);
    named('label').value = classes.includes(cells[i].label) ? classes.indexOf(cells[i].label) : 'any';
  }

  async function open(file) {
    const outline = new Image(), address = URL.createObjectURL(file);              // knows the size without decoding the pixels
    let bitmap;
    try {
      await new Promise((resolve, reject) => { Object.assign(outline, { onload: resolve, onerror: reject, src: address }); });
      const size = Math.round(outline.naturalWidth*outline.naturalHeight/1e6);
      if (size > megapixels) { fail(`${file.name} has ${size} megapixels, and ${megapixels} is the most that fits here: cut out the part with the cell first.`); return; }
      bitmap = await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none' });
    } catch { fail(`${file.name} cannot be read as a picture by this browser. PNG and JPEG always work.`); return; } finally { URL.revokeObjectURL(address); }
    const { width: w, height: h } = bitmap;
    const context = Object.assign(document.createElement('canvas'), { width: w, height: h }).getContext('2d');
    context.fillStyle = 'white'; context.fillRect(0, 0, w, h); context.drawImage(bitmap, 0, 0); bitmap.close();
    root.querySelectorAll('[name=cell]').forEach(c => { c.checked = false; });
    nucleus = null;
    take(context.getImageData(0, 0, w, h), `${file.name}, ${w} × ${h} pixels`);
    named('label').value = 'any';
  }

  async function fill({ label, steps, seed, w }, tell, say) {
    const { pixels, hole } = canvas, window = findWindow(hole, pixels.width, pixels.height);
    if (!window) throw Error('Nothing is hidden yet: paint on the cell first, or take one of the ready-made holes.');
    const seen = closeUp(pixels, hole, window, size, channels), number = classNumber(about, label), wanted = +named('fills').value;
    const mine = { pixels, hole, window, fills: [], label };
    if (!about.few) stage(mine);
    let seconds = 0;
    for (let k = 0; k < wanted; k++) {
      say(wanted > 1 ? `Filling: fill ${k + 1} of ${wanted}.` : 'Filling.');
      const frames = [], now = { frames, seed: seed + k, steps, w };
      const { x0, seconds: s } = await engine.run({ x: noise(seed + k, channels*size*size), labels: number === null ? null : [number], w, steps, ...seen }, ({ step, steps, xt }) => {
        frames.push(xt);
        if (result === mine && !about.few) inHole(xt);
        tell((k + (step + 1)/steps)/wanted, `step ${step + 1} of ${steps}`);
      });
      if (about.few && !k) stage(mine);                                          // until now the last fill stayed
      if (result !== mine) throw Object.assign(Error(), { name: 'AbortError' });     // another cell was chosen meanwhile
      seconds += s;
      add(Object.assign(now, { filled: putBack(pixels, hole, window, x0, size, channels) }), k);
    }
    return `Done: ${wanted} fill${wanted > 1 ? 's' : ''} of ${hole.reduce((n, v) => n + v, 0).toLocaleString('en')} pixels in ${seconds.toFixed(1)} seconds.`;
  }

  function stage(next) {                                                         // an empty list of fills, and the large picture takes the shape of what is filled
    const chosen = $('.cd-choose');
    result = Object.assign(next, { focus: chosen.contains(document.activeElement) });
    $('.cd-empty').hidden = true; $('.cd-result').hidden = false; chosen.querySelectorAll('label').forEach(l => l.remove());
    Object.assign(named('original'), { disabled: true, ariaPressed: 'false' }); named('step').disabled = true; named('download').hidden = true;
    const shown = $('.cd-shown'), { width, height } = result.pixels;
    Object.assign(shown, { width, height });
    shown.parentElement.style.cssText = $('.cd-stage').style.cssText;
    draw(canvasOf(result.pixels), 'The picture before it is filled');
  }

  function draw(source, text) {
    const shown = $('.cd-shown');
    shown.getContext('2d').drawImage(source, 0, 0);
    shown.setAttribute('aria-label', text);
  }

  function inHole(x) {                                                           // what the network works on, in its place in the picture
    const { pixels, hole, window: { top, left, side } } = result, { width, height } = pixels;
    if (!result.cover) {                                                         // three canvases of full size for a run, none for a step
      const cover = new ImageData(width, height);
      hole.forEach((v, i) => { cover.data[4*i + 3] = 255*v; });
      Object.assign(result, { cover: canvasOf(cover), before: canvasOf(pixels), layer: Object.assign(document.createElement('canvas'), { width, height }) });
    }
    const { cover, before, layer } = result, pen = layer.getContext('2d');
    pen.globalCompositeOperation = 'source-over'; pen.clearRect(0, 0, width, height); pen.drawImage(canvasOf(toPixels(x, size, 0, channels)), left, top, side, side);
    pen.globalCompositeOperation = 'destination-in'; pen.drawImage(cover, 0, 0);
    draw(before, 'A fill that forms out of noise'); draw(layer, 'A fill that forms out of noise');
  }

  function add(one, k) {
    const label = document.createElement('label'), small = document.createElement('canvas'), { width, height } = one.filled, scale = Math.min(1, 144/Math.min(width, height));
    Object.assign(small, { width: Math.ceil(scale*width), height: Math.ceil(scale*height) });
    small.getContext('2d').drawImage(canvasOf(one.filled), 0, 0, small.width, small.height);
    result.fills.push(one);
    label.append(Object.assign(document.createElement('input'), { type: 'radio', name: 'fill', value: k, ariaLabel: `Fill ${k + 1}` }), small, `fill ${k + 1}`);
    $('.cd-choose').append(label);
    label.firstChild.onchange = () => pick(k);
    if (about.few && k) return;                                                  // the first one stays in view
    label.firstChild.checked = true;
    if (result.focus) label.firstChild.focus();                                  // it was on a fill that is gone
    pick(k);
  }

  function pick(k) {
    const one = result.fills[k], finished = canvasOf(one.filled), asked = labelName(about, result.label), what = result.label === 'any' ? 'no class asked for' : `asked for: ${asked}`;
    Object.assign(named('original'), { disabled: false, ariaPressed: 'false' });
    named('original').onclick = e => {
      const on = e.target.getAttribute('aria-pressed') !== 'true';
      e.target.setAttribute('aria-pressed', on);
      if (on) draw(canvasOf(result.pixels), 'The picture before it was filled'); else draw(finished, `Fill ${k + 1}, ${what}`);
    };
    trajectory(root, one.frames.length, step => step === one.frames.length ? draw(finished, `Fill ${k + 1}, ${what}`) : inHole(one.frames[step]));
    offer(named('download'), finished, `synthetic-${fileName(asked)}-${one.seed}.png`, { label: asked, seed: one.seed, steps: one.steps, ...(!about.few && { guidance: one.w }) });
  }

  root.querySelectorAll('[name=cell]').forEach(c => { c.onchange = () => choose(+c.value); });
  named('open').onclick = () => named('file').click();
  named('file').onchange = e => { if (e.target.files[0]) open(e.target.files[0]); e.target.value = ''; };
  named('erase').onclick = e => { canvas.erase = !canvas.erase; e.target.setAttribute('aria-pressed', canvas.erase); };
  named('undo').onclick = () => canvas.undo();
  named('clear').onclick = () => canvas.set(new Uint8Array(canvas.ink.length));
  named('nucleus').onclick = () => canvas.set(nucleus);
  const shapes = { middle: (x, y) => Math.abs(x - .5) < .2 && Math.abs(y - .5) < .2, half: x => x < .5, all: () => true };
  for (const [name, inside] of Object.entries(shapes)) named(name).onclick = () => {
    const { width: w, height: h } = canvas.pixels;
    canvas.set(Uint8Array.from({ length: w*h }, (_, i) => inside((i%w + .5)/w, (Math.floor(i/w) + .5)/h) ? 1 : 0));
  };
  named('fills').onchange = changed;
  const first = Math.max(0, cells.findIndex(c => c.label === 'neutrophil'));
  root.querySelectorAll('[name=cell]')[first].checked = true;
  choose(first);
  if (nucleus.includes(1)) canvas.set(nucleus); else named('middle').click();
  canvas.edited = changed;                                                       // from now on: nothing is loaded before a hand has moved
}

begin().catch(e => { root.innerHTML = `<section class="cd-all"><p class="cd-error" role="alert"></p></section>`; $('.cd-error').textContent = `${e.message} Without it nothing can be painted here; the notebooks can still do it.`; });
