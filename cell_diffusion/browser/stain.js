// Finds a stained cell and its nucleus by colour: `optical_density`, `find_cells`, `find_nuclei` and `stained_masks` of the library.
// Pictures are square, `size` × `size`; masks hold a 1 for each pixel of what was found.

const planes = ({ data }) => [0, 1, 2].map(c => Float32Array.from({ length: data.length/4 }, (_, i) => Math.max(1, data[4*i + c])));

function quantile(values, share) {
  const sorted = Float32Array.from(values).sort(), at = share*(sorted.length - 1), k = Math.floor(at);
  return sorted[k] + (at - k)*((sorted[k + 1] ?? sorted[k]) - sorted[k]);
}

// How much light the stains absorb, for red, green and blue
function opticalDensity(pixels) {
  return planes(pixels).map(plane => {
    const lamp = quantile(plane, .97);
    return plane.map(v => -Math.log(Math.min(1, v/lamp)));
  });
}

// A Gaussian blur that reflects at the edges
function blur(plane, size, sigma) {
  const reach = Math.floor(4*sigma + .5), kernel = Float32Array.from({ length: 2*reach + 1 }, (_, k) => Math.exp(-.5*((k - reach)/sigma)**2)), sum = kernel.reduce((a, b) => a + b);
  const inside = i => { i = ((i % (2*size)) + 2*size) % (2*size); return i < size ? i : 2*size - 1 - i; };
  const along = (from, step, row) => from.map((_, i) => {
    const at = Math.floor(i/step)%size, first = i - at*step;
    let v = 0;
    kernel.forEach((w, k) => { v += w*from[first + inside(at + k - reach)*step]; });
    return v/sum;
  });
  return along(along(plane, size), 1);
}

const neighbours = (i, size) => [i >= size ? i - size : -1, i < size*size - size ? i + size : -1, i%size ? i - 1 : -1, (i + 1)%size ? i + 1 : -1];   // -1: beyond the edge
const erode = (mask, size) => mask.map((v, i) => v && neighbours(i, size).every(j => mask[j]) ? 1 : 0);
const dilate = (mask, size) => mask.map((v, i) => v || neighbours(i, size).some(j => mask[j]) ? 1 : 0);
const times = (n, change, mask, size) => { for (let k = 0; k < n; k++) mask = change(mask, size); return mask; };
const open = (mask, size, n = 1) => times(n, dilate, times(n, erode, mask, size), size);

// The number of the connected part that each pixel belongs to, from 1 on, and how many there are
function parts(mask, size) {
  const part = new Int32Array(mask.length);
  let n = 0;
  mask.forEach((v, start) => {
    if (!v || part[start]) return;
    part[start] = ++n;
    for (const todo = [start]; todo.length;) for (const j of neighbours(todo.pop(), size)) if (j >= 0 && mask[j] && !part[j]) { part[j] = n; todo.push(j); }
  });
  return { part, n };
}

// The connected part with most of its area near the middle
function centralPart(mask, size) {
  const { part, n } = parts(mask, size), weight = new Float64Array(n + 1), at = i => (i - (size - 1)/2)/size;
  part.forEach((p, i) => { if (p) weight[p] += Math.exp(-12*(at(Math.floor(i/size))**2 + at(i%size)**2)); });
  const best = weight.indexOf(Math.max(...weight));
  return part.map(p => p && p === best ? 1 : 0);
}

// What is enclosed belongs to it
function fillHoles(mask, size) {
  const { part, n } = parts(mask.map(v => 1 - v), size), outside = new Uint8Array(n + 1);
  part.forEach((p, i) => { if (neighbours(i, size).includes(-1)) outside[p] = 1; });
  return mask.map((v, i) => v || !outside[part[i]] ? 1 : 0);
}

// Otsu's threshold: the split of a histogram that separates two groups best
function otsu(values, bins = 64) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low === high) return low;
  const counts = new Float64Array(bins), middle = k => low + (k + .5)*(high - low)/bins;
  for (const v of values) counts[Math.min(bins - 1, Math.floor((v - low)/(high - low)*bins))]++;
  const all = counts.reduce((sum, c, k) => sum + c*middle(k), 0);
  let best = -1, at = 0, below = 0, sum = 0;
  for (let k = 0; k < bins - 1; k++) {
    below += counts[k]; sum += counts[k]*middle(k);
    const above = values.length - below, between = below*above*(sum/below - (all - sum)/above)**2;
    if (between > best) { best = between; at = k; }
  }
  return middle(at);
}

function findCell([, green, blue], size) {
  const stain = green.map((g, i) => Math.min(1, Math.max(-.2, Math.max((g - 1.57*blue[i])/.12, (g - .5)/.2 + .5))));
  const mask = Uint8Array.from(blur(stain, size, 1.2*size/64), v => v > .5 ? 1 : 0);
  return fillHoles(centralPart(open(mask, size, Math.max(1, Math.round(size/32))), size), size);
}

function findNucleus([red], cell, size) {
  const smooth = blur(red, size, .7*size/64), threshold = Math.min(.85, Math.max(.5, otsu(smooth.filter((_, i) => cell[i]))));
  return open(cell.map((v, i) => v && smooth[i] > threshold ? 1 : 0), size);
}

// Cell and nucleus of a square picture, each with a narrow rim; `share` is how wide the cell is, without its rim. Nowhere 1 where nothing was found.
export function stainedMasks(pixels) {
  const size = pixels.width, density = opticalDensity(pixels), cell = findCell(density, size), found = cell.includes(1);
  const nucleus = found ? findNucleus(density, cell, size) : cell, rim = Math.max(1, Math.round(.03*size)), grow = mask => times(rim, dilate, mask, size);
  return { cell: grow(cell), nucleus: grow(nucleus), share: Math.sqrt(4/Math.PI*cell.reduce((a, b) => a + b))/size };
}
