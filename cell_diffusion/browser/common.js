// What the two pages share: the network in its worker, the settings, messages, and files to download
import { share, shared, sharedNumber } from './address.js';

export const runtimeBytes = 3_730_000;                                            // of onnxruntime-web, packed
const url = path => new URL(path, import.meta.url);

// Where the network and its runtime lie, beside this file or at another address: `data-model` and `data-runtime` of the page's element
export const places = ({ model = 'model/network.json', runtime = 'ort/' } = {}) => ({ model, runtime });

export async function fetchFrom(path, what) {
  const response = await fetch(url(path), { cache: 'no-cache' }).catch(() => null);
  if (!response?.ok) throw Error(`${what} is missing on this site (browser/${path}).`);
  return response;
}

export async function describe(root) {
  const place = places(root?.dataset), about = await (await fetchFrom(place.model, 'The description of the network')).json();
  return { ...about, place, few: about.guided === false };                       // few: a distilled network, which makes a cell in a few calls
}

export const aborted = () => Object.assign(Error('Cancelled.'), { name: 'AbortError' });

// The network, in a worker that is started when it is first needed
export class Engine {
  constructor(about) { this.about = about; }

  start() {
    this.worker = new Worker(url('worker.js'), { type: 'module' });
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.worker.onerror = event => { event.preventDefault?.(); this.hear({ type: 'error', message: `The network could not be started in this browser. ${event.message ?? ''}` }); };
  }

  send(job, watch) {
    return new Promise((resolve, reject) => {
      if (this.stopped) throw aborted();                                         // Cancel came between two jobs
      this.job = { resolve, reject, watch };
      this.worker.postMessage(job);
    });
  }

  hear({ type, ...data }) {
    if (type === 'step' || type === 'loading') this.job?.watch?.(data);
    else if (type === 'error') {
      if (data.name !== 'AbortError') this.ready = null;                         // the session may be broken: begin with a new worker
      this.job?.reject(Object.assign(Error(data.message), { name: data.name ?? 'Error' }));
    } else this.job?.resolve(data);
  }

  // Fetches runtime and network; `watch` hears `{share}`, 0..1. Does nothing the second time.
  async load(watch) {
    if (this.ready) return;
    this.worker?.terminate();
    this.start();
    this.ready = await this.send({ type: 'load', about: this.about, total: this.about.bytes + runtimeBytes }, watch);
  }

  // Samples; `watch` hears `{step, steps, xt, x0}`. Resolves to `{x0, seconds}`. See `run` in worker.js for a job.
  async run(job, watch) {
    const result = await this.send({ type: 'run', ...job }, watch);
    if (this.stopped) throw aborted();                                           // a moment too late
    return result;
  }

  // Ends a run; a network that is being fetched still arrives
  interrupt() {
    this.stopped = true;
    if (this.ready) this.worker.postMessage({ type: 'cancel' });
  }

  // Ends what goes on; while the network is being fetched by ending the worker
  cancel() {
    this.interrupt();
    if (!this.ready) { this.worker?.terminate(); this.job?.reject(aborted()); }
  }
}

// The settings of a run, the button that starts it, and what is said while it goes on
// as markup without names; `fillIn` adds those, as text
export const settings = (go, live, more = '', open = '', last = '') => `
  <div class="cd-fields">
    <label>Class <select name="label" class="form-select"></select></label>
    ${more}
  </div>
  <details ${open}><summary></summary><div class="cd-fields">
    <label>Steps <select name="steps" class="form-select"></select></label>
    <label>Seed <span class="cd-pair"><input name="seed" type="number" class="form-control" value="7" min="0" max="4294967295" step="1" required><button type="button" name="dice" title="Another seed" aria-label="Another seed">⚄</button></span></label>
    <label class="cd-wide">Guidance <output name="shown">1</output> <input name="w" type="range" class="form-range" min="0" max="4" step="0.5" value="1"></label>
    ${last}
  </div><p class="cd-hint" name="why"></p></details>
  <label class="cd-live" hidden><input type="checkbox" name="live"> ${live}</label>
  <div class="cd-go"><button type="button" name="go" class="cd-primary">${go}</button><button type="button" name="cancel" disabled>Cancel</button>
    <div class="cd-progress" hidden><progress max="1" value="0" aria-label="Progress"></progress><span></span></div></div>
  <p class="cd-status" role="status"></p>
  <p class="cd-error" role="alert" hidden></p>`;

