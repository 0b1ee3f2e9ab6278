// Live figures of the chapters: what one moves is computed at once, by the network
// that the browser has, or by Python where a notebook shows the figure. See web.ipynb.
import { noise, evenOut, generate, guided, scaleIn } from './diffusion.js';
import { toPixels } from './picture.js';

const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};

const draw = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  const set = ([name, value]) => element.setAttribute(name, value);
  Object.entries(attributes).forEach(set);
  element.append(...children);
  return element;
};

const write = (words, x, y, anchor) =>
  draw('text', { x, y, 'text-anchor': anchor }, words);

const points = (list) => list.map((p) => p.map((v) => v.toFixed(1)).join()).join(' ');

const repeat = (x, n) => {
  const all = new Float32Array(n*x.length);
  for (let i = 0; i < n; i++) all.set(x, i*x.length);
  return all;
};

// Two engines answer `ask(x, t, labels)` with estimates of the clean pictures

// The network of the painting page, fetched when it is first needed
export function pageEngine() {
  let engine, loading;
  const describeAny = async () => {
    const { Engine, describe } = await import('./common.js');
    let about = await describe();
    // A network of few calls answers at few noise levels alone
    if (about.few) about = await describe({ dataset: { model: 'live/network.json' } });
    return new Engine(about);
  };
  const open = async (watch) => {
    engine ??= await describeAny();
    await engine.load(watch);
  };
  const ready = (watch) => {
    loading ??= open(watch).catch((error) => {
      loading = null;
      throw error;
    });
    return loading;
  };
  const ask = async (x, t, label) => {
    try {
      const { x0 } = await engine.send({ type: 'ask', x, t, label });
      return x0;
    } catch (error) {
      // The session may be broken: the next wish begins with a new one
      loading = null;
      throw error;
    }
  };
  return { ready, ask };
}

// The network of a notebook: each question is a message to Python. All views of a
// widget hear each answer, and each takes its own
export function pythonEngine(model) {
  const open = new Map();
  const view = Math.random().toString(36).slice(2);
  let last = 0;
  model.on('msg:custom', ({ id, error }, [x0]) => {
    if (!open.has(id)) return;
    const { resolve, reject } = open.get(id);
    open.delete(id);
    if (error) reject(Error(error));
    else {
      const { buffer, byteOffset, byteLength } = x0;
      resolve(new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength)));
    }
  });
  const ask = (x, t, label) => new Promise((resolve, reject) => {
    last += 1;
    const id = `${view} ${last}`;
    open.set(id, { resolve, reject });
    model.send({ id, t, label: [...label] }, undefined, [x.buffer]);
  });
  return { ready: async () => {}, ask };
}

// Work: the newest wish counts, an older one ends at its next question

const old = Symbol('an older wish');

export class Work {
  constructor(engine, say) {
    Object.assign(this, { engine, say, wish: 0 });
    // One question at a time, also where a page has several figures
    engine.queue ??= Promise.resolve();
  }

  // `job(ask)` says at its end what was done
  async start(job) {
    this.wish += 1;
    const mine = this.wish;
    const check = () => { if (mine !== this.wish) throw old; };
    // What still arrives after a failure is not news
    let isOver = false;
    const loading = ({ share }) => {
      const percent = Math.round(100*share);
      if (mine === this.wish && !isOver) this.say(`Loading the network: ${percent}%`);
    };
    const ask = (x, t, label) => {
      const answer = this.engine.queue.then(() => {
        check();
        return this.engine.ask(x, t, label);
      });
      this.engine.queue = answer.catch(() => {});
      return answer.then((x0) => {
        check();
        return x0;
      });
    };
    try {
      this.say('Loading the network');
      await this.engine.ready(loading);
      check();
      this.say('Computing');
      const words = await job(ask);
      check();
      this.say(words);
    } catch (error) {
      isOver = true;
      if (error !== old) this.say(error.message, true);
    }
  }

  stop(words) {
    this.wish += 1;
    this.say(words);
  }
}

// What all figures share

