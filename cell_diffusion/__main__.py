"The command as a module, for launchers: `torchrun … -m cell_diffusion train …`"
from cell_diffusion.cli import app

app(prog_name='cell-diffusion')
