// Two jobs of the builder that npm's packages do: node node_tools.mjs formulas|styles < input.json > output.json
import { readFileSync } from "node:fs";

// [{tex, display}] -> [{html} or {error}]: each formula as KaTeX draws it, with MathML for screen readers
async function formulas(items) {
  const katex = (await import("katex")).default;
  return items.map(({ tex, display }) => {
    try { return { html: katex.renderToString(tex, { displayMode: display, throwOnError: true, strict: "ignore" }) }; }
    catch (e) { return { error: e.message }; }
  });
}

// {css: [paths], content: [globs]} -> {path: css}: style sheets without the rules that no page uses
async function styles({ css, content }) {
  const { PurgeCSS } = await import("purgecss");
  const dynamic = [/^show/, /active/, /collaps/, /^data-/, /quarto/, /sd-/, /search/, /code-copy/, /anchor/];
  const purged = await new PurgeCSS().purge({ css, content, variables: false, keyframes: false, safelist: { standard: dynamic } });
  return Object.fromEntries(purged.map((p) => [p.file, p.css]));
}

const jobs = { formulas, styles };
process.stdout.write(JSON.stringify(await jobs[process.argv[2]](JSON.parse(readFileSync(0, "utf8")))));