class Figure {
  constructor(root, engine) {
    this.root = root;
    this.facts = JSON.parse(root.dataset.facts ?? '{}');
    this.sheet = root.querySelector('img');
    this.box = make('div', { className: 'live-box' });
    this.status = make('p', { className: 'live-says' });
    this.status.setAttribute('role', 'status');
    this.work = new Work(engine, (words, isError) => {
      this.status.textContent = words;
      this.status.classList.toggle('live-error', Boolean(isError));
    });
    this.seed = this.facts.seed;
    root.classList.add('live-on');
    root.insertBefore(this.box, this.sheet);
    this.sheet.hidden = true;
  }

  // A picture with a caption that may change
  picture(words) {
    const { size } = this.facts;
    const canvas = make('canvas', { width: size, height: size });
    const caption = make('figcaption', { textContent: words });
    canvas.setAttribute('role', 'img');
    const whole = make('figure', {}, canvas, caption);
    const told = (text, alt) => {
      caption.textContent = text;
      canvas.setAttribute('aria-label', alt ?? text);
    };
    told(words);
    const pen = canvas.getContext('2d');
    const show = (x, n = 0) => {
      pen.putImageData(toPixels(x, size, n, this.facts.channels), 0, 0);
    };
    // A tile of the picture that stands there without scripts
    const tile = (column, row) => {
      pen.drawImage(this.sheet, column*size, row*size, size, size, 0, 0, size, size);
    };
    return { whole, canvas, show, tile, told };
  }

  // The pixels of a canvas, -1 to 1
  pixels(canvas) {
    const { size, channels } = this.facts;
    const { data } = canvas.getContext('2d').getImageData(0, 0, size, size);
    const area = size*size;
    return Float32Array.from({ length: channels*area }, (_, i) =>
      data[4*(i % area) + Math.floor(i/area)]/127.5 - 1);
  }

  slider(words, most, value, moved) {
    const shown = make('output');
    const bar = make('input', { type: 'range', min: 0, max: most, step: 1, value });
    bar.dataset.lmSuppressShortcuts = 'true';
    bar.oninput = () => moved(bar.valueAsNumber);
    const tell = (text) => {
      shown.value = text;
      bar.setAttribute('aria-valuetext', text);
    };
    const label = make('label', { className: 'live-slider' }, `${words} `, shown, bar);
    return { label, bar, tell };
  }

  choice(words, names, chosen, changed) {
    const options = names.map((name, i) => new Option(name, i));
    const select = make('select', {}, ...options);
    select.selectedIndex = chosen;
    select.onchange = () => changed(Number(select.value));
    return make('label', { className: 'live-choice' }, `${words} `, select);
  }

  // Another noise, by its seed
  another(changed) {
    const button = make('button', { type: 'button', textContent: 'Another noise' });
    button.onclick = () => {
      this.seed += 1;
      changed();
    };
    return button;
  }

  noise() {
    const { channels, size } = this.facts;
    return noise(this.seed, channels*size*size);
  }

  // Cells from the noise of this figure, `n` from the same
  async generate(x0Of, n, walk, watch) {
    const { mean, size, even_out } = this.facts;
    const eps = repeat(this.noise(), n);
    const x0 = await generate(x0Of, eps, mean, size*size, walk, watch);
    return even_out ? evenOut(x0, size) : x0;
  }

  lay(pictures, ...controls) {
    const shown = pictures.map((p) => p.whole);
    const cells = make('div', { className: 'live-cells' }, ...shown);
    cells.style.setProperty('--columns', pictures.length);
    const bar = make('div', { className: 'live-bar' }, ...controls);
    this.box.append(cells, bar, this.status);
  }
}

// The share of the variance that is signal
const shareOf = (level) => 1/(1 + Math.exp(-level));

// A cell with that share of its variance left, filled up with noise
const noised = (cell, eps, share) =>
  cell.map((v, i) => Math.sqrt(share)*v + Math.sqrt(1 - share)*eps[i]);

// Guidance: four classes from one noise, and how strictly they are followed

