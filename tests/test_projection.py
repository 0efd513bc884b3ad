from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagreel.errors import DataError, RecipeError
from tagreel.files import write_tensors
from tagreel.projection import Projection, fit

RNG = np.random.default_rng(0)
DATA = Path(__file__).parents[1].parent / "shared" / "data" / "yt8m" / "pca"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"YouTube-8M's PCA is not in {DATA}")


def features(count=500, width=20, *, offset=0.0):
    """Correlated features of falling variance about a mean."""
    rng = np.random.default_rng(1)
    mixed = (
        rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) * 0.9 ** np.arange(width)
    )
    return (mixed + rng.standard_normal(width) + offset).astype(np.float32)


def by_svd(values, dim):
    """The same out of the matrix of features, not of its covariance."""
    mean = values.astype(np.float64).mean(0)
    _, singular, directions = np.linalg.svd(values - mean, full_matrices=False)
    for direction in directions:
        if direction[np.abs(direction).argmax()] < 0:
            direction *= -1
    return mean, directions[:dim], singular[:dim] ** 2 / (len(values) - 1)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_it_is_the_singular_value_decomposition(offset):
    values = features(offset=offset)
    mean, components, eigenvalues = by_svd(values, 8)
    found = fit([values], 8)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.eigenvalues, eigenvalues, rtol=1e-5)
    np.testing.assert_allclose(found.components, components, atol=1e-5)
    expected = (values - mean) @ components.T / np.sqrt(eigenvalues + 1e-4)
    np.testing.assert_allclose(found.apply(values), expected, atol=1e-4)


@given(st.lists(st.integers(0, 499), max_size=6))
def test_it_does_not_matter_how_the_features_come(cuts):
    values = features(offset=100.0)
    whole, parts = fit([values], 5), fit(np.split(values, sorted(cuts)), 5)
    for part in ("mean", "components", "eigenvalues"):
        np.testing.assert_allclose(getattr(parts, part), getattr(whole, part), rtol=1e-6, atol=1e-6)


def test_more_than_a_block_of_rows_at_a_time():
    values = features(10_000)
    found = fit(iter(np.split(values, 100)), 5)
    np.testing.assert_allclose(found.eigenvalues, by_svd(values, 5)[2], rtol=1e-5)


def test_whitened_features_spread_alike_and_are_uncorrelated():
    values = features()
    white = fit([values], 6).apply(values)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=1e-3)
    plain = fit([values], 6, whiten=False)
    np.testing.assert_allclose(plain.apply(values).var(0, ddof=1), plain.eigenvalues, rtol=1e-4)


def test_a_row_comes_out_the_same_beside_any_others():
    found, values = fit([features()], 6), features()
    np.testing.assert_array_equal(found.apply(values[3:4]), found.apply(values)[3:4])
    assert found.apply(values[:0]).shape == (0, 6)


def test_it_is_the_same_after_saving(tmp_path):
    found = fit([features()], 6)
    found.save(tmp_path / "pca.safetensors")
    again = Projection.load(tmp_path / "pca.safetensors")
    assert again.identity() == found.identity()
    assert (again.whiten, again.out_dim) == (True, 6)
    np.testing.assert_array_equal(again.apply(features()), found.apply(features()))
    fit([features()], 6).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "pca.safetensors").read_bytes()


def test_its_identity_is_of_its_numbers():
    found = fit([features()], 6)
    assert found.identity() == {"kind": "pca", "sha256": found.identity()["sha256"], "dim": 6, "whiten": True}
    others = [fit([features()], 5), fit([features()], 6, whiten=False), fit([features()[1:]], 6)]
    assert all(other.identity() != found.identity() for other in others)
    assert found.first(5).identity() == others[0].identity()


def published(folder, *, directions=6, width=20):
    """Files as YouTube-8M's, of which the third holds fewer directions than there are eigenvalues."""
    found = fit([features(width=width)], width)
    np.save(folder / "mean.npy", found.mean[:, None])
    np.save(folder / "eigenvals.npy", found.eigenvalues[:, None])
    np.save(folder / "eigenvecs.npy", found.components[:directions])
    return found


def test_youtube8ms_files_are_read_as_by_its_feature_extractor(tmp_path):
    published(tmp_path)
    frame = features()[0]
    # feature_extractor.py: _load_pca and apply_pca
    mean = np.load(tmp_path / "mean.npy")[:, 0]
    eigenvalues = np.load(tmp_path / "eigenvals.npy")[:6, 0]
    directions = np.load(tmp_path / "eigenvecs.npy").T[:, :6]
    expected = (frame - mean).reshape((1, 20)).dot(directions).reshape((6,)) / np.sqrt(eigenvalues + 1e-4)
    np.testing.assert_allclose(
        Projection.load(tmp_path).apply(frame[None])[0], expected, rtol=1e-4, atol=1e-5
    )


