// The page "Grow a cell": a class, a seed, and a cell that forms out of noise
import { Engine, describe, settings, wire, trajectory, stepSlider, canvasOf, offer } from './common.js';
import { noise } from './diffusion.js';
import { toPixels } from './picture.js';

const root = document.getElementById('grow-a-cell'), $ = s => root.querySelector(s), named = n => $(`[name=${n}]`);

const page = about => `
  <section aria-labelledby="cd-1"><h2 id="cd-1"><b>1</b> Make a wish</h2>
    ${settings(about, { classes: [['eight', `all ${about.classes.length}, side by side`], ...about.classes.map(c => [c, c]), ['any', 'any']], chosen: 'eight', go: 'Grow', open: true })}</section>
  <section aria-labelledby="cd-2"><h2 id="cd-2"><b>2</b> Watch it form</h2>
    <div class="cd-empty">Your cells will form here, out of noise.</div>
    <div class="cd-result" hidden><div class="cd-grid"></div>${stepSlider}
      <div class="cd-row"><a class="cd-button" name="download" hidden>Download (PNG)</a></div></div></section>`;

async function begin() {
  const about = await describe();
  root.innerHTML = page(about);
  const engine = new Engine(about), { size, channels, classes } = about, length = channels*size*size;
  wire(root, engine, grow);

  function lay(names) {                                                          // a canvas for each cell
    $('.cd-empty').hidden = true; $('.cd-result').hidden = false; named('download').hidden = true; named('step').disabled = true;
    $('.cd-grid').classList.toggle('cd-one', names.length === 1);
    $('.cd-grid').innerHTML = names.map(n => `<figure><canvas width="${size}" height="${size}" role="img"></canvas><figcaption>${n}</figcaption></figure>`).join('');
    return [...root.querySelectorAll('.cd-grid canvas')];
  }

  async function grow({ label, steps, seed, w }, tell, say) {
    const names = label === 'eight' ? classes : [label], canvases = lay(names), frames = [], x = new Float32Array(names.length*length);
    names.forEach((_, i) => x.set(noise(seed, length), i*length));               // the same noise for each class: only the wish differs
    const show = (x, how) => canvases.forEach((c, i) => { c.getContext('2d').putImageData(toPixels(x, size, i), 0, 0); c.setAttribute('aria-label', `${names[i]}, ${how}`); });
    const labels = label === 'any' ? null : names.map(n => classes.indexOf(n));
    say(names.length > 1 ? 'Growing eight cells at once.' : 'Growing.');
    const { x0, seconds } = await engine.run({ x, labels, w, steps, known: new Float32Array(length), mask: new Float32Array(size*size).fill(1) }, ({ step, steps, xt }) => {
      frames.push(xt); show(xt, 'forming'); tell((step + 1)/steps, `step ${step + 1} of ${steps}`);
    });
    trajectory(root, frames.length, k => k === frames.length ? show(x0, 'painted by the network') : show(frames[k], `after ${k} steps`));
    await offer(named('download'), sheet(canvases), `synthetic-${label}-${seed}.png`, { label, seed, steps, guidance: w });
    return `Done: ${names.length} cell${names.length > 1 ? 's' : ''} in ${seconds.toFixed(1)} seconds.`;
  }

  function sheet(canvases) {                                                     // all cells in one picture, at most four in a row
    const ncols = Math.min(4, canvases.length), all = canvasOf(new ImageData(ncols*size, Math.ceil(canvases.length/ncols)*size));
    canvases.forEach((c, i) => all.getContext('2d').drawImage(c, (i%ncols)*size, Math.floor(i/ncols)*size));
    return all;
  }
}

begin().catch(e => { root.innerHTML = `<section class="cd-all"><p class="cd-error" role="alert"></p></section>`; $('.cd-error').textContent = `${e.message} Without it nothing can grow here; the notebooks can still do it.`; });