class Guidance extends Figure {
  constructor(root, engine) {
    super(root, engine);
    const { names, scales } = this.facts;
    this.at = scales.indexOf(this.facts.scale);
    this.done = new Map();
    this.pictures = names.map((name) => this.picture(name));
    this.bar = this.slider('Guidance scale w:', scales.length - 1, this.at, (i) => {
      this.at = i;
      this.show();
    });
    this.lay(this.pictures, this.bar.label, this.another(() => this.show()));
    this.show();
  }

  show() {
    const w = this.facts.scales[this.at];
    const x0 = this.done.get(`${this.seed} ${w}`);
    this.bar.tell(String(w));
    this.tell('');
    if (this.seed === this.facts.seed) {
      this.pictures.forEach((p, i) => p.tile(this.at, i));
      this.work.stop(`Noise ${this.seed}.`);
    } else if (x0) this.pictures.forEach((p, i) => p.show(x0, i));
    else this.work.start((ask) => this.compute(ask, w, this.seed));
  }

  tell(how) {
    const w = this.facts.scales[this.at];
    this.facts.names.forEach((name, i) => {
      const alt = `Generated cell, class ${name}, guidance scale ${w}${how}`;
      this.pictures[i].told(name, alt);
    });
  }

  // The cells at `w`, and then those at the other stops, so that one can drag
  async compute(ask, w, seed) {
    const { scales } = this.facts;
    this.tell(', forming');
    // Meanwhile one may have gone back to a scale whose cells are there
    const draw = (x0) => {
      if (scales[this.at] === w) this.pictures.forEach((p, i) => p.show(x0, i));
    };
    draw(await this.walk(ask, w, seed, (step, n, x0) => {
      draw(x0);
      this.status.textContent = `Call ${step + 1} of ${n}`;
    }));
    this.tell('');
    const missing = () => scales.filter((v) => !this.done.has(`${seed} ${v}`));
    const gap = (v) => Math.abs(scales.indexOf(v) - this.at);
    for (let left = missing(); left.length; left = missing()) {
      this.status.textContent = `Noise ${seed}. Scales to come: ${left.join(', ')}.`;
      const [next] = left.sort((a, b) => gap(a) - gap(b));
      await this.walk(ask, next, seed);
    }
    return `Noise ${seed}.`;
  }

  async walk(ask, w, seed, watch = () => {}) {
    const { labels, none, walk, interval } = this.facts;
    const n = labels.length;
    const scale = scaleIn(interval, walk, w);
    const x0Of = guided(ask, labels, Array(n).fill(none), scale);
    const x0 = await this.generate(x0Of, n, walk, (step, xt, guess) =>
      watch(step, walk.t.length, guess));
    this.done.set(`${seed} ${w}`, x0);
    return x0;
  }
}

// Samplers: a cell from few calls beside the one that many calls lead to

const samplers = { ddim: 'DDIM', dpm_solver: 'DPM-Solver++' };
const kinds = Object.keys(samplers);

function distance(a, b) {
  const sum = a.reduce((total, v, i) => total + (v - b[i])**2, 0);
  return Math.sqrt(sum/a.length);
}

class Samplers extends Figure {
  constructor(root, engine) {
    super(root, engine);
    const { names, calls, call, label } = this.facts;
    this.kind = 'dpm_solver';
    this.at = calls.indexOf(call);
    this.label = label;
    this.made = this.picture('');
    this.goal = this.picture('');
    this.bar = this.slider('Network calls:', calls.length - 1, this.at, (i) => {
      this.at = i;
      this.show();
    });
    const words = kinds.map((kind) => samplers[kind]);
    const which = this.choice('Sampler', words, kinds.indexOf(this.kind), (i) => {
      this.kind = kinds[i];
      this.show();
    });
    const whose = this.choice('Class', names, label, (i) => {
      this.label = i;
      this.forget();
    });
    const again = this.another(() => this.forget());
    this.forget();
    this.lay([this.made, this.goal], this.bar.label, which, whose, again);
    this.chart = make('div', { className: 'live-chart' });
    this.box.firstChild.append(this.chart);
    this.plot();
  }

