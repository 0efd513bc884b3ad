from __future__ import annotations

import builtins
import math

import numpy as np
import pytest

from tagreel import trials
from tagreel.errors import RecipeError


def test_means_and_deviations_are_those_of_numpy():
    values = [0.61, 0.42, 0.55, 0.9]
    assert trials.mean(values) == pytest.approx(np.mean(values))
    assert trials.deviation(values) == pytest.approx(np.std(values, ddof=1))
    assert math.isnan(trials.deviation([0.5]))
    assert math.isnan(trials.interval([0.5]))


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_an_interval_covers_the_mean_in_19_of_20_cases(count):
    """Draw samples of a known mean, and count."""
    rng = np.random.default_rng(count)
    samples = rng.normal(3.0, 2.0, (4000, count)).tolist()
    hits = sum(abs(trials.mean(sample) - 3.0) <= trials.interval(sample) for sample in samples)
    assert hits / len(samples) == pytest.approx(0.95, abs=0.012)


def test_a_cell_has_the_interval_of_several_runs_alone():
    assert trials.cell([0.25]) == "0.2500"
    assert trials.cell([0.25, 0.26]) == f"0.2550 ± {12.706 * 0.01 / 2:.4f}"


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=r"pip install 'tagreel\[bench\]'"):
        trials.pyplot()


def test_bars_and_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'tagreel[bench]'")
    plt = trials.pyplot()
    figure, axes = plt.subplots()
    scores = {"one": [0.5, 0.52], "two": [0.6], "failed": [0.01]}
    trials.bars(axes, scores, dict.fromkeys(scores, "C0"), label="GAP@20")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["failed", "two", "one"]
    assert len(axes.patches) == 3
    assert 0 <= axes.get_xlim()[0] < 0.01 < 0.5 < 0.6 < axes.get_xlim()[1]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[0.01], [0.6], [0.5, 0.52]]
    plt.close(figure)
    trials.curves(tmp_path / "c.png", {"a": {10: [0.1, 0.2], 100: [0.3]}}, x="videos", y="score")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
