"Pixels and model values, pictures of any batch, randomness from a seed"
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from cell_diffusion.core import decode, default_device, encode, fast_bfloat16
from cell_diffusion.core import generator, show_cells

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

def test_device_from_the_environment(monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_DEVICE', 'cpu')
    assert default_device() == torch.device('cpu')

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