  get isFirst() {
    return this.seed === this.facts.seed && this.label === this.facts.label;
  }

  // Another cell: nothing is known of it yet
  forget() {
    this.found = { ddim: new Map(), dpm_solver: new Map() };
    this.far = { ddim: new Map(), dpm_solver: new Map() };
    this.end = null;
    if (this.isFirst)
      for (const kind of kinds)
        this.facts.errors[kind].forEach((gap, i) =>
          this.far[kind].set(this.facts.calls[i], gap));
    this.show();
  }

  show() {
    const { calls } = this.facts;
    const k = calls[this.at];
    this.bar.tell(String(k));
    const x0 = this.found[this.kind].get(k);
    if (this.isFirst) {
      this.made.tile(this.at, kinds.indexOf(this.kind));
      this.goal.tile(calls.length, 0);
      this.ready();
    } else if (x0) {
      this.made.show(x0);
      this.ready();
    } else this.work.start((ask) => this.compute(ask, k, this.kind));
  }

  ready() {
    this.tell('');
    this.work.stop(this.words());
    this.plot();
  }

  words() {
    const gap = this.far[this.kind].get(this.facts.calls[this.at]);
    const far = gap.toFixed(2);
    return `Noise ${this.seed}. Distance from the cell of many calls: ${far}.`;
  }

  tell(how) {
    const { calls, most, names } = this.facts;
    const k = calls[this.at];
    const counted = `${k} call${k > 1 ? 's' : ''}`;
    const name = names[this.label];
    this.made.told(`${samplers[this.kind]}, ${counted}`,
      `Generated ${name}, ${samplers[this.kind]} with ${counted}${how}`);
    this.goal.told(`${most} calls`, `The cell of the same noise after ${most} calls`);
  }

  async compute(ask, k, kind) {
    const { walks, most } = this.facts;
    const { label, found, far } = this;
    const one = (x, t) => ask(x, t, [label]);
    const x0Of = guided(one, [label], null, () => 1);
    const walk = (n, ddim, picture, words) =>
      this.generate(x0Of, 1, { ...walks[n], ddim }, (step, xt, x0) => {
        picture.show(x0);
        this.status.textContent = `${words}: call ${step + 1} of ${n}`;
      });
    this.tell(', forming');
    this.plot();
    const x0 = await walk(k, kind === 'ddim', this.made, samplers[kind]);
    this.made.show(x0);
    this.end ??= await walk(most, false, this.goal, 'Where many calls lead');
    this.goal.show(this.end);
    found[kind].set(k, x0);
    far[kind].set(k, distance(x0, this.end));
    this.tell('');
    this.plot();
    return this.words();
  }

  // Distance over calls, a point for each walk that was made
  plot() {
    if (!this.chart) return;
    const { calls } = this.facts;
    const top = .4;
    const place = (k, gap) => [
      34 + 210*Math.log(k)/Math.log(calls.at(-1)), 104 - 90*Math.min(gap, top)/top];
    const lines = kinds.map((kind, c) => {
      const known = [...this.far[kind]].sort(([a], [b]) => a - b);
      const places = known.map(([k, gap]) => place(k, gap));
      const isNow = (k) => kind === this.kind && k === calls[this.at];
      const dots = places.map(([cx, cy], i) =>
        draw('circle', { cx, cy, r: isNow(known[i][0]) ? 5 : 2.5 }));
      const name = write(samplers[kind], 250, 18 + 16*c, 'end');
      const line = draw('polyline', { points: points(places) });
      return draw('g', { class: `live-${kind}` }, line, ...dots, name);
    });
    const ticks = calls.filter((k) => [1, 2, 5, 10, 20].includes(k))
      .map((k) => write(k, place(k, 0)[0], 119, 'middle'));
    const marks = [0, .2, .4].map((gap) => write(gap, 28, place(1, gap)[1] + 4, 'end'));
    const axes = draw('path', { class: 'live-axis', d: 'M34 8V104H248' });
    const below = write('network calls', 141, 136, 'middle');
    const beside = write('distance', 40, 18, 'start');
    this.chart.replaceChildren(draw('svg', {
      viewBox: '0 0 256 140', role: 'img',
      'aria-label': 'Distance from the cell of many calls, over the number of calls',
    }, axes, ...ticks, ...marks, below, beside, ...lines));
  }
}

