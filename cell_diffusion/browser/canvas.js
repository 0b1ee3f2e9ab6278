// A picture to paint a hole on, with mouse, finger, pen or keyboard

const ink = new Uint32Array(new Uint8Array([64, 172, 223, 170]).buffer)[0], most = 20;      // most: how many strokes can be undone

export class HoleCanvas {
  // `stage` holds two canvases (picture, paint) and a ring; `changed()` is called after every stroke and key, `edited(over)` where a change of the hole begins or is over
  constructor(stage, brush, changed) {
    [this.picture, this.canvas, this.ring] = ['.cd-picture', '.cd-paint', '.cd-ring'].map(s => stage.querySelector(s));
    Object.assign(this, { stage, changed, brush, edited() {}, erase: false, down: false });
    this.hands();
  }

  show(pixels) {                                                                 // a new picture, with no hole
    const { width: w, height: h } = Object.assign(this, { pixels, past: [], at: [pixels.width/2, pixels.height/2] }).pixels;
    for (const c of [this.picture, this.canvas]) Object.assign(c, { width: w, height: h });
    this.stage.style.width = `min(100%, 30rem, ${(70*w/h).toFixed(1)}vh)`;
    this.canvas.style.imageRendering = w < 200 ? 'pixelated' : 'auto';
    this.picture.getContext('2d').putImageData(pixels, 0, 0);
    this.pen = this.canvas.getContext('2d');
    this.layer = this.pen.createImageData(w, h);
    this.ink = new Uint32Array(this.layer.data.buffer);
    this.changed();
  }

  get hole() { return Uint8Array.from(this.ink, v => v ? 1 : 0); }
  get painted() { return this.ink.reduce((n, v) => n + !!v, 0); }
  get radius() { return Math.max(.5, this.brush()*Math.min(this.pixels.width, this.pixels.height)); }

  remember() { this.past.push(this.hole); if (this.past.length > (this.ink.length > 4e6 ? 3 : most)) this.past.shift(); }

  set(hole) {                                                                    // a whole hole at once
    this.remember();
    this.fill(hole);
  }

  fill(hole) { hole.forEach((v, i) => { this.ink[i] = v ? ink : 0; }); this.pen.putImageData(this.layer, 0, 0); this.changed(); this.edited(true); }
  undo() { if (this.past.length) this.fill(this.past.pop()); }

  dab(x, y, r) {
    const { width: w, height: h } = this.pixels, colour = this.erase ? 0 : ink;
    for (let j = Math.max(0, Math.floor(y - r)); j < Math.min(h, y + r); j++)
      for (let i = Math.max(0, Math.floor(x - r)); i < Math.min(w, x + r); i++)
        if ((i + .5 - x)**2 + (j + .5 - y)**2 <= r*r) this.ink[j*w + i] = colour;
  }

  go(x, y) {                                                                     // to a point, painting on the way if the pen is down
    const r = this.radius, [a, b] = this.at, n = Math.ceil(Math.hypot(x - a, y - b)/Math.max(.5, r/4)) || 1;
    if (this.down) {
      for (let k = 0; k <= n; k++) this.dab(a + (x - a)*k/n, b + (y - b)*k/n, r);
      const left = Math.min(a, x) - r - 1, top = Math.min(b, y) - r - 1;
      this.pen.putImageData(this.layer, 0, 0, left, top, Math.abs(x - a) + 2*r + 2, Math.abs(y - b) + 2*r + 2);
    }
    this.at = [x, y];
    const { width: w, height: h } = this.pixels;
    Object.assign(this.ring.style, { display: 'block', left: `${100*x/w}%`, top: `${100*y/h}%`, width: `${200*r/w}%` });
  }

  press() { if (!this.down) { this.remember(); this.down = true; this.edited(false); } }
  lift() { if (this.down) { this.down = false; this.changed(); this.edited(true); } }

  hands() {
    const c = this.canvas, hide = () => { this.ring.style.display = 'none'; };
    const place = e => { const r = c.getBoundingClientRect(); return [(e.clientX - r.left)/r.width*this.pixels.width, (e.clientY - r.top)/r.height*this.pixels.height]; };
    c.onpointerdown = e => { if (e.button || !e.isPrimary) return; c.setPointerCapture(e.pointerId); this.at = place(e); this.press(); this.go(...this.at); };
    c.onpointermove = e => { if (e.isPrimary) this.go(...place(e)); };
    c.onpointerup = c.onpointercancel = e => { if (e.isPrimary) this.lift(); };
    c.onpointerleave = hide;
    c.onfocus = () => { if (c.matches(':focus-visible')) this.go(...this.at); };
    c.onblur = () => { this.lift(); hide(); };
    c.onkeydown = e => this.key(e);
    c.onkeyup = e => { if (e.key === ' ') this.lift(); };
  }

  key(e) { // arrows move, space paints while it is held, Enter lowers and lifts the pen, Ctrl+Z takes back
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], ' ': [0, 0], Enter: [0, 0] }[e.key];
    if ((e.ctrlKey || e.metaKey) && e.key === 'z') { e.preventDefault(); this.undo(); return; }
    if (!way || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    if (e.key === ' ') this.press();
    if (e.key === 'Enter' && !e.repeat) { if (this.down) this.lift(); else this.press(); }
    const step = e.shiftKey ? 1 : Math.max(1, this.radius/2), inside = (v, top) => Math.min(Math.max(v, 0), top);
    this.go(inside(this.at[0] + step*way[0], this.pixels.width), inside(this.at[1] + step*way[1], this.pixels.height));
    this.changed();
  }
}
