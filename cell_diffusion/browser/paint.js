// The page "Paint a cell": choose a cell, paint a hole, fill it
import { Engine, aborted, describe, fetchFrom, settings, fillIn, labelName, fileName, wire, classNumber, trajectory, stepSlider, canvasOf, offer, withdraw } from './common.js';
import { shared } from './address.js';
import { HoleCanvas } from './canvas.js';
import { noise } from './diffusion.js';
import { Frame } from './frame.js';
import { seen, putBack, enlarge, softenSeam } from './picture.js';
import { stainedMasks } from './stain.js';
import { askWhy } from './why.js';

const root = document.getElementById('paint-a-cell'), $ = s => root.querySelector(s), megapixels = 12;

const page = `
  <section class="cd-all" aria-labelledby="cd-1"><h2 id="cd-1"><b>1</b> Choose a cell</h2>
    <fieldset class="cd-cells"><legend class="visually-hidden">Cells to paint on</legend></fieldset>
    <div class="cd-row"><button type="button" name="open">Take a picture of my own …</button><input type="file" name="file" accept="image/*" hidden aria-label="A picture of my own">
    <span class="cd-hint" name="named"></span></div>
    <div class="cd-frame" hidden>
      <div class="cd-stage cd-whole"><canvas role="img" aria-label="Your picture"></canvas><div class="cd-square" tabindex="0" role="application" aria-label="Frame around your cell" aria-describedby="cd-frame"><i></i></div></div>
      <div><label class="cd-wide"><b>How large is your cell?</b> <output name="wide"></output> <input type="range" name="width" class="form-range"></label>
      <p class="cd-hint" id="cd-frame">Drag the frame, and choose its size, until the circle just surrounds your cell. (A platelet, which is smaller than other cells, fills about half of the circle.) What is in the frame is brought to the size of the cells from which the network learned. With keys: arrows move the frame (with shift by one pixel), + and − change its size.</p></div></div>
    <p class="cd-hint" name="kinds"></p></section>
  <section aria-labelledby="cd-2"><h2 id="cd-2"><b>2</b> Paint what is to be hidden</h2>
    <div class="cd-row"><label>Brush <input type="range" name="brush" class="form-range" min="1" max="25" value="8"></label>
      <button type="button" name="erase" aria-pressed="false">Erase</button><button type="button" name="undo">Undo</button><button type="button" name="clear">Clear</button></div>
    <div class="cd-row" role="group" aria-label="Ready-made holes"><span>Or hide</span><button type="button" name="body">the cell</button><button type="button" name="nucleus">the nucleus</button><button type="button" name="middle">the middle</button><button type="button" name="half">one half</button><button type="button" name="all">all</button></div>
    <div class="cd-stage cd-easel"><canvas class="cd-picture" aria-hidden="true"></canvas>
      <canvas class="cd-paint" tabindex="0" role="application" aria-label="Picture to paint on" aria-describedby="cd-keys cd-brush"></canvas><div class="cd-ring"></div></div>
    <p class="cd-hint" id="cd-brush" role="status"></p>
    <p class="cd-hint" id="cd-keys">With keys: arrows move the brush (with shift by one pixel), space paints, Enter lowers and lifts the pen, Ctrl+Z takes a stroke back.</p></section>
  <section aria-labelledby="cd-3"><h2 id="cd-3"><b>3</b> Fill it</h2>
    ${settings('Fill', 'Fill as the brush is lifted', '<label>How often <select name="fills" class="form-select"><option value="1">once</option><option value="2">twice</option><option value="3">three times</option><option value="4" selected>four times</option></select></label>')}
    <div class="cd-empty">Your fills will form here, out of noise.</div>
    <div class="cd-result" hidden><fieldset class="cd-choose"><legend class="visually-hidden">Choose a fill, or what was there</legend></fieldset>
      <div class="cd-stage"><canvas class="cd-shown" role="img"></canvas></div>
      ${stepSlider}
      <div class="cd-row"><a class="cd-button" name="download" hidden>Download this fill (PNG)</a><a class="cd-button" name="whole" hidden>Download it in my picture (PNG)</a></div></div></section>`;

const named = n => $(`[name=${n}]`);