// Schedules: one cell and one noise at the same moment of all chains, or where the
// chains reach the same log-SNR

const highest = 8;
const signed = (v) => `${v < -.05 ? '\u2212' : ''}${Math.abs(v).toFixed(1)}`;

class Schedules extends Figure {
  constructor(root, engine) {
    super(root, engine);
    this.at = 50;
    this.byLevel = false;
    const cell = this.picture('');
    cell.tile(0, 0);
    this.cell = this.pixels(cell.canvas);
    this.pictures = this.facts.names.map((name) => this.picture(name));
    this.bar = this.slider('Along all chains:', 100, this.at, (i) => {
      this.at = i;
      this.show();
    });
    const which = this.choice('The same', ['moment', 'log-SNR'], 0, (i) => {
      this.byLevel = i === 1;
      this.show();
    });
    this.lay(this.pictures, this.bar.label, which, this.another(() => this.show()));
    this.chart = make('div', { className: 'live-chart' });
    this.box.firstChild.append(this.chart);
    this.show();
  }

  get wanted() {
    return highest - 2*highest*this.at/100;
  }

  // Where each chain is: hundredths of its way, and its log-SNR there. All of them
  // pass through every log-SNR from `highest` to its negative
  places() {
    const { at, wanted, byLevel } = this;
    return this.facts.levels.map((levels) => byLevel
      ? [levels.findIndex((v) => v <= wanted), wanted]
      : [at, levels[at]]);
  }

  show() {
    const eps = this.noise();
    const places = this.places();
    const moments = places.map(([k]) => (k/100).toFixed(2));
    places.forEach(([, level], n) => {
      const share = shareOf(level);
      this.pictures[n].show(noised(this.cell, eps, share));
      const percent = `${Math.round(100*share)}% signal`;
      const name = this.facts.names[n];
      const words = this.byLevel ? `t/T = ${moments[n]}` : percent;
      this.pictures[n].told(`${name}: ${words}`,
        `The cell at t/T = ${moments[n]} of the schedule ${name}, ${percent}`);
    });
    const level = `log-SNR = ${signed(this.wanted)}`;
    this.bar.tell(this.byLevel ? level : `t/T = ${(this.at/100).toFixed(2)}`);
    this.status.textContent = this.byLevel
      ? `The same picture in all, reached at t/T = ${moments.join(', ')}.`
      : `Log-SNR there: ${places.map(([, v]) => signed(v)).join(', ')}.`;
    this.plot(places);
  }

  // Log-SNR over the way, with the useful range shaded
  plot(places) {
    const { names, levels } = this.facts;
    const most = 13;
    const place = ([k, level]) => [
      34 + 2.1*k, 57 - 3.8*Math.max(-most, Math.min(most, level))];
    const lines = names.map((name, n) => {
      const [cx, cy] = place(places[n]);
      const line = draw('polyline', { points: points(levels[n].map((v, k) =>
        place([k, v]))) });
      const dot = draw('circle', { cx, cy, r: 4.5 });
      const words = write(name, 250, 16 + 15*n, 'end');
      return draw('g', { class: `live-chain-${n + 1}` }, line, dot, words);
    });
    const marks = [6, 0, -6].map((v) => write(signed(v).replace('.0', ''), 28,
      place([0, v])[1] + 4, 'end'));
    const [, top] = place([0, 6]);
    const [, bottom] = place([0, -6]);
    this.chart.replaceChildren(draw('svg', {
      viewBox: '0 -12 256 140', role: 'img',
      'aria-label': 'Log-SNR over the share of the chain for each schedule, with a ' +
        'point where its picture is; from 6 to -6 there is something to learn',
    },
    draw('rect', { class: 'live-band', x: 34, y: top, width: 210, height: bottom - top }),
    draw('path', { class: 'live-axis', d: 'M34 6V108H248' }),
    ...marks, write('0', 34, 122, 'middle'), write('1', 244, 122, 'middle'),
    write('t/T', 139, 122, 'middle'), write('log-SNR', 34, -1, 'middle'), ...lines));
  }
}

