// The frame "how large is your cell?": which square of a picture the network sees, so that the cell is as large as those it learned from
import { clip, cutOut } from './picture.js';
import { stainedMasks } from './stain.js';

const median = values => [...values].sort((a, b) => a - b)[Math.floor(values.length/2)];

const usual = ({ cell_sizes: sizes }) => sizes?.length ? median(sizes) : .65;    // how wide cells are, as a share of the square

const square = (cx, cy, side) => ({ cx, cy, side });
export const windowOf = ({ cx, cy, side }) => ({ left: Math.round(cx - side/2), top: Math.round(cy - side/2), side: Math.round(side) });

// A stained cell in the frame, with its middle and its width in pixels of the picture, or null
function measured(pixels, frame, size) {
  const window = windowOf(frame), { cell, share } = stainedMasks(cutOut(pixels, window, size));
  if (!share) return null;
  let n = 0, x = 0, y = 0;
  cell.forEach((v, i) => { if (v) { n++; x += i%size + .5; y += Math.floor(i/size) + .5; } });
  return { cx: window.left + x/n*window.side/size, cy: window.top + y/n*window.side/size, wide: share*window.side, share };
}

// The frame to begin with: the middle of the field, as training crops it, unless the cell found there is as wide as those of no class; then what fits it
export function firstFrame(pixels, size, about) {
  const { width: w, height: h } = pixels, field = Math.min(w, h), whole = square(w/2, h/2, field), sizes = about.cell_sizes;
  const middle = square(w/2, h/2, field >= 350 && field <= 380 ? 200 : Math.round(field*200/360));
  if (about.channels !== 3 || !sizes) return whole;                   // nothing is known of how large such cells are
  for (const frame of [middle, whole]) {
    const found = measured(pixels, frame, size);
    if (!found) continue;
    if (sizes.some(s => Math.abs(Math.log(found.share/s)) < .12)) return frame;
    return square(found.cx, found.cy, found.wide/usual(about));
  }
  return middle;
}

// A frame over a picture, moved with pointer or keys; its size comes from a slider. `changed()` is called when a move is over.
export class Frame {
  constructor(root, about, changed) {
    [this.canvas, this.stage, this.box, this.ring] = ['.cd-whole canvas', '.cd-whole', '.cd-square', '.cd-square i'].map(s => root.querySelector(s));
    [this.slider, this.output] = ['[name=width]', '[name=wide]'].map(s => root.querySelector(s));
    Object.assign(this, { size: about.size, about, changed, share: usual(about) });
    this.ring.style.inset = `${50*(1 - this.share)}%`;
    this.slider.oninput = () => { this.frame.side = this.slider.valueAsNumber/this.share; this.draw(); };
    this.slider.onchange = () => this.changed();
    this.hands();
  }

  show(pixels) {
    const { width: w, height: h } = this.pixels = pixels;
    Object.assign(this.canvas, { width: w, height: h });
    this.canvas.getContext('2d').putImageData(pixels, 0, 0);
    this.stage.style.width = `min(100%, ${w < h ? (18*w/h).toFixed(1) : 18}rem)`;
    this.frame = firstFrame(pixels, this.size, this.about);
    const wide = this.frame.side*this.share;
    Object.assign(this.slider, { min: Math.max(2, Math.min(Math.floor(wide/2), Math.round(Math.min(w, h)/20))), max: Math.ceil(Math.max(w, h, 2*wide)), step: Math.max(1, Math.round(Math.min(w, h)/200)), value: wide });
    this.draw();
  }

  get window() { return windowOf(this.frame); }
  cut() { return cutOut(this.pixels, this.window, this.size); }

  draw() {
    const { frame: { cx, cy, side }, pixels: { width: w, height: h } } = this, wide = Math.round(side*this.share);
    Object.assign(this.box.style, { left: `${100*(cx - side/2)/w}%`, top: `${100*(cy - side/2)/h}%`, width: `${100*side/w}%`, height: `${100*side/h}%` });
    this.output.value = `${wide} pixels`;
    this.slider.setAttribute('aria-valuetext', `${wide} pixels of ${Math.min(w, h)}`);
  }

  move(cx, cy) {                                                                 // its middle stays within the picture
    Object.assign(this.frame, { cx: clip(cx, 0, this.pixels.width), cy: clip(cy, 0, this.pixels.height) });
    this.draw();
  }

  hands() {
    const { stage, box } = this, place = e => { const r = stage.getBoundingClientRect(); return [(e.clientX - r.left)/r.width*this.pixels.width, (e.clientY - r.top)/r.height*this.pixels.height]; };
    let grip = null;
    stage.onpointerdown = e => {
      if (e.button || !e.isPrimary) return;
      const [x, y] = place(e), { cx, cy, side } = this.frame, inside = Math.max(Math.abs(x - cx), Math.abs(y - cy)) < side/2;
      grip = inside ? [cx - x, cy - y] : [0, 0];                                 // a press beside the frame brings it there
      stage.setPointerCapture(e.pointerId); this.move(x + grip[0], y + grip[1]);
    };
    stage.onpointermove = e => { if (grip && e.isPrimary) { const [x, y] = place(e); this.move(x + grip[0], y + grip[1]); } };
    stage.onpointerup = stage.onpointercancel = e => { if (grip && e.isPrimary) { grip = null; this.changed(); } };
    box.onkeydown = e => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key], turn = { '+': 1, '=': 1, '-': -1 }[e.key];
      if ((!way && !turn) || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      const step = e.shiftKey ? 1 : Math.max(1, this.frame.side/32);
      if (way) this.move(this.frame.cx + step*way[0], this.frame.cy + step*way[1]);
      else { this.slider.value = this.slider.valueAsNumber + turn*Math.max(+this.slider.step, this.frame.side/32); this.slider.oninput(); }   // + is typed with shift on many keyboards
    };
    box.onkeyup = e => { if (/^Arrow|^[+=-]$/.test(e.key)) this.changed(); };
  }
}
