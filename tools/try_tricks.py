"""Small changes to the training, each raced against the recipe as it is

Every trick trains the same network on blood cells for the same seconds of one processor
thread. 1,000 cells, each class equally often, are compared with validation cells by a
classifier whose cells no generator saw. A killed race goes on.

    python tools/try_tricks.py --data path/to/cells --seeds 2 --out runs/tricks
"""
import argparse
from functools import partial
from pathlib import Path

import torch

from cell_diffusion.classifier import reference_classifier
from cell_diffusion.data import cell_dls
from cell_diffusion.metrics import score_model
from cell_diffusion.recipes import held_out
from cell_diffusion.records import Records
from cell_diffusion.training import NoiseCallback, diffusion_learner, fit_for

recipe = dict(config='edm-mid', classes=True, optimizer='muon')


class NearNoise(NoiseCallback):
    "Of four draws the noise that is nearest to the image (arXiv:2406.12303)"
    draws = 4

    def draw_noise(self, x0):
        drawn = [super(NearNoise, self).draw_noise(x0) for _ in range(self.draws)]
        eps = torch.stack(drawn)
        nearest = (eps - x0).flatten(2).square().sum(2).argmin(0)
        return eps[nearest, torch.arange(len(x0), device=x0.device)]


class EvenLevels(NoiseCallback):
    "Noise levels that are spread evenly over each batch (Kingma et al. 2021)"

    def draw_timesteps(self, x0):
        drawn = [super(EvenLevels, self).draw_timesteps(x0) for _ in range(16)]
        many = torch.cat(drawn)
        order = many.sort().values[8::16]
        return order[torch.randperm(len(order), generator=self.rng)]


tricks = {
    'none': {},
    'noise near the image': dict(noise=NearNoise),
    'even noise levels': dict(noise=EvenLevels),
    'wider noise levels': dict(noise_levels=(-.8, 1.3)),
    'fainter noise': dict(noise_levels=(-1.2, 1.)),
    'measured mean and spread': dict(normalize=True),
    'no class withheld': dict(label_dropout=0.),
    'classes equally often': dict(balanced=True),
    'wider network': dict(dim=48),
}


def train(dls, minutes, **settings):
    "Train for seconds of the processor; the network with averaged weights"
    learn = diffusion_learner(dls, **{**recipe, **settings})
    budget = fit_for(learn, minutes, processor=True, progress=False)
    return learn.ema.averaged, budget.steps


def race_trick(args, trick, seed):
    "One run and its score"
    settings = dict(tricks[trick], seed=seed)
    cells = partial(cell_dls, 'pbc', args.data, bs=32, set_aside=.25,
                    balanced=settings.pop('balanced', False))
    dls = cells(size=args.size)
    model, steps = train(dls, args.minutes, **settings)

    scored = cells(size=args.size, balanced=False)
    score = score_model(model, reference_classifier(scored, keep=True),
                        *held_out(scored, 'valid'), 1000, 20, progress=False)
    return dict(trick=trick, seed=seed, steps=steps,
                class_accuracy=score['class_accuracy'][-1]['share'],
                **{name: score['generated'][name]['mean']
                   for name in ('fd', 'precision', 'recall')},
                reference_fd=score['reference']['fd']['mean'])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, help='folder of the blood cells')
    parser.add_argument('--out', type=Path, default=Path('runs/tricks'))
    parser.add_argument('--minutes', type=float, default=3.)
    parser.add_argument('--size', type=int, default=32)
    parser.add_argument('--seeds', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(args.out, dict(minutes=args.minutes, size=args.size))
    table = records.run(partial(race_trick, args),
                        dict(seed=range(args.seeds), trick=list(tricks)))
    table.to_csv(args.out/'tricks.csv', index=False)
    print(table.round(3).to_string(index=False))


if __name__ == '__main__':
    main()
