// Small things for every page: what scrolls sideways can be reached by keyboard, printing opens what is folded
(() => {
  const reach = () => document.querySelectorAll("main pre, main .sd-table, main .cell-output-display, main .math.display, main figure, main .figure-plain").forEach((box) => {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || (box.scrollHeight > box.clientHeight + 1 && getComputedStyle(box).overflowY === "auto");
    if (scrolls && !box.hasAttribute("tabindex")) box.tabIndex = 0;
  });
  const whenReady = () => { reach(); addEventListener("resize", reach); };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", whenReady) : whenReady();
  let opened = [];
  addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("main details:not([open])")]; opened.forEach((d) => { d.open = true; }); });
  addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));
})();
