// The landing page: cells that form out of noise, and a game about which ones are real
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

const picture = async (name) => {
  const image = new Image();
  image.src = `img/home/${name}`;
  await image.decode();
  return image;
};

// Draw the tile in a column and a row of a sheet
const draw = (canvas, sheet, size, column, row, x = 0, y = 0) => {
  const at = [column*size, row*size, size, size];
  canvas.getContext("2d").drawImage(sheet, ...at, x, y, size, size);
};

// Four cells out of one noise

async function form(says) {
  const box = document.querySelector("#forming");
  const canvas = box.querySelector("canvas");
  const bar = box.querySelector("[name=frame]");
  const play = box.querySelector("[name=play]");
  const { size, signal, forming } = says;
  const sheet = await picture("forming.webp");
  const last = signal.length - 1;
  const side = 2*size + 4;
  canvas.width = canvas.height = side;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", box.querySelector("img").alt);

  const show = (frame) => {
    forming.forEach((_, i) => {
      const [x, y] = [(i % 2)*(size + 4), Math.floor(i/2)*(size + 4)];
      draw(canvas, sheet, size, i, frame, x, y);
    });
    bar.value = frame;
    const share = `${Math.round(100*signal[frame])}% signal`;
    box.querySelector("output").textContent = share;
    bar.setAttribute("aria-valuetext", share);
  };

  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  const start = () => {
    let frame = Number(bar.value) >= last ? 0 : Number(bar.value);
    play.textContent = "Stop";
    show(frame);
    timer = setInterval(() => {
      frame += 1;
      show(frame);
      if (frame >= last) stop();
    }, 220);
  };
  play.onclick = () => (timer ? stop() : start());
  bar.oninput = () => {
    stop();
    show(Number(bar.value));
  };

  bar.max = last;
  show(still ? last : 0);
  box.querySelector("img").hidden = true;
  canvas.hidden = false;
  box.querySelector(".forming-bar").hidden = false;
  if (still) return;
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((e) => e.isIntersecting)) return;
    seen.disconnect();
    start();
  }, { threshold: .4 });
  seen.observe(canvas);
}

// Which of these eight are real?

// Wilson's 95% interval of a share
export function wilson(hits, n) {
  const z = 1.959964;
  const middle = (hits + z*z/2)/(n + z*z);
  const half = z/(n + z*z)*Math.sqrt(hits*(n - hits)/n + z*z/4);
  return [middle - half, middle + half];
}

const shuffled = (list) => {
  const out = [...list];
  for (let i = out.length - 1; i > 0; i -= 1) {
    const j = Math.floor(Math.random()*(i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
};

const percent = (share) => `${Math.round(100*share)}%`;

class Game {
  constructor(says, sheet) {
    this.box = document.querySelector("#game");
    this.says = says;
    this.sheet = sheet;
    this.button = this.box.querySelector("[name=check]");
    this.button.onclick = () => (this.over ? this.deal() : this.check());
    this.hits = 0;
    this.picks = 0;
    this.todo = [];
    this.deal();
  }

  // Pairs of rounds in which each class is real once and generated once, so that no
  // cell comes twice and a class tells nothing
  rounds() {
    const { each, classes } = this.says;
    const cells = classes.map(() => [
      shuffled([...Array(each).keys()]), shuffled([...Array(each).keys()])]);
    const out = [];
    for (let k = 0; k < each; k += 1) {
      const real = new Set(shuffled(classes.keys()).slice(0, classes.length/2));
      for (const turn of [true, false])
        out.push(classes.map((name, c) => {
          const isReal = real.has(c) === turn;
          return { name, row: c, isReal, column: cells[c][isReal ? 0 : 1][k] };
        }));
    }
    return out;
  }

  deal() {
    const again = document.activeElement === this.button;
    if (!this.todo.length) this.todo = this.rounds();
    this.over = false;
    this.cells = shuffled(this.todo.pop());
    this.chosen = new Set();
    this.box.querySelector(".game-says").textContent = "";
    const buttons = this.cells.map((cell, i) => this.cell(cell, i));
    this.box.querySelector(".game-cells").replaceChildren(...buttons);
    this.label();
    if (again) buttons[0].focus();
  }

  cell(cell, i) {
    const { size, each } = this.says;
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    const words = document.createElement("span");
    canvas.width = canvas.height = size;
    draw(canvas, this.sheet, size, cell.column + (cell.isReal ? 0 : each), cell.row);
    words.textContent = `Cell ${i + 1}`;
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(canvas, words);
    button.onclick = () => this.choose(i, button);
    return button;
  }

  choose(i, button) {
    if (this.over) return;
    const isNew = !this.chosen.has(i);
    if (isNew && this.chosen.size === this.cells.length/2) return;
    if (isNew) this.chosen.add(i);
    else this.chosen.delete(i);
    button.setAttribute("aria-pressed", String(isNew));
    this.label();
  }

  label() {
    const missing = this.cells.length/2 - this.chosen.size;
    const more = this.chosen.size ? `${missing} more` : "four";
    this.button.disabled = missing > 0 && !this.over;
    this.button.textContent = missing ? `Choose ${more}` : "Check";
  }

  check() {
    this.over = true;
    const right = [...this.chosen].filter((i) => this.cells[i].isReal).length;
    this.hits += right;
    this.picks += this.chosen.size;
    this.box.querySelectorAll(".game-cells button").forEach((button, i) => {
      const { isReal, name } = this.cells[i];
      const isRight = isReal === this.chosen.has(i);
      button.classList.add(isRight ? "right" : "wrong");
      button.setAttribute("aria-disabled", "true");
      const kind = name === "ig" ? "immature" : name;
      button.querySelector("span").replaceChildren(
        isReal ? "real" : "generated", document.createElement("br"), kind);
    });
    this.box.querySelector(".game-says").textContent =
      right === 1 ? "1 of your four is real." : `${right} of your four are real.`;
    this.score();
    this.button.textContent = "Eight more";
    this.button.disabled = false;
    this.button.focus();
  }

  score() {
    const others = this.says.others ?? [];
    const rows = [["You", this.hits, this.picks]];
    for (const { who, hits, picks } of others)
      rows.push([who, hits, picks]);
    const bars = rows.map(([who, hits, picks]) => {
      const [low, high] = wilson(hits, picks);
      const words = `${percent(hits/picks)} of ${picks}, interval ${percent(low)} to ` +
        percent(high);
      const range = `left:${100*low}%;width:${100*(high - low)}%`;
      return `<div class="score-row"><span>${who}</span><span class="score-line">` +
        `<i class="score-range" style="${range}"></i>` +
        `<i class="score-dot" style="left:${100*hits/picks}%"></i></span>` +
        `<span>${words}</span></div>`;
    });
    const box = this.box.querySelector(".game-score");
    box.innerHTML = bars.join("") +
      "<p>Real cells among those you chose, with Wilson's 95% interval (it is a little " +
      "wide: four picks of one round depend on each other). Guessing finds 50%, the " +
      `line in the middle. ${others.map(({ how }) => how).join(" ")}</p>`;
    box.hidden = false;
  }
}

if (document.querySelector("#forming")) {
  const says = await (await fetch("img/home/home.json")).json();
  form(says);
  new Game(says, await picture("game.webp"));
}
