// The page "Grow a cell": a class, a seed, and a cell that forms out of noise
import { Engine, describe, settings, fillIn, labelName, fileName, wire, trajectory, stepSlider, canvasOf, offer, withdraw } from './common.js';
import { sharedNumber } from './address.js';
import { noiseBetween } from './diffusion.js';
import { toPixels } from './picture.js';

const moment = .4;                                                                // seconds that a cell may take while noise is dragged
const root = document.getElementById('grow-a-cell'), $ = s => root.querySelector(s), named = n => $(`[name=${n}]`);

// Where a cell comes at once, one can walk from one noise to another
const mix = '<label class="cd-wide" hidden>Noise: <output name="mixed"></output> <input name="mix" type="range" class="form-range" min="0" max="1" step="0.02" value="0"></label>';

const page = `
  <section aria-labelledby="cd-1"><h2 id="cd-1"><b>1</b> Make a wish</h2>
    ${settings('Grow', 'Grow at every change', '', 'open', mix)}</section>
  <section aria-labelledby="cd-2"><h2 id="cd-2"><b>2</b> Watch it form</h2>
    <div class="cd-empty">Your cells will form here, out of noise.</div>
    <div class="cd-result" hidden><div class="cd-grid"></div>${stepSlider}
      <div class="cd-row"><a class="cd-button" name="download" hidden>Download (PNG)</a></div></div></section>`;

async function begin() {
  const about = await describe(root), engine = new Engine(about), { size, channels, classes } = about, length = channels*size*size, n = classes.length;
  root.innerHTML = page;
  fillIn(root, about, [...(n > 1 ? [['all', `all ${n}, side by side`, true]] : []), ['any', 'any']], n > 16 ? 0 : n > 1 ? 'all' : n ? 0 : 'any');
  const more = () => ({ ...(about.few && named('mix').valueAsNumber && { towards: named('mix').value }) });
  const { changed, dragged } = wire(root, engine, grow, { pause: 150, more });
  named('mix').closest('label').hidden = !about.few;
  const tellMix = () => {
    const seed = named('seed').valueAsNumber || 0, share = named('mix').valueAsNumber, text = share ? `${Math.round(100*share)} % towards seed ${seed + 1}` : `of seed ${seed}`;
    named('mixed').value = text; named('mix').setAttribute('aria-valuetext', text);
  };
  named('mix').value = (about.few ? sharedNumber('towards', { min: 0, max: 1 }) : null) ?? 0;
  named('mix').oninput = () => { tellMix(); dragged(); };
  named('mix').onchange = changed;
  named('seed').oninput = () => { tellMix(); changed(); };
  tellMix();

  let pace = .1;                                                                 // seconds that a call takes for one cell
  function lay(names) {                                                          // a canvas for each cell
    $('.cd-empty').hidden = true; $('.cd-result').hidden = false; withdraw(named('download')); named('step').disabled = true;
    $('.cd-grid').classList.toggle('cd-one', names.length === 1);
    const canvases = names.map(() => Object.assign(document.createElement('canvas'), { width: size, height: size, role: 'img' }));
    $('.cd-grid').replaceChildren(...names.map((name, i) => {
      const figure = document.createElement('figure'), caption = Object.assign(document.createElement('figcaption'), { textContent: name, dir: 'auto' });
      figure.append(canvases[i], caption);
      return figure;
    }));
    return canvases;
  }

  async function grow({ label, steps, seed, w, rough }, tell, say) {
    const numbers = label === 'all' ? classes.map((_, i) => i) : [label], names = numbers.map(k => labelName(about, k)), frames = [], share = named('mix').valueAsNumber;
    const start = noiseBetween(seed, share, length), x = new Float32Array(names.length*length);
    names.forEach((_, i) => x.set(start, i*length));                             // the same noise for each class: only the wish differs
    const shown = [...root.querySelectorAll('.cd-grid canvas')];
    let canvases = about.few ? rough && shown.length === names.length ? shown : [] : lay(names);      // the last cells stay while a network of few calls works
    const show = (x, how) => canvases.forEach((c, i) => { c.getContext('2d').putImageData(toPixels(x, size, i, channels), 0, 0); c.setAttribute('aria-label', `${names[i]}, ${how}`); });
    const labels = label === 'any' ? null : numbers.map(Number);
    say(names.length > 1 ? `Growing ${names.length} cells at once.` : 'Growing.');
    const { x0, seconds } = await engine.run({ x, labels, w, steps, ...(rough && { calls: Math.max(2, Math.round(moment/(pace*names.length))) }), known: new Float32Array(length), mask: new Float32Array(size*size).fill(1) }, ({ step, steps, xt }) => {
      frames.push(xt); tell((step + 1)/steps, `step ${step + 1} of ${steps}`);
      if (!rough) show(xt, 'forming');
    });
    if (rough) { show(x0, 'forming as the noise is dragged'); return null; }
    pace = seconds/frames.length/names.length;
    if (about.few) canvases = lay(names);
    trajectory(root, frames.length, k => k === frames.length ? show(x0, 'generated by the network') : show(frames[k], `after ${k} steps`));
    const what = labelName(about, label);
    await offer(named('download'), sheet(canvases), `synthetic-${fileName(what)}-${seed}.png`, { label: what, seed, ...(share && { towards_next_seed: share }), steps, ...(!about.few && { guidance: w }) });
    return `Done: ${names.length} cell${names.length > 1 ? 's' : ''} in ${seconds.toFixed(1)} seconds.`;
  }

  function sheet(canvases) {                                                     // all cells in one picture, at most four in a row
    const ncols = Math.min(4, canvases.length), all = canvasOf(new ImageData(ncols*size, Math.ceil(canvases.length/ncols)*size));
    canvases.forEach((c, i) => all.getContext('2d').drawImage(c, (i%ncols)*size, Math.floor(i/ncols)*size));
    return all;
  }
}

begin().catch(e => { root.innerHTML = `<section class="cd-all"><p class="cd-error" role="alert"></p></section>`; $('.cd-error').textContent = `${e.message} Without it nothing can grow here; the notebooks can still do it.`; });
