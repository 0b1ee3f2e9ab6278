"""How large the letters of figures are where the site shows them.

`watch(file)` notes in a file the smallest letters of each figure that is shown.
"""
import io
import json
import re
from pathlib import Path

from IPython.core import pylabtools
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.text import Text
from PIL import Image

# Pixels of the column of text in a window of 1280, and the least height of letters
page_width = 734
smallest = 9


def _hidden(fig):
    "Texts of axes that are switched off, but for what stands in them"
    off = [ax for ax in fig.findobj(lambda a: hasattr(a, 'axison')) if not ax.axison]
    axes = [axis for ax in off for axis in (ax.xaxis, ax.yaxis)]
    return {text for axis in axes for text in axis.findobj(Text)}


def _points(text):
    "Size of the smallest letters of a text: an index is 0.7 times as large"
    has_index = re.search(r'\$[^$]*[\^_][^$]*\$', text.get_text().replace(r'\$', ''))
    return text.get_fontsize()*(.7 if has_index else 1)


def measure(fig):
    "The smallest letters of a figure, in pixels on the page, and the text with them"
    hidden = _hidden(fig)
    texts = [t for t in fig.findobj(Text)
             if t.get_visible() and t.get_text().strip() and t not in hidden]

    # Jupyter leaves 0.1 inches of paper around what is drawn
    inches = fig.get_tightbbox().width + .2
    shown = min(page_width, inches*fig.dpi)
    found = [(_points(t)/72*shown/inches, t.get_text()) for t in texts]
    return min(found, default=(float('inf'), ''))


def _no_picture():
    "One empty pixel as a PNG, in place of a figure"
    out = io.BytesIO()
    Image.new('L', (1, 1)).save(out, 'PNG')
    return out.getvalue()


def watch(file):
    """From now on, append a line for each figure that is shown to a file.

    Figures are laid out, and not painted: Jupyter paints each of them twice, a quarter
    of the time of a chapter, and nobody looks at them. What is saved is painted.
    """
    def print_figure(fig, *args, **kwargs):
        if not fig.axes and not fig.lines:
            return None
        fig.draw_without_rendering()
        pixels, text = measure(fig)
        with Path(file).open('a', encoding='utf-8') as f:
            f.write(json.dumps([round(pixels, 1), text]) + '\n')
        return _no_picture()

    pylabtools.print_figure = print_figure
    FigureCanvasBase.draw_idle = lambda canvas, *args, **kwargs: None


def too_small(file):
    "Of the figures that `watch` noted, those with letters that are too small"
    if not Path(file).exists():
        return []
    lines = Path(file).read_text(encoding='utf-8').splitlines()
    return [(pixels, text) for pixels, text in map(json.loads, lines)
            if pixels < smallest]
