"What the tests share: where things are, and the runner of notebooks"
import sys
from pathlib import Path
root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/'tools')]
