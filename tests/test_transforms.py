"The eight positions of a square picture, in one definition, and changes built on them"
import hashlib
import numpy as np, pytest, torch
from PIL import Image
from cell_diffusion.core import generator
from cell_diffusion.transforms import (
    affine_jitter, crop_resize, dihedral, dihedral_views, draw_crops, eight_moves,
    random_crop, random_dihedral)

def short(x): return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:16]

def cells():
    "Pictures of random pixels, always the same"
    return torch.randint(0, 256, (64, 3, 12, 12), generator=generator(5)).byte()

def test_views_are_quarter_turns_then_those_of_the_mirror_image():
    x = cells()
    turned = [o.rot90(k, (2, 3)) for o in (x, x.flip(-1)) for k in range(4)]
    assert torch.equal(dihedral_views(x), torch.stack(turned))
    assert dihedral_views(x).is_contiguous()

def test_the_eight_are_a_group():
    x = cells()[:1]
    views = {short(v) for v in dihedral_views(x)}
    assert len(views) == 8
    for view in dihedral_views(x):
        assert {short(v) for v in dihedral_views(view)} == views

def test_random_positions_are_the_eight_equally_often():
    x = torch.arange(2*25.).reshape(1, 2, 5, 5)
    kinds, counts = random_dihedral(x.repeat(800, 1, 1, 1), generator(0)).unique(
        dim=0, return_counts=True)
    assert {short(k) for k in kinds} == {short(v[0]) for v in dihedral_views(x)}
    assert counts.min() > 60

def test_moves_apply_to_each_image():
    x = cells()[:8]
    moved = dihedral(x, eight_moves.T.reshape(3, 8, 1, 1, 1))
    for k in range(8):
        assert torch.equal(moved[k], dihedral_views(x[k:k + 1])[k, 0])

@pytest.mark.parametrize('change, expected', [
    (lambda: random_dihedral(cells(), generator(7)), 'f015326ea925cb38'),
    (lambda: dihedral_views(cells()), 'f6fd32e00ed86bce')])
def test_results_never_change(change, expected):
    "Published training runs depend on these pixels for these random numbers"
    assert short(change()) == expected

def test_random_positions_use_three_coins_a_cell():
    g = generator(7)
    h = generator(7)
    random_dihedral(cells(), g)
    torch.randint(0, 2, (3, 64, 1, 1, 1), generator=h)
    assert torch.rand(1, generator=g) == torch.rand(1, generator=h)

def test_jitter():
    x = cells().float()/127.5 - 1
    out = affine_jitter(x, generator(3))
    assert out.shape == x.shape and out.abs().max() <= 1
    assert torch.equal(out, affine_jitter(x, generator(3)))
    flat = affine_jitter(torch.zeros(8, 1, 12, 12), generator(0))
    assert flat.abs().max() <= .02, 'a turn leaves a plain picture plain'

# ---- random crops

def pillow_crops(x, boxes, size):
    "The same crops, one after the other"
    crops = []
    for image, box in zip(x, (boxes*x.shape[-1]).T.tolist()):
        left, top, side = box
        im = Image.fromarray(image.permute(1, 2, 0).numpy())
        box = left, top, left + side, top + side
        small = np.array(im.resize((size, size), Image.BICUBIC, box))
        crops.append(torch.from_numpy(small).permute(2, 0, 1))
    return torch.stack(crops)

@pytest.mark.parametrize('scales', [(.386, 1.), (.386, .386), (1., 1.), (.1, .2)])
@pytest.mark.parametrize('size', [8, 12, 20])
def test_crops_are_those_of_pillow(scales, size):
    x = cells()
    boxes = draw_crops(len(x), scales, generator(1))
    off = (crop_resize(x, boxes, size).int() - pillow_crops(x, boxes, size)).abs()
    assert off.max() <= 2 and off.float().mean() < .01

def test_crops_lie_within_the_picture_and_around_its_middle():
    low, high = .386, 1.
    left, top, side = draw_crops(4000, (low, high), generator(0))
    assert low <= side.min() < .39 and .99 < side.max() <= high
    share_of_small = (side < (low*high)**.5).float().mean()
    assert .47 < share_of_small < .53, 'sides are uniform in their logarithm'
    for start in (left, top):
        assert start.min() >= 0 and (start + side).max() <= 1 + 1e-6
        middle = (.5 - start)/side
        assert .25 - 1e-5 <= middle.min() and middle.max() <= .75 + 1e-5
        small = middle[side < .45]
        assert small.min() < .27 and small.max() > .73, 'off the centre'
    places = draw_crops(4000, (.5, .5), generator(0))[:2]
    assert abs(torch.corrcoef(places)[0, 1]) < .1

def test_the_crop_of_everything_is_the_picture():
    x = cells()
    assert torch.equal(random_crop(x, 12, (1., 1.), generator(0)), x)
    assert len(random_crop(x[:0], 12, (.4, 1.), generator(0))) == 0
