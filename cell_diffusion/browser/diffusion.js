// The sampler of the library in JavaScript. Pure functions on Float32Array: no page, no network. See web.ipynb.

// Normal noise from a seed: the generator mulberry32 (a counter and two rounds of mixing), then Box and Muller's transform.
// `browser_noise` in cell_diffusion.web gives the same numbers.
export function noise(seed, length) {
  const uniform = () => {
    seed = (seed + 0x6D2B79F5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0)/2**32;
  };
  const z = new Float32Array(length + 1);
  for (let i = 0; i < length; i += 2) {
    const r = Math.sqrt(-2*Math.log(1 - uniform())), angle = 2*Math.PI*uniform();
    z[i] = r*Math.cos(angle);
    z[i + 1] = r*Math.sin(angle);
  }
  return z.subarray(0, length);
}

// Between the noise of a seed (share 0) and that of the next (share 1): on a quarter of a circle it stays normal
export function noiseBetween(seed, share, length) {
  const angle = share*Math.PI/2, next = noise(seed + 1, length);
  return noise(seed, length).map((v, i) => Math.cos(angle)*v + Math.sin(angle)*next[i]);
}

// The guidance scale at the timesteps of a walk: 1 outside of an interval of log-SNRs
export const scaleIn = (interval, { t, signal, noise }, w) => at => {
  const i = t.indexOf(at), logSnr = 2*Math.log(signal[i]/noise[i]);
  return !interval || (interval[0] <= logSnr && logSnr <= interval[1]) ? w : 1;
};

// One estimate of the clean picture: unconditional + w (conditional - unconditional), clipped to -1..1; w is `scale(t)`
export function guided(ask, label, none, scale) {
  const clip = v => Math.min(1, Math.max(-1, v));
  return async (x, t) => {
    const w = scale(t);
    if (label === null || w === 0) return (await ask(x, t, none)).map(clip);
    const asked = await ask(x, t, label);
    if (w === 1) return asked.map(clip);
    const free = await ask(x, t, none);
    return asked.map((v, i) => clip(free[i] + w*(v - free[i])));
  };
}

// DPM-Solver++(2M): each step extrapolates from the last two estimates of x0; `ddim` takes the last one as it is
export async function sample(x0Of, x, { t, signal, noise, ddim }, watch = () => {}) {
  const a = [...signal, 1];
  const s = [...noise, 0];
  const log = v => Math.log(Math.max(v, 1e-12));
  const lam = a.map((v, i) => log(v) - log(s[i]));   // half the log-SNR
  let x0, before, hBefore;
  for (let i = 0; i < t.length; i++) {
    x0 = await x0Of(x, t[i]);
    await watch(i, x, x0);
    const h = lam[i + 1] - lam[i];
    const last = i + 1 === t.length;
    const k = h/(2*hBefore);
    const d = before && !last && !ddim ? x0.map((v, j) => v + k*(v - before[j])) : x0;
    const keep = s[i + 1]/s[i];
    const add = -a[i + 1]*Math.expm1(-h);
    x = x.map((v, j) => keep*v + add*d[j]);
    before = x0;
    hBefore = h;
  }
  return x0;
}

// A cell from noise `eps` (`begin_walk` of the library). The network is first asked
// about noise around the mean of the data, of each channel or one for all. What it says
// leaks into the noise of the beginning, and is the answer to the first question.
export async function generate(x0Of, eps, mean, pixels, walk, watch) {
  const { t, signal, noise, distilled } = walk;
  const noisy = x0 => eps.map((v, i) => noise[0]*v + signal[0]*x0(i));
  const x = noisy(i => mean[Math.floor(i/pixels) % mean.length]);
  if (distilled) return sample(x0Of, x, walk, watch);
  const first = await x0Of(x, t[0]);
  const answers = [first];
  const ask = async (xt, at) => answers.pop() ?? x0Of(xt, at);
  return sample(ask, noisy(i => first[i]), walk, watch);
}

// Pictures (n, channels, size, size) without what repeats every two pixels: their four lattices get one mean (`even_out` of the library)
export function evenOut(x, size) {
  const out = new Float32Array(x.length), squares = size*size/4;
  const place = j => 2*(Math.floor(j/size) % 2) + j % 2;
  for (let at = 0; at < x.length; at += size*size) {
    const means = [0, 0, 0, 0];
    for (let j = 0; j < size*size; j++) means[place(j)] += x[at + j]/squares;
    const all = (means[0] + means[1] + means[2] + means[3])/4;
    for (let j = 0; j < size*size; j++) out[at + j] = Math.min(1, Math.max(-1, x[at + j] - means[place(j)] + all));
  }
  return out;
}
