// "Ask why": which class a classifier gives to the picture in view, and which regions its scores come from. See web.ipynb.
import { Engine, canvasOf, fetchFrom, runtimeBytes } from './common.js';
import { seen } from './picture.js';

const page = `
    <h2 id="cd-4"><b>4</b> Ask why</h2>
    <div class="cd-row"><button type="button" name="ask">Which class is it, and why?</button></div>
    <p class="cd-called" role="status"></p>
    <p class="cd-error cd-unasked" role="alert" hidden></p>
    <div class="cd-frame cd-because" hidden>
      <div class="cd-stage cd-map"><canvas role="img"></canvas></div>
      <div><label class="cd-wide">Rather than <select name="rival" class="form-select"></select></label>
      <p class="cd-hint"></p></div></div>`;

// The mean of each of `n` maps, one after the other: the scores of the classes
export function scores(maps, n) {
  const area = maps.length/n;
  return Array.from({ length: n }, (_, k) => maps.subarray(k*area, (k + 1)*area).reduce((sum, v) => sum + v, 0)/area);
}

// The difference of two of `n` square maps
export function difference(maps, n, one, other) {
  const area = maps.length/n;
  return Float32Array.from({ length: area }, (_, i) => maps[one*area + i] - maps[other*area + i]);
}

// A square map at each pixel of a picture. With every stride of 2 a convolution keeps every second place, so place i of 8 lies at pixel 8i of 64.
export function atPixels(map, size) {
  const side = Math.sqrt(map.length), stride = size/side;
  const place = v => { const u = Math.min(v/stride, side - 1), i = Math.min(Math.floor(u), Math.max(0, side - 2)); return [i, u - i]; };
  return Float32Array.from({ length: size*size }, (_, k) => {
    const [y, b] = place(Math.floor(k/size)), [x, a] = place(k%size), at = (j, i) => map[Math.min(y + j, side - 1)*side + Math.min(x + i, side - 1)];
    return (1 - b)*((1 - a)*at(0, 0) + a*at(0, 1)) + b*((1 - a)*at(1, 0) + a*at(1, 1));
  });
}

// In words where a square map is largest
export function largestAt(map) {
  const side = Math.sqrt(map.length), i = map.indexOf(map.reduce((a, b) => Math.max(a, b))), third = v => Math.floor(3*v/side);
  return [['upper', '', 'lower'][third(Math.floor(i/side))], ['left', '', 'right'][third(i%side)]].filter(Boolean).join(' ') || 'middle';
}

const red = [178, 24, 43], blue = [33, 102, 172];

// A picture under a map: red where it is above zero, blue where it is below
export function tint({ data, width, height }, map) {
  const out = new ImageData(new Uint8ClampedArray(data), width, height), most = map.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9);
  map.forEach((v, i) => { const share = .65*Math.abs(v)/most; (v > 0 ? red : blue).forEach((c, k) => { out.data[4*i + k] = (1 - share)*data[4*i + k] + share*c; }); });
  return out;
}

// Adds the section to a page; `inView()` is the picture that is asked about, or null while none is finished. `forget()` takes an answer back when another picture comes into view.
export function askWhy(root, about, inView) {
  const section = Object.assign(document.createElement('section'), { className: 'cd-all' });
  section.innerHTML = page;
  section.setAttribute('aria-labelledby', 'cd-4');
  root.append(section);

  const $ = s => root.querySelector(s), canvas = $('.cd-because canvas'), rival = $('[name=rival]'), error = $('.cd-unasked'), button = $('[name=ask]'), model = root.dataset.why;
  let engine = null, answer = null, turn = 0;

  async function load() {
    if (!engine) {
      const facts = await (await fetchFrom(model, 'The description of the classifier')).json();
      engine = new Engine({ ...facts, place: { ...about.place, model } });
      rival.replaceChildren(...facts.classes.map((name, i) => Object.assign(new Option(name, i), { dir: 'auto' })));
    }
    if (!engine.ready) $('.cd-called').textContent = `Loading the classifier and what runs it, ${((engine.about.bytes + runtimeBytes)/1e6).toFixed(1)} MB.`;
    await engine.load();
  }

  async function ask() {
    forget();
    const mine = turn, pixels = inView();
    if (!pixels) { fail('The fill is not finished yet: ask when it is.'); return; }
    button.disabled = true;
    try {
      await load();
      const { classes, size, channels } = engine.about;
      const { maps } = await engine.send({ type: 'classify', x: seen(pixels, new Uint8Array(size*size), channels).known });
      if (mine === turn) name(pixels, maps, scores(maps, classes.length));
    } catch (e) { if (mine === turn) { forget(); fail(e.message); } }
    button.disabled = false;
  }

  function name(pixels, maps, marks) {
    const order = marks.map((_, i) => i).sort((a, b) => marks[b] - marks[a]);
    answer = { pixels, maps, marks, first: order[0] };
    [...rival.options].forEach((option, i) => { option.disabled = i === order[0]; });
    rival.value = order[1];
    show();
  }

  function show() {
    const { pixels, maps, marks, first } = answer, { classes, size, learned_from, tried_on, right, least } = engine.about, n = classes.length;
    const other = Number(rival.value), gap = (marks[first] - marks[other]).toFixed(1), map = difference(maps, n, first, other), side = Math.sqrt(map.length), share = v => `${Math.round(100*v)} %`;
    Object.assign(canvas, { width: size, height: size });
    canvas.getContext('2d').drawImage(canvasOf(tint(pixels, atPixels(map, size))), 0, 0);
    canvas.setAttribute('aria-label', `Most speaks for ${classes[first]} at the ${largestAt(map)}, and for ${classes[other]} at the ${largestAt(map.map(v => -v))}`);
    $('.cd-called').textContent = `The classifier says ${classes[first]}, with a score ${gap} above that of ${classes[other]}.`;
    $('.cd-because .cd-hint').textContent = `Red speaks for ${classes[first]}, blue for ${classes[other]}; the strongest place has the full colour. The mean over ${side} × ${side} places is the difference of the two scores, ${gap}, with nothing left over. A place sees more than its own pixels, so it points to a region. `
      + `The classifier learned from ${learned_from.toLocaleString('en')} photographs that the network never saw, and of ${tried_on.toLocaleString('en')} others it named ${share(right)} right (${least.class}: ${share(least.share)}); fills were not among them. It knows these ${n} classes at this scale and nothing else, and it has a name for anything.`;
    $('.cd-because').hidden = false;
  }

  function fail(text) { error.textContent = text; error.hidden = !text; }

  function forget() { turn++; fail(''); $('.cd-because').hidden = true; $('.cd-called').textContent = ''; }

  button.onclick = ask;
  rival.onchange = show;
  return { forget };
}
