__version__ = "0.2.0.dev0"

import warnings

# Raised by fastai's import, and nothing that a user can change
warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated')