// Estimate: noise a cell, and ask the network what it was

class Estimate extends Figure {
  constructor(root, engine) {
    super(root, engine);
    const { names, ts, t, log_snr: levels } = this.facts;
    this.cell = 0;
    this.t = t;
    this.clean = this.picture('the cell');
    this.noised = this.picture('noised');
    this.guess = this.picture("the network's estimate");
    this.bar = this.slider('Step t:', levels.length - 1, t, (i) => {
      this.t = i;
      this.show();
    });
    const which = this.choice('Cell', names, 0, (i) => {
      this.cell = i;
      this.show();
    });
    const again = this.another(() => this.show());
    this.lay([this.clean, this.noised, this.guess], this.bar.label, which, again);
    this.tell();
    this.clean.tile(0, 0);
    this.noised.tile(ts.indexOf(t), 0);
    this.guess.tile(ts.indexOf(t), 1);
  }

  get share() {
    return shareOf(this.facts.log_snr[this.t]);
  }

  tell() {
    const percent = Math.round(100*this.share);
    const name = this.facts.names[this.cell];
    this.bar.tell(`${this.t}, of the variance ${percent}% is signal`);
    this.clean.told('the cell', `A generated cell, ${name}`);
    this.noised.told('noised', `The cell at step ${this.t}, ${percent}% signal`);
    this.guess.told("the network's estimate",
      `What the network takes the noised cell at step ${this.t} for`);
  }

  show() {
    const { share, t } = this;
    this.clean.tile(0, 2*this.cell);
    const xt = noised(this.pixels(this.clean.canvas), this.noise(), share);
    this.tell();
    this.noised.show(xt);
    this.work.start(async (ask) => {
      this.guess.show(await ask(xt, t, [this.facts.none]));
      return `Noise ${this.seed}.`;
    });
  }
}

// The toy of one number: where a point goes that follows the mean velocity

const toy = { weights: [.7, .2, .1], means: [-.8, .2, .9], sds: [.12, .08, .1] };

// The mean of all cells that could lie behind `y`, at share of noise s
function toyEstimate(y, s) {
  const kinds = toy.means.map((mean, k) => {
    const variance = ((1 - s)*toy.sds[k])**2 + s*s;
    const gap = y - (1 - s)*mean;
    return {
      log: Math.log(toy.weights[k]) - .5*Math.log(variance) - .5*gap*gap/variance,
      x0: mean + (1 - s)*toy.sds[k]**2/variance*gap,
    };
  });
  const top = Math.max(...kinds.map((k) => k.log));
  const shares = kinds.map((k) => Math.exp(k.log - top));
  const sum = shares.reduce((a, b) => a + b);
  return kinds.reduce((total, k, i) => total + k.x0*shares[i]/sum, 0);
}

// Euler's method along the mean velocity, from noise to a cell: places [s, y]
export function toyWalk(y, steps) {
  const path = [[1, y]];
  for (let k = steps; k > 0; k -= 1) {
    const s = k/steps;
    y -= (y - toyEstimate(y, s))/s/steps;
    path.push([(k - 1)/steps, y]);
  }
  return path;
}

const density = (x) => toy.means.reduce((total, mean, k) =>
  total + toy.weights[k]/toy.sds[k]*Math.exp(-.5*((x - mean)/toy.sds[k])**2), 0);

