from __future__ import annotations

import numpy as np
import pytest
import torch

from tagreel.errors import RecipeError
from tagreel.layers.reverse_whitening import ReverseWhitening


@pytest.fixture
def eigenvalues(tmp_path):
    values = np.linspace(4.0, 0.0, 7)
    np.save(tmp_path / "eigenvals.npy", values)
    return tmp_path / "eigenvals.npy", values


def _prepared(path, dim=5):
    layer = ReverseWhitening(dim, eigenvalues=str(path))
    layer.prepare()
    return layer


def test_follows_the_authors_formula_with_the_first_eigenvalues(eigenvalues):
    path, values = eigenvalues
    torch.manual_seed(0)
    frames = torch.randn(2, 3, 5)
    out = _prepared(path)(frames, torch.ones(2, 3, dtype=torch.bool))
    for b in range(2):
        for t in range(3):
            for d in range(5):
                expected = (frames[b, t, d].item() - 4 / 512) * (values[d] ** 0.5 + 1e-4)
                assert out[b, t, d].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_padded_frames_stay_zero(eigenvalues):
    mask = torch.tensor([[True, False, False]])
    out = _prepared(eigenvalues[0])(torch.zeros(1, 3, 5), mask)
    assert out[0, 0].all()
    assert not out[0, 1:].any()


def test_the_scale_is_neither_trained_nor_needs_its_file_later(eigenvalues):
    path, _ = eigenvalues
    layer = _prepared(path)
    path.unlink()
    copy = ReverseWhitening(5, eigenvalues=str(path))
    copy.load_state_dict(layer.state_dict())
    frames = torch.randn(1, 2, 5)
    assert torch.equal(copy(frames), layer(frames))
    assert not list(layer.parameters())


def test_what_is_no_file_of_eigenvalues_is_named(eigenvalues, tmp_path):
    with pytest.raises(RecipeError, match=r"eigenvalues is not set.*--set streams\.rgb\.transforms\.0"):
        ReverseWhitening(5).prepare()
    with pytest.raises(RecipeError, match=r"missing\.npy"):
        _prepared(tmp_path / "missing.npy")
    with pytest.raises(RecipeError, match=r"holds 7 numbers; expected at least 8, none negative"):
        _prepared(eigenvalues[0], dim=8)
    np.save(tmp_path / "negative.npy", np.array([1.0, -1.0]))
    with pytest.raises(RecipeError, match="none negative"):
        _prepared(tmp_path / "negative.npy", dim=2)
    (tmp_path / "text.npy").write_text("not an array")
    with pytest.raises(RecipeError, match=r"text\.npy"):
        _prepared(tmp_path / "text.npy")


def test_a_pickle_in_the_file_is_not_run(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(RecipeError, match="allow_pickle"):
        _prepared(tmp_path / "evil.npy", dim=1)