def test_audiosets_file_is_read_as_by_vggish(tmp_path):
    matrix, means = (
        RNG.standard_normal((8, 8)).astype(np.float32),
        RNG.standard_normal((8, 1)).astype(np.float32),
    )
    np.savez(tmp_path / "vggish_pca_params.npz", pca_eigen_vectors=matrix, pca_means=means)
    batch = RNG.standard_normal((5, 8)).astype(np.float32)
    # vggish_postprocess.py
    expected = np.dot(matrix, batch.T - means).T
    found = Projection.load(tmp_path / "vggish_pca_params.npz")
    np.testing.assert_allclose(found.apply(batch), expected, rtol=1e-5, atol=1e-5)


@needs_data
def test_the_published_mean_and_eigenvalues_fit_the_published_frame(tmp_path):
    """Whatever the directions are, they keep most of a frame, and no more than there is."""
    mean, eigenvalues = (np.load(DATA / f"{part}.npy") for part in ("mean", "eigenvals"))
    np.save(tmp_path / "mean.npy", mean)
    np.save(tmp_path / "eigenvals.npy", eigenvalues)
    np.save(tmp_path / "eigenvecs.npy", np.eye(1024, 2048, dtype=np.float32))
    found = Projection.load(tmp_path)
    assert (len(found.mean), found.out_dim) == (2048, 1024)
    assert np.sqrt(found.eigenvalues[[0, -1]]) == pytest.approx([3.8391, 0.1239], abs=1e-4)
    deviations = np.sqrt(found.eigenvalues + 1e-4)
    with np.load(DATA / "sports1m_frame.npz") as frame:
        original, pca = frame["original"], frame["pca"]
    kept, whole = np.linalg.norm(pca * deviations), np.linalg.norm(original - found.mean)
    assert 0.99 * whole < kept <= whole
    apart = found.apply(original[None].astype(np.float32))[0] * deviations
    np.testing.assert_allclose(apart, (original - found.mean)[:1024], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: fit([features(5)], 5), r"dim=5: 5 frames span fewer directions"),
        (lambda: fit([features()], 21), r"dim=21: expected 1 to 20"),
        (lambda: fit([features()], 0), r"dim=0: expected 1 to 20"),
        (lambda: fit([], 3), r"dim=3: no frames to fit a projection to"),
        (lambda: fit([features(), features(width=5)], 3), r"features of 5 numbers among some of 20"),
        (lambda: fit([features()], 3).apply(features(width=5)), r"takes 20 numbers, found 5"),
        (lambda: fit([features()], 3).first(4), r"dim=4: the projection has 3 directions"),
    ],
)
def test_what_cannot_be_fitted_or_applied_is_told(call, reason):
    with pytest.raises(RecipeError, match=reason):
        call()


def test_features_that_are_no_numbers_are_told():
    with pytest.raises(ValueError, match="not finite"):
        fit([features(), np.full((1, 20), np.nan, np.float32)], 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda folder: (folder / "mean.npy").unlink(),
            r"mean.npy: cannot be read as numpy's arrays: .*No such file",
        ),
        (
            lambda folder: (folder / "mean.npy").write_bytes(b"nothing"),
            r"mean.npy: cannot be read as numpy's arrays",
        ),
        (
            lambda folder: (folder / "mean.npy").write_bytes(b""),
            r"mean.npy: cannot be read as numpy's arrays",
        ),
        (
            lambda folder: np.save(folder / "mean.npy", np.array([{}])),
            r"mean.npy: cannot be read as numpy's arrays",
        ),
        (
            lambda folder: np.save(folder / "mean.npy", np.zeros(19)),
            r"its directions are \(6, 20\); expected \(6, 19\)",
        ),
        (
            lambda folder: np.save(folder / "mean.npy", np.full(20, np.inf)),
            "holds numbers that are not finite",
        ),
        (
            lambda folder: np.save(folder / "eigenvals.npy", np.arange(20.0)),
            "not all positive and in falling order",
        ),
    ],
)
def test_damaged_files_are_told_in_one_line(tmp_path, change, reason):
    published(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=reason) as error:
        Projection.load(tmp_path)
    assert "\n" not in str(error.value)


def test_other_files_are_told_in_one_line(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(DataError, match=r"it has no pca_eigen_vectors and no pca_means"):
        Projection.load(tmp_path / "other.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be read as numpy's arrays"):
        Projection.load(tmp_path / "cut.npz")
    with pytest.raises(DataError, match="cannot be read"):
        Projection.load(tmp_path / "none.safetensors")
    write_tensors(tmp_path / "model.safetensors", {"head.bias": torch.zeros(3)})
    with pytest.raises(DataError, match=r"is no projection: it holds head.bias"):
        Projection.load(tmp_path / "model.safetensors")