// The classes and the numbers of steps to choose from, with what the address asks for. A name may be anything: it is text and never markup. Values are class numbers, or words.
export function fillIn(root, about, words, chosen) {
  const named = n => root.querySelector(`[name=${n}]`), option = (text, value, chosen) => Object.assign(new Option(text, value, chosen, chosen), { dir: 'auto' });
  const all = [...words.filter(([, , first]) => first), ...about.classes.map((name, i) => [i, name]), ...words.filter(([, , first]) => !first)];
  const asked = shared.get('class'), number = about.classes.indexOf(asked), begin = number >= 0 ? number : words.some(([value]) => value === asked) ? asked : chosen;
  named('label').append(...all.map(([value, text]) => option(text, value, String(value) === String(begin))));
  const walks = Object.keys(about.walks), steps = walks.includes(shared.get('steps')) ? shared.get('steps') : '20';
  named('steps').append(...walks.map(k => option(k, k, k === steps)));
  const hide = (n, on) => { named(n).closest('label').hidden = on; }, calls = Object.keys(about.walks)[0], classes = about.classes.length;
  const stored = about.guidance_scale ?? 1;                                      // what the library's `sample` uses
  Object.assign(named('w'), { max: Math.max(4, stored), step: stored % .5 ? 'any' : .5 });
  named('shown').value = named('w').value = (about.few ? null : sharedNumber('guidance', named('w'))) ?? stored;
  named('seed').value = sharedNumber('seed', named('seed')) ?? 7;
  hide('label', !classes);                                                       // nothing to choose without classes
  hide('steps', about.few); hide('w', about.few || !classes); hide('live', !about.few);
  root.querySelector('summary').textContent = about.few ? 'Seed' : classes ? 'Seed, steps, guidance' : 'Seed, steps';
  named('why').textContent = about.few
    ? `This network was distilled: it learned to do in ${calls === '1' ? 'one call' : `${calls} calls`} what its teacher does in many steps. The steps${classes ? ' and the guidance' : ''} are part of its weights, so there is nothing to set here.`
    : `Few steps give a rough picture, twenty a good one, and fifty a hardly better one.${classes ? ' Guidance above 1 follows the class more strictly, and more than about 3 gives caricatures.' : ''}`;
  named('live').checked = about.few && remembered() !== 'false';
}

// Whether a page works without its button being pressed, kept until the tab is closed
function remembered(value) {
  try {
    if (value !== undefined) sessionStorage.setItem('cell-diffusion-live', value);
    return sessionStorage.getItem('cell-diffusion-live');
  } catch { return null; }                                                       // a browser may forbid it
}

