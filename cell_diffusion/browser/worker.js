// Runs the network beside the page, so that the page stays awake: onnxruntime-web as WebAssembly, and the sampler of diffusion.js
import { evenOut, generate, guided, scaleIn } from './diffusion.js';

let ort, session, info, cancelled = false;
const tell = (type, data = {}) => self.postMessage({ type, ...data });
const here = path => new URL(path, import.meta.url), shown = path => path.includes('://') ? path : `browser/${path}`;

async function bytesOf(path, what, report) {
  const lost = () => { throw Error(`${what} could not be fetched. Is there a connection?`); };
  const response = await fetch(here(path), { cache: 'no-cache' }).catch(lost);
  if (!response.ok) throw Error(`${what} is missing on this site (${shown(path)}, answer ${response.status}).`);
  const parts = [], reader = response.body.getReader();
  for (let part; !(part = await reader.read().catch(lost)).done;) { parts.push(part.value); report(part.value.length); }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// The runtime is packed, a quarter as long. A server may have unpacked it on the way.
async function unpack(bytes) {
  if (bytes[0] !== 0x1f) return bytes;
  if (!self.DecompressionStream) throw Error('This browser is too old to unpack the runtime. A current browser will do.');
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer());
}

async function check(bytes, sha256) {
  if (!self.crypto?.subtle) return;                                              // only over https, or on this machine
  const sum = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  if (Array.from(sum, b => b.toString(16).padStart(2, '0')).join('') !== sha256) throw Error('The network arrived damaged. Please reload the page.');
}

async function load({ about, total }) {
  if (typeof WebAssembly !== 'object') throw Error('This browser has no WebAssembly, or it is switched off, so nothing can be computed here.');
  let done = 0;
  info = about;
  const report = n => tell('loading', { share: Math.min(1, (done += n)/total) });
  const { model, runtime: ortPath } = info.place, beside = model.slice(0, model.lastIndexOf('/') + 1), script = `${ortPath}ort.wasm.bundle.min.mjs`;
  const [runtime, network] = await Promise.all([bytesOf(`${ortPath}ort-wasm-simd-threaded.wasm.gz`, 'The runtime', report).then(unpack), bytesOf(`${beside}${info.file}`, 'The network', report)]);
  await check(network, info.sha256);
  ort = await import(here(script)).catch(() => { throw Error(`The runtime is missing on this site (${shown(script)}).`); });
  Object.assign(ort.env.wasm, { wasmBinary: runtime, numThreads: self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1 });
  session = await ort.InferenceSession.create(network, { executionProviders: ['wasm'] });
  tell('ready', { threads: ort.env.wasm.numThreads });
}

// Asks the network about `n` pictures: `ask(x, t, labels)`. `known` and `mask` are those of one picture, for all; without them all is hidden.
function asker(n, { channels, size, inputs } = info, known = new Float32Array(channels*size*size), mask = new Float32Array(size*size).fill(1)) {
  const floats = (data, c) => new ort.Tensor('float32', data, [n, c, size, size]), ints = data => new ort.Tensor('int32', Int32Array.from(data), [n]);
  const repeat = part => { const all = new Float32Array(n*part.length); for (let i = 0; i < n; i++) all.set(part, i*part.length); return all; };
  const told = inputs.includes('mask') ? { known: floats(repeat(known), channels), mask: floats(repeat(mask), 1) } : {};
  return async (x, t, label) => (await session.run({ x: floats(x, channels), t: ints(new Array(n).fill(t)), ...(inputs.includes('label') && { label: ints(label) }), ...told })).x0.data;
}

// One question: the estimates at timestep `t`, as the network gives them
const answer = async ({ x, t, label }) => tell('done', { x0: await asker(label.length)(x, t, label) });

// The maps of a classifier, of one picture
const classify = async ({ x }) => tell('done', { maps: (await session.run({ x: new ort.Tensor('float32', x, [1, info.channels, info.size, info.size]) })).maps.data });

// One job: noise `x` (n, channels, size, size), `labels` (n numbers, or null), `w`, `steps`; `known` and `mask` of one picture, for all n.
// With `calls` it ends after so many, with a rough answer.
async function run({ x, labels = null, w = 1, steps, calls, known, mask }) {
  const { channels, size, null_class } = info, n = x.length/(channels*size*size), ask = asker(n, info, known, mask);
  const started = performance.now();
  const whole = { distilled: info.guided === false, ...info.walks[steps] }, walk = calls ? beginning(whole, calls) : whole, scale = scaleIn(info.interval, walk, w);
  const x0Of = guided(ask, labels, new Array(n).fill(null_class), scale);
  const x0 = await generate(x0Of, x, info.data_mean ?? [0], size*size, walk, async (step, xt, x0) => {
    tell('step', { step, steps: walk.t.length, xt, x0 });
    await new Promise(resolve => setTimeout(resolve));                           // a moment in which Cancel is heard
    if (cancelled) throw Object.assign(Error('Cancelled.'), { name: 'AbortError' });
  });
  // Of a whole picture; a hole has too few pixels
  const made = info.even_out && (!mask || mask.every(v => v)) ? evenOut(x0, size) : x0;
  tell('done', { x0: made, seconds: (performance.now() - started)/1000 });
}

const beginning = ({ t, signal, noise, ...rest }, n) => ({ t: t.slice(0, n), signal: signal.slice(0, n), noise: noise.slice(0, n), ...rest });

function explain(error) {
  const text = String(error?.message ?? error);
  if (/memory|allocat/i.test(text) || error instanceof RangeError) return 'There was not enough memory. Close other tabs, or ask for fewer cells at a time.';
  if (error instanceof WebAssembly.CompileError) return 'This browser\'s WebAssembly is too old for the runtime (it needs SIMD). A current browser will do.';
  return text;
}

self.onmessage = async ({ data: { type, ...job } }) => {
  if (type === 'cancel') { cancelled = true; return; }
  cancelled = false;
  try { await ({ load, run, classify, ask: answer })[type](job); }
  catch (error) { tell('error', { name: error?.name ?? 'Error', message: globalThis.WebAssembly ? explain(error) : error.message }); }
};