class ToyWalk extends Figure {
  constructor(root, engine) {
    super(root, engine);
    const most = 2.4;
    this.y = 1.1;
    this.steps = 3;
    this.bar = this.slider('Noise ε:', 480, 0, (i) => this.move(i/100 - most));
    this.count = this.slider('Steps:', 19, this.steps - 1, (i) => {
      this.steps = i + 1;
      this.show();
    });
    const viewBox = '0 0 640 300';
    this.plane = draw('svg', { viewBox, class: 'live-plane', role: 'img' });
    const { label } = this.count;
    const bars = make('div', { className: 'live-bar' }, this.bar.label, label);
    this.box.append(this.plane, bars, this.status);
    this.drag(most);
    this.move(this.y);
  }

  // The point follows mouse and finger
  drag(most) {
    const to = (e) => {
      const { top, height } = this.plane.getBoundingClientRect();
      const y = 2.6 - 5.2*((e.clientY - top)/height*300 - 10)/260;
      this.move(Math.max(-most, Math.min(most, y)));
    };
    this.plane.onpointerdown = (e) => {
      this.plane.setPointerCapture(e.pointerId);
      to(e);
    };
    this.plane.onpointermove = (e) => { if (e.buttons) to(e); };
  }

  move(y) {
    this.y = y;
    this.bar.bar.value = Math.round(100*(y + 2.4));
    this.show();
  }

  show() {
    const place = ([s, y]) => [40 + 500*(1 - s), 140 - 50*y];
    const line = (path, kind) =>
      draw('polyline', { class: kind, points: points(path.map(place)) });
    const exact = toyWalk(this.y, 200);
    const mine = toyWalk(this.y, this.steps);
    const [, end] = mine.at(-1);
    const [, goal] = exact.at(-1);
    const dots = mine.map((p, i) => {
      const [cx, cy] = place(p);
      return draw('circle', { class: 'live-point', cx, cy, r: i ? 4 : 9 });
    });
    const bump = Array.from({ length: 261 }, (_, i) => i/50 - 2.6)
      .map((x) => [560 + 12*density(x), 140 - 50*x]);
    this.others ??= Array.from({ length: 25 }, (_, i) => toyWalk(i/5 - 2.4, 100));
    const steps = `${this.steps} step${this.steps > 1 ? 's' : ''}`;
    this.bar.tell(this.y.toFixed(2));
    this.count.tell(String(this.steps));
    this.plane.setAttribute('aria-label',
      'Paths of the flow from noise on the left to cells on the right. ' +
      `From ${this.y.toFixed(2)}, ${steps} of Euler end at ${end.toFixed(2)}`);
    this.plane.replaceChildren(
      draw('path', { class: 'live-axis', d: 'M40 10V270H540V10' }),
      write('noise, s = 1', 40, 290, 'start'), write('cell, s = 0', 540, 290, 'end'),
      write('all cells', 600, 290, 'middle'),
      ...this.others.map((path) => line(path, 'live-other')),
      draw('polyline', { class: 'live-bump', points: points(bump) }),
      line(exact, 'live-exact'), line(mine, 'live-mine'), ...dots);
    const ends = this.steps > 1 ? 'end' : 'ends';
    this.status.textContent = `${steps} ${ends} at ${end.toFixed(2)}, the flow itself at ` +
      `${goal.toFixed(2)}.`;
  }
}

// Where figures stand: on a page of the site, or in a notebook

const figures = {
  guidance: Guidance,
  samplers: Samplers,
  schedules: Schedules,
  estimate: Estimate,
  toy: ToyWalk,
};

export async function mount(root, engine) {
  await root.querySelector('img').decode();
  return new figures[root.dataset.figure](root, engine);
}

// All figures of a page, with one network
export async function mountAll() {
  const href = new URL('live.css', import.meta.url);
  const sheet = make('link', { rel: 'stylesheet', href });
  const styled = new Promise((resolve) => { sheet.onload = resolve; });
  document.head.append(sheet);
  await styled;
  const engine = pageEngine();
  const all = [...document.querySelectorAll('figure.live')];
  await Promise.all(all.map((figure) => mount(figure, engine)));
}

export default {
  render({ model, el }) {
    el.append(document.createRange().createContextualFragment(model.get('html')));
    mount(el.querySelector('figure'), pythonEngine(model));
  },
};
