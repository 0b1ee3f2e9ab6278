// Two jobs of the builder that npm's packages do:
// node node_tools.mjs formulas|styles < input.json > output.json
import { readFileSync } from "node:fs";

// [{tex, display}] -> [{html} or {error}]: each formula as KaTeX draws it, with MathML
// for screen readers
async function formulas(items) {
  const katex = (await import("katex")).default;
  const draw = ({ tex, display }) => {
    const options = { displayMode: display, throwOnError: true, strict: "ignore" };
    try {
      return { html: katex.renderToString(tex, options) };
    } catch (e) {
      return { error: e.message };
    }
  };
  return items.map(draw);
}

// Classes that only scripts give
const dynamic = [
  /^show/, /active/, /collaps/, /^data-/, /quarto/, /sd-/, /search/, /code-copy/,
  /anchor/,
];

// {css: [paths], content: [globs]} -> {path: css}: style sheets without the rules that
// no page uses
async function styles({ css, content }) {
  const { PurgeCSS } = await import("purgecss");
  const safelist = { standard: dynamic };
  const options = { variables: false, keyframes: false, safelist };
  const purged = await new PurgeCSS().purge({ css, content, ...options });
  return Object.fromEntries(purged.map((p) => [p.file, p.css]));
}

const jobs = { formulas, styles };
const input = JSON.parse(readFileSync(0, "utf8"));
const output = await jobs[process.argv[2]](input);
process.stdout.write(JSON.stringify(output));