// What a choice is called, and a name without what a file name cannot hold
export const labelName = (about, label) => about.classes[label] ?? label;
export const fileName = text => [...String(text).replace(/[<>:"/\\|?*\x00-\x1f]/g, '_')].slice(0, 50).join('');

// Wires `settings` up; `work(values, tell, say)` does what the button promises, `tell(share, text)` moves the bar. `hindrance()` is a sentence if it cannot begin.
// With a network of few calls it also does so by itself, `pause` milliseconds after `changed`; what goes on then ends. `more()` are further words for the address.
export function wire(root, engine, work, { hindrance = () => '', pause = 400, more = () => ({}) } = {}) {
  const $ = s => root.querySelector(s), named = n => $(`[name=${n}]`), bar = $('.cd-progress'), error = $('.cd-error'), live = named('live'), { about } = engine;
  let turn = 0, running = null, timer, hushed = false;                            // hushed: what ends makes room for another run, and says nothing
  const tell = (share, text) => { bar.firstElementChild.value = share; bar.lastElementChild.textContent = text; };
  const say = text => { $('.cd-status').textContent = text; };
  const fail = text => { error.hidden = !text; error.textContent = text; };
  const busy = (on, alone) => {                                                  // alone: no button was pressed, so buttons and live regions keep still
    named('cancel').disabled = !on;
    bar.hidden = !on || (alone && engine.ready);
    if (!alone) { named('go').disabled = on; root.setAttribute('aria-busy', on); }
  };

  function keep() {                                                              // in the address: what this page would show somewhere else
    const seed = named('seed');
    share({
      ...more(), class: about.classes.length ? labelName(about, named('label').value) : null, seed: seed.checkValidity() ? seed.value : null,
      ...(!about.few && { steps: named('steps').value, guidance: about.classes.length ? Number(named('w').valueAsNumber.toFixed(2)) : null }),
    });
  }

  async function go(alone, rough) {
    const seed = named('seed'), hindered = hindrance();
    fail(alone ? '' : hindered);
    if (hindered || !(alone ? seed.checkValidity() : seed.reportValidity())) return;
    if (!rough) busy(true, alone);
    tell(0, '');
    engine.stopped = hushed = false;
    try {
      if (!engine.ready) say(`Loading the network, ${((engine.about.bytes + runtimeBytes)/1e6).toFixed(1)} MB. This is needed once.`);
      await engine.load(({ share }) => tell(share, `${Math.round(100*share)} %`));
      if (engine.stopped) throw aborted();
      bar.hidden = !!alone;
      const told = await work({ label: named('label').value, steps: named('steps').value, seed: seed.valueAsNumber, w: named('w').valueAsNumber, rough }, tell, alone ? () => {} : say);
      if (told) say(told);
    } catch (e) {
      const ended = e.name === 'AbortError';
      say(ended && !hushed ? 'Cancelled. Nothing is lost: press the button to begin again.' : '');
      if (!ended) fail(e.message);
      if (!ended && alone) live.checked = false;                                 // one message is enough
    }
    if (!rough) busy(false, alone);
  }

  const stop = () => { turn++; clearTimeout(timer); engine.interrupt(); };
  async function start(alone, rough) {                                           // when the earlier run has ended, and unless a later one is wanted
    stop(); hushed = true;
    const mine = turn;
    await running;
    if (mine === turn) await (running = go(alone, rough));
  }

  let moved = false, dragging = false;
  async function dragged() {                                                     // while a slider moves: a rough answer, and the next as soon as it is there
    if (!live.checked || !engine.ready) return;
    moved = true;
    if (dragging) return;
    for (dragging = true; moved && live.checked;) { moved = false; await start(true, true); }
    dragging = false;
  }

  function changed() {
    if (!live.checked) return;
    stop(); hushed = true;
    if (!hindrance()) timer = setTimeout(() => start(true), pause);
  }

  named('w').oninput = () => { named('shown').value = Number(named('w').valueAsNumber.toFixed(2)); };
  named('dice').onclick = () => {
    named('seed').value = Math.floor(Math.random()*10000);
    for (const type of ['input', 'change']) named('seed').dispatchEvent(new Event(type, { bubbles: true }));
  };
  named('seed').oninput = named('label').onchange = changed;
  live.onchange = () => { remembered(live.checked); clearTimeout(timer); changed(); };
  named('cancel').onclick = () => { stop(); hushed = false; engine.cancel(); say('Cancelling …'); };
  named('go').onclick = () => start(false);
  root.addEventListener('change', e => { if (['label', 'seed', 'steps', 'w', 'cell', 'mix'].includes(e.target.name)) keep(); });
  return { say, fail, changed, dragged, keep, end: () => { if (live.checked) { stop(); hushed = true; } else engine.cancel(); } };
}

// Which class number a choice stands for; none is null
export const classNumber = (about, label) => about.classes[label] === undefined ? null : Number(label);

// The slider over a run: `show(k)` draws step k, the last of which is the finished picture
export function trajectory(root, count, show) {
  const slider = root.querySelector('[name=step]'), shown = root.querySelector('[name=at]');
  const move = () => {
    const k = slider.valueAsNumber;
    shown.value = k === count ? `all ${count} steps` : `step ${k} of ${count}`;
    slider.setAttribute('aria-valuetext', k === count ? 'finished' : `after ${k} of ${count} steps`);
    show(k);
  };
  Object.assign(slider, { max: count, value: count, disabled: false, oninput: move });
  move();
}

export const stepSlider = '<label class="cd-wide">How it formed: <output name="at"></output> <input name="step" type="range" class="form-range" min="0" max="1" value="1" step="1" disabled></label>';

export function canvasOf(pixels) {
  const canvas = Object.assign(document.createElement('canvas'), { width: pixels.width, height: pixels.height });
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  return canvas;
}

const crcTable = Uint32Array.from({ length: 256 }, (_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xEDB88320 ^ (n >>> 1) : n >>> 1; return n; });

// A chunk of text for a PNG file, so that the file itself says what it is
function textChunk(key, value) {                                                  // iTXt is UTF-8: a class may have any name
  const body = new TextEncoder().encode(`iTXt${key}\0\0\0\0\0${value}`), chunk = new Uint8Array(body.length + 8), view = new DataView(chunk.buffer);
  chunk.set(body, 4);
  view.setUint32(0, body.length - 4);
  view.setUint32(body.length + 4, ~body.reduce((crc, b) => crcTable[(crc ^ b) & 255] ^ (crc >>> 8), ~0));
  return chunk;
}

// A PNG file of a canvas that is marked as synthetic, as the library marks its files
export async function png(canvas, notes) {
  const plain = new Uint8Array(await (await new Promise(resolve => canvas.toBlob(resolve, 'image/png'))).arrayBuffer()), head = 33;   // signature and IHDR
  const chunks = Object.entries({ synthetic: 'True', software: 'cell_diffusion', ...notes }).map(([k, v]) => textChunk(k, String(v)));
  return new Blob([plain.subarray(0, head), ...chunks, plain.subarray(head)], { type: 'image/png' });
}

// Makes `link` download `canvas`, unless something else is wanted before the file is there; the address of an earlier file is given back
export async function offer(link, canvas, name, notes) {
  const mine = link.offered = {};
  if (link.href) URL.revokeObjectURL(link.href);
  link.removeAttribute('href');
  const blob = await png(canvas, notes);
  if (link.offered === mine) Object.assign(link, { href: URL.createObjectURL(blob), download: name, hidden: false });
}

export const withdraw = link => Object.assign(link, { offered: null, hidden: true });