// Said of the cells to choose from, and of what was there before a fill
const kinds = {
  photograph: 'The photographs are not among the cells from which the network learned, so you can compare a fill with the truth (Acevedo et al. 2020, CC BY 4.0).',
  generated: 'Generated cells come from the network itself.', drawn: 'Drawn cells come from a program.',
};
const truths = { photograph: 'the photograph', drawn: 'as drawn', generated: 'as generated' };

async function begin() {
  const about = await describe(root), { size, channels, classes } = about, beside = about.place.model.slice(0, about.place.model.lastIndexOf('/') + 1);
  const [cells, picture] = await Promise.all([fetchFrom(`${beside}cells.json`, 'The list of cells').then(r => r.json()),
    fetchFrom(`${beside}cells.png`, 'The picture of the cells').then(r => r.blob())]);
  const whole = { top: 0, left: 0, side: size }, strip = await createImageBitmap(picture), four = Math.min(4, classes.length);
  root.innerHTML = page;
  fillIn(root, about, [...(four > 1 ? [['side', `${['two', 'three', 'four'][four - 2]}, side by side`, true]] : []), ['any', 'any']], four > 1 ? 'side' : 'any');
  const engine = new Engine(about), canvas = new HoleCanvas($('.cd-easel'), () => named('brush').valueAsNumber/100, tellBrush);
  const hindrance = () => canvas.down ? 'The brush is down: lift it first.' : canvas.painted ? '' : 'Nothing is hidden yet: paint on the cell first, or take one of the ready-made holes.';
  const more = () => chosen ? { cell: nameOf(chosen), hole } : {};
  const { say, fail, changed, keep, end } = wire(root, engine, fill, { hindrance, more });
  const frame = new Frame(root, about, cutAgain), thumbnails = URL.createObjectURL(picture);
  const why = root.dataset.why ? askWhy(root, about, inView) : null;
  let masks = {}, result = null, chosen = null, hole = null;                      // hole: the name of a ready-made one
  $('.cd-cells').append(...cells.map(thumbnail));
  named('kinds').textContent = [...new Set(cells.map(c => kinds[c.kind])), 'A picture of your own stays in your browser.'].join(' ');
  sideBySide();

  function nameOf({ label, kind }) { return `${label}, ${kind}`; }

  function sideBySide() { named('fills').closest('label').hidden = named('label').value === 'side'; }

  function thumbnail({ title }, i) {                                             // a cell to choose, from the strip of all
    const label = Object.assign(document.createElement('label'), { title }), input = document.createElement('input'), small = document.createElement('span');
    Object.assign(input, { type: 'radio', name: 'cell', value: i, ariaLabel: title });
    Object.assign(small.style, { backgroundImage: `url(${thumbnails})`, backgroundSize: `${100*cells.length}% 100%`, backgroundPosition: `${100*i/Math.max(1, cells.length - 1)}% 0` });
    label.append(input, small);
    return label;
  }

  function tellBrush() {
    const [x, y] = canvas.at.map(Math.floor), n = canvas.painted;
    $('#cd-brush').textContent = `${n ? `${n.toLocaleString('en')} of ${canvas.ink.length.toLocaleString('en')} pixels are hidden` : 'Nothing is hidden yet'}${canvas.down ? '; the pen is down' : ''}. Brush at ${x}, ${y}.`;
  }

  function take(pixels) {                                                        // a new picture, at the scale of training
    end();
    canvas.show(pixels);
    hole = null;
    masks = channels === 3 ? stainedMasks(pixels) : {};
    for (const [name, mask] of [['nucleus', masks.nucleus], ['body', masks.cell]]) named(name).disabled = !mask?.includes(1);
    result = null; $('.cd-result').hidden = true; $('.cd-empty').hidden = false;
    why?.forget();
    fail(''); say('');
  }

  function choose(i) {
    const context = Object.assign(document.createElement('canvas'), { width: size, height: size }).getContext('2d');
    context.drawImage(strip, -i*size, 0);
    chosen = cells[i];
    $('.cd-frame').hidden = true;
    named('named').textContent = `${chosen.title}, ${size} × ${size} pixels`;
    take(context.getImageData(0, 0, size, size));
    ask(classes.indexOf(chosen.label));
  }

  function ask(number) {                                                         // for a class, unless all are compared
    if (named('label').value !== 'side') named('label').value = number >= 0 ? number : 'any';
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
    chosen = null;
    frame.show(context.getImageData(0, 0, w, h));
    $('.cd-frame').hidden = false;
    named('named').textContent = `${file.name}, ${w} × ${h} pixels`;
    cutAgain();
    ask(-1);
  }

  function cutAgain() { take(frame.cut()); keep(); }

  function wishes(label, seed) {                                                 // what each fill is asked for
    if (label !== 'side') return Array.from({ length: +named('fills').value }, (_, k) => ({ label, seed: seed + k, name: `fill ${k + 1}` }));
    const own = Math.max(0, classes.indexOf(chosen?.label)), n = classes.length;
    return Array.from({ length: four }, (_, k) => (own + Math.floor(k*n/four))%n).map(i => ({ label: String(i), seed, name: classes[i] }));
  }

  async function fill({ label, steps, seed, w }, tell, say) {
    const { pixels, hole } = canvas, look = seen(pixels, hole, channels), wanted = wishes(label, seed), n = wanted.length;
    const mine = { pixels, hole, truth: truths[chosen?.kind] ?? 'the original', place: chosen ? null : { window: frame.window, pixels: frame.pixels } };
    if (!about.few) stage(mine, wanted);
    let seconds = 0;
    for (const [k, wish] of wanted.entries()) {
      say(n > 1 ? `Filling: fill ${k + 1} of ${n}.` : 'Filling.');
      const frames = [], number = classNumber(about, wish.label);
      const { x0, seconds: s } = await engine.run({ x: noise(wish.seed, channels*size*size), labels: number === null ? null : [number], w, steps, ...look }, ({ step, steps, xt }) => {
        frames.push(xt);
        if (result === mine && !about.few) { inHole(xt); mine.tiles[k].draw($('.cd-shown')); }
        tell((k + (step + 1)/steps)/n, `step ${step + 1} of ${steps}`);
      });
      if (about.few && !k) stage(mine, wanted);                                          // until now the last fill stayed
      if (result !== mine) throw aborted();                                          // another cell was chosen meanwhile
      seconds += s;
      add({ ...wish, frames, steps, w, filled: softenSeam(putBack(pixels, hole, whole, x0, size, channels), hole) }, k);
    }
    mine.tiles[n].ready(canvasOf(pixels), truth);
    return `Done: ${n} fill${n > 1 ? 's' : ''} of ${hole.reduce((n, v) => n + v, 0).toLocaleString('en')} pixels in ${seconds.toFixed(1)} seconds.`;
  }

  function stage(next, wanted) {                                                 // a tile for each fill that will come, and one for what was there
    const tiles = $('.cd-choose'), names = [...wanted.map(w => w.name), next.truth];
    result = Object.assign(next, { focus: tiles.contains(document.activeElement) });
    $('.cd-empty').hidden = true; $('.cd-result').hidden = false; tiles.querySelectorAll('label').forEach(l => l.remove());
    result.tiles = names.map((name, k) => tile(name, k === wanted.length ? 'truth' : k));
    tiles.append(...result.tiles.map(t => t.label));
    named('step').disabled = true; hideDownloads();
    const shown = $('.cd-shown');
    Object.assign(shown, { width: size, height: size });
    shown.parentElement.style.width = $('.cd-easel').style.width;
    draw(canvasOf(result.pixels), 'The picture before it is filled');
  }

  function hideDownloads() { for (const n of ['download', 'whole']) withdraw(named(n)); }

  function draw(source, text) {
    const shown = $('.cd-shown');
    why?.forget();
    shown.getContext('2d').drawImage(source, 0, 0);
    shown.setAttribute('aria-label', text);
  }

  function inHole(x) { draw(canvasOf(putBack(result.pixels, result.hole, whole, x, size, channels)), 'A fill that forms out of noise'); }

  function tile(name, value) {                                                   // a small picture, to be chosen once it is ready
    const label = document.createElement('label'), input = Object.assign(document.createElement('input'), { type: 'radio', name: 'fill', value, ariaLabel: name, disabled: true });
    const small = Object.assign(document.createElement('canvas'), { width: size, height: size }), text = Object.assign(document.createElement('span'), { textContent: name, dir: 'auto' });
    label.append(input, small, text);
    const draw = source => small.getContext('2d').drawImage(source, 0, 0);
    return { label, input, draw, ready(source, show) { draw(source); Object.assign(input, { disabled: false, onchange: show }); } };
  }

  function add(one, k) {
    const { input, ready } = result.tiles[k];
    ready(canvasOf(one.filled), () => pick(one));
    if (about.few && k) return;                                                  // the first one stays in view
    input.checked = true;
    if (result.focus) input.focus();                                             // it was on a fill that is gone
    pick(one);
  }

  function inView() { return result ? result.finished : canvas.pixels; }               // undefined while a fill forms

  function truth() {
    result.finished = result.pixels;
    draw(canvasOf(result.pixels), `What was there: ${result.truth}`);
    named('step').disabled = true; hideDownloads();
  }

  function pick({ filled, frames, label, seed, steps, w, name }) {
    result.finished = filled;
    const finished = canvasOf(filled), asked = labelName(about, label), what = label === 'any' ? 'no class asked for' : `asked for: ${asked}`, { place } = result;
    trajectory(root, frames.length, step => step === frames.length ? draw(finished, `${name}, ${what}`) : inHole(frames[step]));
    const notes = { label: asked, seed, steps, ...(!about.few && { guidance: w }) }, file = `synthetic-${fileName(asked)}-${seed}.png`;
    offer(named('download'), finished, file, notes);
    if (place) offer(named('whole'), canvasOf(inPlace(place, filled)), file.replace('.png', '-whole.png'), notes);
  }

  function inPlace({ window, pixels }, filled) {                                     // a fill in the picture from which its square was cut
    return putBack(pixels, enlarge(result.hole, size, window, pixels.width, pixels.height), window, seen(filled, result.hole, channels).known, size, channels);
  }

  const shapes = { middle: (x, y) => Math.abs(x - .5) < .2 && Math.abs(y - .5) < .2, half: x => x < .5, all: () => true };
  const holes = { body: () => masks.cell, nucleus: () => masks.nucleus };
  for (const [name, inside] of Object.entries(shapes)) holes[name] = () => Uint8Array.from({ length: size*size }, (_, i) => inside((i%size + .5)/size, (Math.floor(i/size) + .5)/size) ? 1 : 0);

  function hide(name) { canvas.set(holes[name]()); hole = name; keep(); }

  root.querySelectorAll('[name=cell]').forEach(c => { c.onchange = () => choose(+c.value); });
  named('open').onclick = () => named('file').click();
  named('file').onchange = e => { if (e.target.files[0]) open(e.target.files[0]); e.target.value = ''; };
  named('erase').onclick = e => { canvas.erase = !canvas.erase; e.target.setAttribute('aria-pressed', canvas.erase); };
  named('undo').onclick = () => canvas.undo();
  named('clear').onclick = () => canvas.set(new Uint8Array(canvas.ink.length));
  for (const name of Object.keys(holes)) named(name).onclick = () => hide(name);
  named('fills').onchange = changed;
  named('label').addEventListener('change', sideBySide);

  // What the address asks for, else a photograph whose cell is hidden
  const asked = cells.findIndex(c => nameOf(c) === shared.get('cell')), first = asked >= 0 ? asked : Math.max(0, cells.findIndex(c => c.label === 'neutrophil'));
  root.querySelectorAll('[name=cell]')[first].checked = true;
  const wish = named('label').value;
  choose(first);
  if (shared.get('class')) named('label').value = wish;
  hole = [shared.get('hole'), 'body', 'middle'].find(name => Object.hasOwn(holes, name) && !named(name).disabled);
  canvas.set(holes[hole]());
  canvas.edited = () => { hole = null; keep(); changed(); };                           // from now on: nothing is loaded before a hand has moved
}

begin().catch(e => { root.innerHTML = `<section class="cd-all"><p class="cd-error" role="alert"></p></section>`; $('.cd-error').textContent = `${e.message} Without it nothing can be painted here; the notebooks can still do it.`; });
