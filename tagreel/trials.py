"""The same models trained several times: what their scores say, in numbers and as a picture.

A 95 % interval is that of the mean over the runs by Student's t: with two or three runs it is wide, as it
should be. The pictures need matplotlib (`pip install 'tagreel[bench]'`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagreel.errors import RecipeError

METRICS = {"map": "mAP", "gap@20": "GAP@20", "hit@1": "Hit@1", "perr": "PERR"}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t: half a 95 % interval of the mean of so many runs, in standard errors; of more it is less."""


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of what the values are a sample of; NaN of one alone."""
    if len(values) < 2:
        return math.nan
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean; NaN of one value alone."""
    count = len(values)
    return T_95.get(count, 2.228) * deviation(values) / math.sqrt(count) if count > 1 else math.nan


def cell(values: Sequence[float]) -> str:
    """A mean and half its interval, as a table shows them."""
    spread = f" ± {interval(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def pyplot() -> Any:
    """matplotlib's pyplot, for pictures in files; raises `RecipeError` where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise RecipeError(
            "matplotlib is not installed; it comes with: pip install 'tagreel[bench]'"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def bars(axes: Any, scores: Mapping[str, Sequence[float]], colours: Mapping[str, Any], *, label: str) -> None:
    """Every run a dot, every mean a bar with its 95 % interval, from the top down."""
    names = list(scores)[::-1]
    means = {name: mean(scores[name]) for name in names}
    ordered = sorted(means.values())
    # Of many rows one that failed is at the edge, so that the others can be told apart.
    low = ordered[int(0.06 * len(ordered))]
    low = max(low - (0.3 * (ordered[-1] - low) or 0.01), 0.0)
    for y, name in enumerate(names):
        values = scores[name]
        axes.barh(y, max(means[name] - low, 0.0), left=low, color=colours[name], alpha=0.45, height=0.75)
        if len(values) > 1:
            axes.errorbar(means[name], y, xerr=interval(values), color=colours[name], capsize=3, lw=1.5)
        axes.plot(values, [y] * len(values), "o", ms=3, color=colours[name])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(left=low)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def curves(path: Path, lines: Mapping[str, Mapping[int, Sequence[float]]], *, x: str, y: str) -> None:
    """A picture of the means by size, a line each, with the runs' standard deviation as error bars."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in lines.items():
        sizes = sorted(points)
        means = [mean(points[size]) for size in sizes]
        spread = [deviation(points[size]) if len(points[size]) > 1 else 0.0 for size in sizes]
        axes.errorbar(sizes, means, yerr=spread, marker="o", ms=4, capsize=3, lw=1.5, label=name)
    axes.set_xscale("log")
    ticks = sorted({size for points in lines.values() for size in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
