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
    reach();
    addEventListener("resize", reach);
  };
  if (document.readyState !== "loading") start();
  else document.addEventListener("DOMContentLoaded", start);

  // Printing opens what is folded
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main details:not([open])")];
    opened.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));
})();
