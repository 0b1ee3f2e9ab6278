"""How large the letters of figures are where the site shows them.

`watch(file)` notes in a file the smallest letters of each figure that is drawn.
"""
import json
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.text import Text

# Pixels of the column of text in a window of 1280, and the least height of letters
page_width = 734
smallest = 9


def is_drawn(text):
    "Whether a reader sees a text: not those of an axis that is off"
    ax = text.axes
    off_axis = ax is not None and not ax.axison and text not in (*ax.texts, ax.title)
    return bool(text.get_visible() and text.get_text().strip() and not off_axis)


def measure(fig):
    "Smallest letters of a figure in pixels on the page, and the text that has them"
    inches = fig.get_tightbbox().width + .2
    shown = min(page_width, inches*fig.dpi)
    sizes = [(t.get_fontsize()/72*shown/inches, t.get_text())
             for t in fig.findobj(Text) if is_drawn(t)]
    return min(sizes, default=(float('inf'), ''))


def watch(file):
    "From now on, append a line for each figure that is drawn to a file"
    draw = FigureCanvasBase.print_figure

    def print_figure(canvas, *args, **kwargs):
        dpi = canvas.figure.dpi
        result = draw(canvas, *args, **kwargs)
        canvas.figure.dpi = dpi
        pixels, text = measure(canvas.figure)
        with Path(file).open('a') as f:
            f.write(json.dumps([round(pixels, 2), text]) + '\n')
        return result
    FigureCanvasBase.print_figure = print_figure
