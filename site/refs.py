"Numbers for figures, equations, tables and sections, and references to them by their labels, as Quarto writes them"
import re

names = dict(fig='Figure', eq='Equation', tbl='Table', sec='Section')
_code = re.compile(r'(^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[`~]*[ \t]*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`))', re.M | re.S)
_equation = re.compile(r'\$\$((?:(?!\$\$).)+)\$\$[ \t]*\{#(eq-[\w-]+)\}', re.S)
_table = re.compile(r'^(:[ \t]+)(.*?)[ \t]*\{#(tbl-[\w-]+)((?:[ \t]+[^}]*)?)\}[ \t]*$', re.M)
_section = re.compile(r'^#+[ \t]+(.*?)[ \t]*\{#(sec-[\w-]+)[^}]*\}[ \t]*$', re.M)
_reference = re.compile(r'\[?(?<![\w@/.\\-])(-?)@((?:fig|eq|tbl|sec)-[\w-]*\w)\]?')

def outside_code(
    text,  # Markdown
    change,  # What to do with each piece that is not code: a function from text to text
)->str:  # The text, with its code blocks and `code` as they were
    "Change Markdown, but no code in it"
    out, at = [], 0
    for m in _code.finditer(text):
        out += [change(text[at:m.start()]), m[0]]
        at = m.end()
    return ''.join(out) + change(text[at:])

def labels_in(text):
    "The labels that a piece of Markdown defines, with the titles of sections, in the order of the text"
    found = []
    def look(part):
        for m in _equation.finditer(part): found.append((m[2], ''))
        for m in _table.finditer(part): found.append((m[3], ''))
        for m in _section.finditer(part): found.append((m[2], m[1]))
        return part
    outside_code(text, look)
    return found

class Labels:
    "The labels of one page, each with the number that its kind has reached; what is wrong with them is kept in `problems`"
    def __init__(self, page): self.page, self.text, self.count, self.problems = page, {}, {}, []

    def add(self,
        label,  # Such as `fig-process-strip`
        title='',  # Of a section, which has no number
    ):
        "Give the next number of its kind to `label`"
        kind = label.split('-')[0]
        if label in self.text: self.problems.append(f'{self.page}: the label {label} stands twice')
        self.count[kind] = self.count.get(kind, 0) + 1
        self.text[label] = f'“{title}”' if kind == 'sec' else str(self.count[kind])

    def name(self, label):
        "How a caption begins, such as `Figure 3`"
        return f"{names[label.split('-')[0]]} {self.text[label]}"

    def _refer(self, m):
        bare, label = m[1], m[2]
        if label not in self.text:
            self.problems.append(f'{self.page}: there is no {label} on this page to refer to')
            return m[0]
        return f'[{self.text[label] if bare else self.name(label)}](#{label}){{.quarto-xref}}'

    def resolve(self,
        text,  # Markdown with labelled equations and tables, and references such as @fig-strip
    )->str:  # The same with numbers, and with links for the references
        "Write numbers and references into Markdown"
        def change(part):
            part = _equation.sub(lambda m: f'\n\n::: {{#{m[2]} .equation}}\n$$\n{m[1].strip()}\n$$\n\n[({self.text[m[2]]})]{{.equation-number}}\n:::\n\n', part)
            part = _table.sub(lambda m: f'{m[1]}{self.name(m[3])}: {m[2]} {{#{m[3]}{m[4]}}}', part)
            return _reference.sub(self._refer, part)
        return outside_code(text, change)
