"Numbers for figures, equations, tables and sections, and references by their labels"
import re

names = dict(fig='Figure', eq='Equation', tbl='Table', sec='Section')

# A fenced block of code, or code in a line
_code = re.compile(
    r'(^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[`~]*[ \t]*$'
    r'|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`))', re.M | re.S)

# What has a label
_equation = re.compile(r'\$\$((?:(?!\$\$).)+)\$\$[ \t]*\{#(eq-[\w-]+)\}', re.S)
_table = re.compile(
    r'^(:[ \t]+)(.*?)[ \t]*\{#(tbl-[\w-]+)((?:[ \t]+[^}]*)?)\}[ \t]*$', re.M)
_section = re.compile(r'^#+[ \t]+(.*?)[ \t]*\{#(sec-[\w-]+)[^}]*\}[ \t]*$', re.M)

# `@fig-strip`, or `-@fig-strip` for the number alone, in brackets or not
_reference = re.compile(r'\[?(?<![\w@/.\\-])(-?)@((?:fig|eq|tbl|sec)-[\w-]*\w)\]?')


def outside_code(
    text,  # Markdown
    change,  # A function from text to text for each piece that is not code
)->str:  # The text, with its code blocks and `code` as they were
    "Change Markdown, but no code in it"
    out = []
    at = 0
    for m in _code.finditer(text):
        out += [change(text[at:m.start()]), m[0]]
        at = m.end()
    return ''.join(out) + change(text[at:])


def labels_in(text):
    "The labels that Markdown defines, each with the title if it is that of a section"
    found = []

    def look(part):
        found.extend((m[2], '') for m in _equation.finditer(part))
        found.extend((m[3], '') for m in _table.finditer(part))
        found.extend((m[2], m[1]) for m in _section.finditer(part))
        return part
    outside_code(text, look)
    return found


class Labels:
    "The labels of one page, with their numbers and with what is wrong with them"
    def __init__(self,
        page,  # The page's name, for messages
    ):
        self.page = page
        self.text = {}      # What a reference to each label says
        self.count = {}     # How many labels of each kind there are
        self.problems = []

    def add(self,
        label,  # Such as `fig-process-strip`
        title='',  # Of a section, which has no number
    ):
        "Give the next number of its kind to `label`"
        kind = label.split('-')[0]
        if label in self.text:
            self.problems.append(f'{self.page}: the label {label} stands twice')
        self.count[kind] = self.count.get(kind, 0) + 1
        self.text[label] = f'“{title}”' if kind == 'sec' else str(self.count[kind])

    def name(self, label):
        "How a caption begins, such as `Figure 3`"
        kind = label.split('-')[0]
        return f'{names[kind]} {self.text[label]}'

    def _refer(self, m):
        number_only, label = m.groups()
        if label not in self.text:
            problem = f'{self.page}: there is no {label} on this page to refer to'
            self.problems.append(problem)
            return m[0]
        words = self.text[label] if number_only else self.name(label)
        return f'[{words}](#{label}){{.quarto-xref}}'

    def _number_equation(self, m):
        formula, label = m.groups()
        number = f'[({self.text[label]})]{{.equation-number}}'
        block = f'$$\n{formula.strip()}\n$$\n\n{number}'
        return f'\n\n::: {{#{label} .equation}}\n{block}\n:::\n\n'

    def _number_table(self, m):
        colon, caption, label, rest = m.groups()
        return f'{colon}{self.name(label)}: {caption} {{#{label}{rest}}}'

    def resolve(self,
        text,  # Markdown with labelled equations and tables, and references to labels
    )->str:  # The same with numbers, and with links for the references
        "Write numbers and references into Markdown"
        def change(part):
            part = _equation.sub(self._number_equation, part)
            part = _table.sub(self._number_table, part)
            return _reference.sub(self._refer, part)
        return outside_code(text, change)
