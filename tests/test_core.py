"Pixels and model values, pictures of any batch, randomness from a seed"
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from cell_diffusion.core import check_limits, check_memory, check_number, decode
from cell_diffusion.core import default_device, encode, fast_bfloat16, generator
from cell_diffusion.core import limits, mix_seed, old_keywords, show_cells

def test_decode_is_the_inverse_of_encode():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(decode(encode(every)), every)
    assert encode(every)[[0, -1]].tolist() == [-1, 1]

def test_decode_clips():
    assert decode(torch.tensor([-7., 7.])).tolist() == [0, 255]

def test_encode_takes_arrays_and_refuses_floats():
    assert encode(np.zeros((2, 3), np.uint8)).dtype == torch.float32
    with pytest.raises(TypeError, match='uint8'):
        encode(torch.zeros(2))

@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_show_cells_draws_any_number_of_channels(channels):
    fig = show_cells(torch.zeros(2, channels, 8, 8))
    assert len(fig.axes) == 2
    plt.close(fig)

def test_show_cells_takes_arrays_and_titles():
    fig = show_cells(np.zeros((9, 3, 8, 8), np.uint8), titles=range(9), ncols=4)
    assert [ax.get_title() for ax in fig.axes][:9] == list('012345678')
    assert len(fig.axes) == 12
    plt.close(fig)

def test_show_cells_draws_images_without_a_title_too():
    fig = show_cells(torch.zeros(4, 1, 8, 8), titles=['a', 'b'], ncols=2)
    assert [ax.get_title() for ax in fig.axes] == ['a', 'b', '', '']
    assert all(len(ax.images) == 1 for ax in fig.axes)
    plt.close(fig)

def test_show_cells_makes_room_for_titles():
    def height(titles, **kwargs):
        fig = show_cells(torch.zeros(4, 1, 8, 8), titles, ncols=2, zoom=1, **kwargs)
        plt.close(fig)
        return fig.get_figheight()

    none = height(None)
    two_lines = height(['a\nb'])
    every = height('abcd')
    assert none < every and none < two_lines
    assert height(None, title='all') == pytest.approx(none + .3)

def test_show_cells_refuses_what_is_no_batch():
    with pytest.raises(ValueError, match=r'\(3, 8, 8\)'):
        show_cells(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match='at least one'):
        show_cells(torch.zeros(0, 3, 8, 8))

def test_a_seed_repeats():
    first, second, other = [torch.randn(9, generator=generator(s)) for s in (0, 0, 1)]
    assert torch.equal(first, second) and not torch.equal(first, other)

def test_neighbouring_and_large_seeds_differ():
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**33, 2**63 - 1, 2**63 - 2]
    draws = [torch.rand(4, generator=generator(s)).tolist() for s in seeds]
    assert len({tuple(d) for d in draws}) == len(seeds)

def test_mixed_seeds_of_neighbours_never_meet():
    "A sum would: 0 + 1 and 1 + 0"
    mixed = {mix_seed(seed, part) for seed in range(60) for part in range(60)}
    assert len(mixed) == 3600 and mix_seed(3, 5) == mix_seed(3, 5)
    assert all(0 <= m < 2**32 for m in mixed)

def test_old_keywords_are_translated():
    table = {True: 'bfloat16', None: 'auto'}
    @old_keywords(w='scale', half=('precision', table))
    def f(x, scale=1, precision='float32'): return x, scale, precision

    with pytest.warns(DeprecationWarning, match='w of f is now scale'):
        assert f(1, w=2) == (1, 2, 'float32')
    with pytest.warns(DeprecationWarning, match='0.2 only'):
        assert f(1, half=True, scale=3) == (1, 3, 'bfloat16')
    with pytest.raises(TypeError, match='both scale and its old name, w'):
        f(1, w=2, scale=2)
    assert list(inspect.signature(f).parameters) == ['x', 'scale', 'precision']

def test_device_from_the_environment(monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_DEVICE', 'cpu')
    assert default_device() == torch.device('cpu')

@pytest.mark.parametrize('environment, device', [
    ({}, 'cuda'), (dict(LOCAL_RANK='1'), 'cuda:1'),
    (dict(LOCAL_RANK='1', ACCELERATE_USE_CPU='True'), 'cpu'),
    (dict(LOCAL_RANK='1', CELL_DIFFUSION_DEVICE='cpu'), 'cpu')])
def test_each_process_of_a_launcher_has_a_gpu(monkeypatch, environment, device):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_device() == torch.device(device)

@pytest.mark.parametrize('generation, fast', [((7, 5), False), ((8, 0), True)])
def test_bfloat16_on_gpus_that_have_it(generation, fast, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: generation)
    assert fast_bfloat16('cuda') is fast

@pytest.mark.parametrize('fast', [False, True])
def test_bfloat16_on_processors_that_have_it(fast, monkeypatch):
    question = '_is_avx512_bf16_supported'
    monkeypatch.setattr(torch.cpu, question, lambda: fast, raising=False)
    assert fast_bfloat16('cpu') is fast
    assert not fast_bfloat16('mps')

@pytest.mark.parametrize('name', ['gpu', 'meta', 'cuda:99', 'cpu cpu'])
def test_a_device_that_is_not_there(name, monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_DEVICE', name)
    with pytest.raises(ValueError, match=f'CELL_DIFFUSION_DEVICE={name!r}.*cpu'):
        default_device()

no_numbers = None, True, np.True_, 'a', '3', [3], float('nan'), float('inf'), 1j
whole_numbers = 3, 3., np.int64(3), np.float32(3), np.uint8(3), torch.tensor(3)

@pytest.mark.parametrize('value', no_numbers, ids=repr)
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match='x=.*a whole number, at least 1'):
        check_number('x', value, low=1, whole=True)
    with pytest.raises(ValueError, match='x=.*a number above 0, at most 9'):
        check_number('x', value, above=0, high=9)

@pytest.mark.parametrize('value', whole_numbers, ids=repr)
def test_whole_numbers_of_every_kind(value):
    found = check_number('x', value, 1, 3, whole=True)
    assert found == 3 and type(found) is int

@pytest.mark.parametrize('value', [0, 4, 2.5, -1, 10**400, -10**400, 1e300])
def test_numbers_outside_of_a_range(value):
    with pytest.raises(ValueError, match='x=.* a whole number from 1 to 3'):
        check_number('x', value, 1, 3, whole=True)

def test_each_limit_lets_its_own_ends_through():
    for name, limit in limits.items():
        ends = [limit[end] for end in ('low', 'high') if end in limit]
        for value in ends:
            assert check_limits(**{name: value}) == (value,)
        for value in (ends[-1]*2 + 1, limit.get('low', 1) - 1, float('nan'), 'many'):
            with pytest.raises(ValueError, match=f'{name}='):
                check_limits(**{name: value})

def test_none_stands_for_a_default_where_there_is_one():
    assert check_limits(n=None, seed=np.int32(2)) == (None, 2)
    with pytest.raises(ValueError, match='seed=None'):
        check_limits(n=None, seed=None)

def test_more_memory_than_there_is():
    check_memory(1e6, 'a cell')
    with pytest.raises(ValueError, match='n=9 cells would need 1,000,000 GB'):
        check_memory(1e15, 'n=9 cells')

@pytest.mark.parametrize('seed', [-1, 2**63 - 1, 2**64 - 1, 1_000_003*2**63])
def test_every_whole_number_is_a_seed(seed):
    assert torch.equal(torch.rand(4, generator=generator(seed)),
                       torch.rand(4, generator=generator(seed % 2**64)))
