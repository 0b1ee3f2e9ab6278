// "Ask why": which class a classifier gives to the picture in view, and where in the picture its answer comes from. See web.ipynb.
import { Engine, canvasOf, fetchFrom } from './common.js';
import { seen } from './picture.js';

export const whyPage = `
  <section class="cd-all" aria-labelledby="cd-4"><h2 id="cd-4"><b>4</b> Ask why</h2>
    <div class="cd-row"><button type="button" name="ask">Which class is it, and why?</button></div>
    <p class="cd-called" role="status"></p>
    <p class="cd-error cd-unasked" role="alert" hidden></p>
    <div class="cd-frame cd-because" hidden>
      <div class="cd-stage cd-map"><canvas role="img"></canvas></div>
      <div><label class="cd-wide">Rather than <select name="rival" class="form-select"></select></label>
      <p class="cd-hint"></p></div></div></section>`;

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

const red = [178, 24, 43], blue = [33, 102, 172];

// A picture under a map: red where it is above zero, blue where it is below
export function tint({ data, width, height }, map) {
  const out = new ImageData(new Uint8ClampedArray(data), width, height), most = map.reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9);
  map.forEach((v, i) => { const share = .65*Math.abs(v)/most; (v > 0 ? red : blue).forEach((c, k) => { out.data[4*i + k] = (1 - share)*data[4*i + k] + share*c; }); });
  return out;
}

// Wires the section up; `inView()` is the picture that is asked about. `forget()` hides an answer to an earlier one.
export async function askWhy(root, about, inView) {
  const $ = s => root.querySelector(s), canvas = $('.cd-because canvas'), rival = $('[name=rival]'), { dataset } = root;
  const facts = await (await fetchFrom(dataset.why, 'The description of the classifier')).json(), { classes, size, channels } = facts, n = classes.length;
  const engine = new Engine({ ...facts, place: { ...about.place, model: dataset.why } });
  let answer = null;

  rival.append(...classes.map((name, i) => new Option(name, i)));

  async function ask() {
    const pixels = inView(), whole = new Uint8Array(size*size), error = $('.cd-unasked');
    error.hidden = true;
    $('[name=ask]').disabled = true;
    try {
      if (!engine.ready) $('.cd-called').textContent = `Loading the classifier, ${(facts.bytes/1e6).toFixed(1)} MB, and what runs it.`;
      await engine.load();
      const { maps } = await engine.send({ type: 'classify', x: seen(pixels, whole, channels).known }), marks = scores(maps, n);
      const order = marks.map((_, i) => i).sort((a, b) => marks[b] - marks[a]);
      answer = { pixels, maps, marks, first: order[0] };
      [...rival.options].forEach((option, i) => { option.disabled = i === order[0]; });
      rival.value = order[1];
      $('.cd-called').textContent = `The classifier says ${classes[order[0]]}, and next ${classes[order[1]]}.`;
      show();
    } catch (e) { forget(); error.textContent = e.message; error.hidden = false; }
    $('[name=ask]').disabled = false;
  }

  function show() {
    const { pixels, maps, marks, first } = answer, other = Number(rival.value), gap = marks[first] - marks[other];
    Object.assign(canvas, { width: size, height: size });
    canvas.getContext('2d').drawImage(canvasOf(tint(pixels, atPixels(difference(maps, n, first, other), size))), 0, 0);
    canvas.setAttribute('aria-label', `What speaks for ${classes[first]}, rather than ${classes[other]}`);
    $('.cd-because .cd-hint').textContent = `Red speaks for ${classes[first]}, blue for ${classes[other]}. The mean of the map, ${gap.toFixed(1)}, is the difference of the two scores, with nothing left over. `
      + `The classifier learned from ${facts.learned_from.toLocaleString('en')} photographs that the network never saw, and of ${facts.tried_on.toLocaleString('en')} others it named ${Math.round(100*facts.right)} % right. It knows these ${n} classes at this scale and nothing else, and it has a name for anything.`;
    $('.cd-because').hidden = false;
  }

  function forget() { $('.cd-because').hidden = true; $('.cd-called').textContent = ''; }

  $('[name=ask]').onclick = ask;
  rival.onchange = show;
  return { forget };
}
