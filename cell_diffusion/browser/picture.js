// From a picture of any size and shape to what the network sees, and back into the hole: `inpaint` of the library.

export const clip = (v, low, high) => Math.min(Math.max(v, low), high);

// Where each pixel of the window lies in the picture; beyond it the edge is repeated
function* positions({ top, left, side }, width, height) {
  for (let y = 0, i = 0; y < side; y++) for (let x = 0; x < side; x++, i++)
    yield [i, clip(top + y, 0, height - 1)*width + clip(left + x, 0, width - 1)];
}

// Weights of a bicubic resize with antialiasing, the same as Pillow's
function weights(from, to) {
  const cubic = v => (v = Math.abs(v)) < 1 ? (1.5*v - 2.5)*v*v + 1 : v < 2 ? ((-.5*v + 2.5)*v - 4)*v + 2 : 0;
  const scale = from/to, stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + .5)*scale, first = Math.max(0, Math.trunc(centre - 2*stretch + .5)), end = Math.min(from, Math.trunc(centre + 2*stretch + .5));
    const w = Array.from({ length: end - first }, (_, k) => cubic((k + first - centre + .5)/stretch)), sum = w.reduce((a, b) => a + b, 0);
    return { first, w: w.map(v => v/sum) };
  });
}

// One channel, `from` × `from` to `to` × `to`
export function resize(plane, from, to) {
  if (from === to) return plane.slice();
  const table = weights(from, to), wide = new Float32Array(from*to), out = new Float32Array(to*to);
  for (let y = 0; y < from; y++) table.forEach(({ first, w }, x) => { let v = 0; w.forEach((k, j) => { v += k*plane[y*from + first + j]; }); wide[y*to + x] = v; });
  table.forEach(({ first, w }, y) => { for (let x = 0; x < to; x++) { let v = 0; w.forEach((k, j) => { v += k*wide[(first + j)*to + x]; }); out[y*to + x] = v; } });
  return out;
}

// A square of a picture of any size and shape, at the scale of training; beyond its edges they are repeated
export function cutOut({ data, width, height }, window, size) {
  const planes = [0, 1, 2].map(() => new Float32Array(window.side**2)), out = new ImageData(size, size);
  for (const [i, j] of positions(window, width, height)) planes.forEach((p, c) => { p[i] = data[4*j + c]; });
  planes.map(p => resize(p, window.side, size)).forEach((p, c) => p.forEach((v, i) => { out.data[4*i + c] = Math.round(clip(v, 0, 255)); }));
  out.data.forEach((_, i) => { if (i%4 === 3) out.data[i] = 255; });
  return out;
}

// A hole in such a square, as one of the whole picture
export function enlarge(hole, size, { top, left, side }, width, height) {
  const at = (v, first) => Math.floor((v - first + .5)*size/side), inside = v => v >= 0 && v < size;
  return Uint8Array.from({ length: width*height }, (_, i) => {
    const y = at(Math.floor(i/width), top), x = at(i%width, left);
    return inside(y) && inside(x) ? hole[y*size + x] : 0;
  });
}

// What the network sees: `known` (channels, size, size), the colours or their mean, in -1..1 and `mask` (1, size, size)
export function seen({ data }, hole, channels = 3) {
  const area = hole.length, known = new Float32Array(channels*area);
  for (let i = 0; i < area; i++) for (let c = 0; c < channels; c++)
    known[c*area + i] = (channels === 3 ? data[4*i + c] : (data[4*i] + data[4*i + 1] + data[4*i + 2])/3)/127.5 - 1;
  return { known, mask: Float32Array.from(hole) };
}

// The picture with a fill (channels, size, size) in its hole; every other pixel is a copy. A grey picture stays grey.
export function putBack({ data, width, height }, hole, window, fill, size, channels = 3) {
  const { top, left, side } = window, out = new Uint8ClampedArray(data), planes = [0, 1, 2].map(c => channels === 3 ? c : 0).map(c => resize(fill.subarray(c*size*size, (c + 1)*size*size), size, side));
  const grey = hole.includes(0) && hole.every((h, i) => h || (data[4*i] === data[4*i + 1] && data[4*i] === data[4*i + 2]));
  hole.forEach((h, i) => {
    if (!h) return;
    const k = (Math.floor(i/width) - top)*side + i%width - left, rgb = planes.map(p => Math.round(clip((p[k] + 1)*127.5, 0, 255)));
    for (let c = 0; c < 3; c++) out[4*i + c] = grey ? (rgb[0] + rgb[1] + rgb[2])/3 : rgb[c];
  });
  return new ImageData(out, width, height);
}

// A picture (channels, size, size) in -1..1, the `n`-th of a batch, as pixels: three channels as colours, of others the first
export function toPixels(x, size, n = 0, channels = 3) {
  const area = size*size, out = new ImageData(size, size);
  for (let i = 0; i < area; i++) { for (let c = 0; c < 3; c++) out.data[4*i + c] = (x[(channels*n + (channels === 3 ? c : 0))*area + i] + 1)*127.5; out.data[4*i + 3] = 255; }
  return out;
}

const beside = (i, w, n) => [i%w ? i - 1 : -1, (i + 1)%w ? i + 1 : -1, i - w, i + w].filter(j => j >= 0 && j < n);

// How much neighbours usually differ where everything is known, with some room
function usualStep({ data, width: w }, hole) {
  const steps = [];
  hole.forEach((h, i) => { if (!h && (i + 1)%w && !hole[i + 1]) for (let c = 0; c < 3; c++) steps.push(Math.abs(data[4*i + c] - data[4*i + 4 + c])); });
  return 1.5*(steps.sort((a, b) => a - b)[Math.floor(steps.length/2)] ?? 0);
}

// A filled picture without a seam: the pixels along the edge of the hole come as close to the known ones beside them as neighbours usually are, and within `reach` pixels this fades.
export function softenSeam(filled, hole, reach = 2.5) {
  const { data, width, height } = filled, n = hole.length, out = new ImageData(new Uint8ClampedArray(data), width, height), room = usualStep(filled, hole);
  const inside = [], shift = new Float32Array(3*n), fixed = new Uint8Array(n);
  hole.forEach((h, i) => {
    if (!h) return;
    const near = beside(i, width, n), known = near.filter(j => !hole[j]);
    inside.push([i, near.filter(j => hole[j])]);
    if (!known.length) return;
    const step = [0, 1, 2].map(c => known.reduce((sum, j) => sum + data[4*j + c], 0)/known.length - data[4*i + c]);
    const size = Math.hypot(...step)/Math.sqrt(3), share = size > room ? 1 - room/size : 0;
    fixed[i] = 1;
    step.forEach((v, c) => { shift[3*i + c] = share*v; });
  });
  for (let k = 0; k < 40; k++) for (const [i, near] of inside) if (!fixed[i]) for (let c = 0; c < 3; c++)
    shift[3*i + c] = near.reduce((sum, j) => sum + shift[3*j + c], 0)/(near.length + 1/reach**2);
  for (const [i] of inside) for (let c = 0; c < 3; c++) out.data[4*i + c] = Math.round(data[4*i + c] + shift[3*i + c]);
  return out;
}
