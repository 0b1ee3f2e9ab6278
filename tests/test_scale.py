"The scale is one visible object, chosen by the environment; errors list the names"
import pytest
from cell_diffusion.core import get_scale, scales

@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ('CELL_DIFFUSION_SCALE', 'CELL_DIFFUSION_DATA'):
        monkeypatch.delenv(name, raising=False)

def test_default():
    assert get_scale().name == 'laptop'

@pytest.mark.parametrize('name', scales)
def test_environment(name, monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_SCALE', name)
    assert get_scale() == scales[name]

@pytest.mark.parametrize('wrong', ['tiny', 'GPU', ' smoke'])
def test_wrong_scale_lists_the_right_ones(wrong, monkeypatch):
    monkeypatch.setenv('CELL_DIFFUSION_SCALE', wrong)
    with pytest.raises(ValueError) as e:
        get_scale()
    for name in (wrong, *scales):
        assert name in str(e.value)

def test_real_cells_when_there_is_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('CELL_DIFFUSION_DATA', str(tmp_path))
    assert get_scale().source == 'pbc'
    assert get_scale('smoke').size == scales['smoke'].size
