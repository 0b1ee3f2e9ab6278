// Small things for every page
(() => {
  // What scrolls sideways can be reached by keyboard
  const boxes = [
    "main pre", "main .sd-table", "main .cell-output-display", "main .math.display",
    "main figure", "main .figure-plain",
  ].join(", ");
  const scrolls = (box) => {
    const tall = box.scrollHeight > box.clientHeight + 1;
    const wide = box.scrollWidth > box.clientWidth + 1;
    return wide || (tall && getComputedStyle(box).overflowY === "auto");
  };
  const reach = () => document.querySelectorAll(boxes).forEach((box) => {
    if (scrolls(box) && !box.hasAttribute("tabindex")) box.tabIndex = 0;
  });
  const start = () => {
    figures();
    reach();
    unfold();
    live();
    addEventListener("resize", reach);
  };
  // Figures that compute while they are touched
  const live = async () => {
    if (!document.querySelector("figure.live")) return;
    const { mountAll } = await import("./browser/live.js");
    mountAll();
  };
  // A link into what is folded opens it
  const unfold = () => {
    let target = null;
    try {
      target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    } catch { /* an address with nonsense after its # */ }
    const folds = [];
    for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") folds.push(e);
    folds.forEach((d) => { d.open = true; });
    if (folds.length) target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);

  // A click on a figure, or a key, shows it in all its pixels
  const enlarge = (img) => {
    const box = document.createElement("dialog");
    box.className = "large";
    box.setAttribute("aria-label", "The figure, enlarged");
    const large = new Image();
    large.src = img.src;
    large.alt = img.alt;
    const wide = Math.min(innerWidth - 64, 2*img.width);
    large.style.width = `${Math.max(wide, img.naturalWidth)}px`;
    box.innerHTML = "<form method='dialog'><button>Close</button></form>";
    box.append(large);
    large.onclick = () => box.close();
    box.onclick = (e) => { if (e.target === box) box.close(); };
    box.onclose = () => box.remove();
    document.body.append(box);
    box.showModal();
  };
  const figures = () => {
    document.querySelectorAll("main img.figure-img").forEach((img) => {
      if (img.closest(".frame-slider, button, a")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "enlarge";
      button.title = "Enlarge";
      const shown = img.closest("picture") ?? img;
      shown.replaceWith(button);
      button.append(shown);
      button.onclick = () => enlarge(img);
    });
  };

  // Printing opens what is folded
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main details:not([open])")];
    opened.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));

  // Search: words before code, and the glossary first. It stands in for Fuse, which
  // still answers where no word is found, as for a mistyped one
  const Fuzzy = window.Fuse;
  const count = (text, word) => Math.min(3, text.split(word).length - 1);
  const worth = (e, word) => {
    const title = e.title.toLowerCase().includes(word);
    const section = e.section.toLowerCase();
    const own = section.startsWith(word) ? 3 : Number(section.includes(word));
    const words = 3*count(e.text.toLowerCase(), word);
    const code = Math.min(1, count((e.code ?? "").toLowerCase(), word));
    return 40*own*(e.kind === "word" ? 4 : 1) + 20*title + words + .5*code;
  };
  window.Fuse = class {
    constructor(entries, options) {
      this.entries = entries;
      this.fuzzy = Fuzzy && new Fuzzy(entries, options);
    }

    search(query, options) {
      const words = query.toLowerCase().split(/\s+/).filter(Boolean);
      const scored = this.entries.map((item) => {
        const each = words.map((word) => worth(item, word));
        return { item, score: Math.min(...each) > 0 ? each.reduce((a, b) => a + b) : 0 };
      });
      const hits = scored.filter((h) => h.score > 0).sort((a, b) => b.score - a.score);
      if (!hits.length) return this.fuzzy ? this.fuzzy.search(query, options) : [];
      return hits.slice(0, options.limit).map(({ item }) => {
        const inText = words.some((word) => item.text.toLowerCase().includes(word));
        return { item: inText ? item : { ...item, text: item.code || item.text } };
      });
    }
  };

  if (document.readyState !== "loading") start();
  else document.addEventListener("DOMContentLoaded", start);
})();
