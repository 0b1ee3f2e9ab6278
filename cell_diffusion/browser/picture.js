// From a picture of any size to what the network sees, and back into the hole: `find_window` and `inpaint` of the library.

const clip = (v, low, high) => Math.min(Math.max(v, low), high);

// The square around a hole, which may reach beyond the picture; null where nothing is painted
export function findWindow(hole, width, height) {
  let top = height, bottom = -1, left = width, right = -1;
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) if (hole[i]) {
    top = Math.min(top, y); bottom = y; left = Math.min(left, x); right = Math.max(right, x);
  }
  if (bottom < 0) return null;
  const extent = Math.max(bottom - top, right - left) + 1, short = Math.min(width, height), long = Math.max(width, height);
  const side = Math.max(short <= 256 ? short : 200, Math.min(long, Math.floor(5*extent/4)), extent);
  const place = (first, last, length) => side > length ? Math.floor((length - side)/2) : clip(Math.floor((first + last + 1 - side)/2), 0, length - side);
  return { top: place(top, bottom, height), left: place(left, right, width), side };
}

// Where each pixel of the window lies in the picture; beyond it the edge is repeated
function* positions({ top, left, side }, width, height) {
  for (let y = 0, i = 0; y < side; y++) for (let x = 0; x < side; x++, i++)
    yield [i, clip(top + y, 0, height - 1)*width + clip(left + x, 0, width - 1)];
}

// For each hidden pixel the number of the nearest known one: along the columns first, then along the rows
function nearestKnown(hidden, side) {
  const row = new Int32Array(side*side), far = 4*side;                       // row of the nearest known pixel in the same column
  for (let x = 0; x < side; x++) {
    for (let y = 0, known = -far; y < side; y++) { if (!hidden[y*side + x]) known = y; row[y*side + x] = known; }
    for (let y = side - 1, known = far*2; y >= 0; y--) {
      const i = y*side + x;
      if (!hidden[i]) known = y;
      if (known - y < y - row[i]) row[i] = known;
    }
  }
  return Int32Array.from(hidden, (h, i) => {
    if (!h) return i;
    const y = Math.floor(i/side), x = i%side;
    let best = Infinity, at = i;
    for (let d = 0; d*d < best && d < side; d++) for (const u of [x - d, x + d]) {
      if (u < 0 || u >= side) continue;
      const v = row[y*side + u], distance = d*d + (v - y)**2;
      if (v >= 0 && v < side && distance < best) { best = distance; at = v*side + u; }
    }
    return at;
  });
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

// What the network sees: `known` (channels, size, size), the colours or their mean, in -1..1 and `mask` (1, size, size). What is hidden does not shine through.
export function closeUp({ data, width, height }, hole, window, size, channels = 3) {
  const { side } = window, planes = Array.from({ length: channels }, () => new Float32Array(side*side)), hidden = new Uint8Array(side*side);
  for (const [i, j] of positions(window, width, height)) { hidden[i] = hole[j]; planes.forEach((p, c) => { p[i] = (channels === 3 ? data[4*j + c] : (data[4*j] + data[4*j + 1] + data[4*j + 2])/3)/127.5 - 1; }); }
  const source = hidden.includes(0) ? nearestKnown(hidden, side) : null, known = new Float32Array(channels*size*size), mask = new Float32Array(size*size);
  planes.forEach((p, c) => known.set(resize(source ? p.map((_, i) => p[source[i]]) : p, side, size).map(v => clip(v, -1, 1)), c*size*size));
  for (let y = 0; y < size; y++) for (let x = 0; x < size; x++)                     // a pixel is hidden if any part of it is
    for (let v = Math.floor(y*side/size); v < Math.ceil((y + 1)*side/size); v++)
      for (let u = Math.floor(x*side/size); u < Math.ceil((x + 1)*side/size); u++) if (hidden[v*side + u]) mask[y*size + x] = 1;
  return { known, mask };
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
