"""What an evaluation found, as text for the terminal, JSON for machines and one HTML page to look at.

The page is whole in itself: style, data and the drawing code (uPlot 1.6.32, MIT) are inside it, and its
content security policy forbids it to fetch anything. Names of classes are a user's data: they reach the page
as JSON in which no `<` is left, and from there as text, never as HTML.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, TypedDict

from tagreel.errors import TagreelError
from tagreel.files import write_text


class ClassScore(TypedDict):
    """One class in a report: its average precision and how many examples stand behind it.

    `ap` is None where the evaluated set has no positive, `support` counts the positives in that set,
    `train_count` those in the training set (None when unknown).
    """

    id: int
    name: str
    ap: float | None
    support: int
    train_count: int | None


class Extremes(NamedTuple):
    """The classes with the highest and the lowest AP, among those with at least `minimum` positives."""

    minimum: int
    best: list[ClassScore]
    worst: list[ClassScore]


class _Metric(NamedTuple):
    label: str
    meaning: str
    rising: bool = True


# In the order in which they are shown.
_METRICS = {
    "gap@20": _Metric("GAP@20", "global average precision over the 20 highest scores of each video"),
    "map": _Metric("mAP", "average precision of a class, mean over the classes"),
    "map_top20": _Metric("mAP, top 20", "mAP when only the 20 highest scores of each video count"),
    "hit@1": _Metric("Hit@1", "share of videos whose highest score is a true label"),
    "map@100000": _Metric("MAP@100,000", "of rated segments, each class ranking the first 100,000 (2019)"),
    "perr": _Metric("PERR", "precision when a video is given as many labels as it has"),
    "calibration_error": _Metric(
        "calibration error", "mean distance between a score and how often it is true; 0 is best", rising=False
    ),
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one evaluation of one checkpoint found; plain values, so that anyone can build one.

    Arrays and tensors become lists, and what is not a finite number becomes None, so that a report equals
    the one read back from its JSON.

    `seconds` is the time the evaluation took. `metrics` has the keys `gap@20`, `map`, `map_top20`, `hit@1`,
    `perr` and `calibration_error`; other keys are shown after these. `best_possible` has the same keys and is
    known only for planted data. `history` holds the rows of the training log (`step`, `epoch`, `examples`,
    `loss`, `gap@20`, ...) and `validations` those measured during training (`step` and the metrics, `loss`
    where it was measured). `precision_recall` has `recall` and `precision`, of the list that GAP@20 ranks;
    `calibration` has `score`, `frequency` and `count`, one entry a bin. The page leaves out what is empty.
    """

    title: str
    recipe: str
    data: Sequence[str]
    checkpoint: str
    step: int
    videos: int
    classes: int
    parameters: int
    seconds: float
    metrics: Mapping[str, float | None]
    best_possible: Mapping[str, float | None] | None = None
    history: Sequence[Mapping[str, float | None]] = ()
    validations: Sequence[Mapping[str, float | None]] = ()
    precision_recall: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    calibration: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    per_class: Sequence[ClassScore] = ()

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _plain(getattr(self, each.name)))
        _check_columns("precision_recall", self.precision_recall, ("recall", "precision"))
        _check_columns("calibration", self.calibration, ("score", "frequency", "count"))

    def to_json(self) -> dict[str, Any]:
        """The report as plain values that strict JSON can hold, under the names of its fields."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """The report that `to_json` made `values` of."""
        known = [each.name for each in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise TagreelError(f"a report has no field {unknown[0]!r}; it has: {', '.join(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise TagreelError(f"this is not the JSON of a report: {error}") from error

    def extremes(self, count: int = 15) -> Extremes:
        """Up to `count` best and as many worst classes, best and worst first, no class in both.

        The AP of a class with a handful of positives says little, so 10 are asked for, or 1 where that
        would leave fewer than twice `count` classes.
        """
        scored = [each for each in self.per_class if each["ap"] is not None and each["support"] > 0]
        frequent = [each for each in scored if each["support"] >= 10]
        minimum, chosen = (10, frequent) if len(frequent) >= 2 * count else (1, scored)
        # among equals the class with more positives has done more to be best, and to be worst
        best = sorted(chosen, key=lambda each: (-(each["ap"] or 0.0), -each["support"], each["id"]))
        best = best[: min(count, (len(chosen) + 1) // 2)]
        taken = {each["id"] for each in best}
        rest = [each for each in chosen if each["id"] not in taken]
        worst = sorted(rest, key=lambda each: (each["ap"] or 0.0, -each["support"], each["id"]))
        return Extremes(minimum, best, worst[:count])

    def text(self) -> str:
        """The report as `tagreel evaluate` prints it: what was measured, the metrics, some classes."""
        speed = f", {self.videos / self.seconds:,.0f} videos/s" if self.seconds > 0 else ""
        facts = {
            "recipe": self.recipe,
            "checkpoint": f"{self.checkpoint}, step {self.step:,}",
            "data": ", ".join(_first(self.data, 4)),
            "size": f"{self.videos:,} videos, {self.classes:,} classes, {self.parameters:,} parameters",
            "time": _duration(self.seconds) + speed,
        }
        lines = [
            _printable(self.title),
            *(f"{name:<12}{_printable(fact)}" for name, fact in facts.items()),
            "",
        ]
        for metric in self._metric_rows():
            line = f"{metric['label']:<20}{_exact(metric['value'])}"
            if metric["best"] is not None:
                share = "" if metric["share"] is None else f"{100 * metric['share']:.1f} % of "
                line += f"   {share}the best possible {_exact(metric['best'])}"
            lines.append(line)
        minimum, best, worst = self.extremes()
        for name, chosen in (("best", best), ("worst", worst)):
            if chosen:
                lines += ["", f"{name} classes by AP, of those with {minimum} or more videos"]
                lines += [
                    f"{_score(each['ap'])}   {each['support']:>9,} videos   {_printable(each['name'])}"
                    for each in chosen[:5]
                ]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """The report as one HTML page that needs nothing but a browser: no network, no other file."""
        data = {
            "report": self.to_json(),
            "metrics": self._metric_rows(),
            "extremes": self.extremes()._asdict(),
        }
        return Template(_asset("report.html")).substitute(
            title=html.escape(self.title),
            text=html.escape(self.text()),
            licence=_asset("uplot/LICENSE").strip(),
            plot_style=_asset("uplot/uPlot.min.css"),
            style=_asset("report.css"),
            plot_script=_asset("uplot/uPlot.iife.min.js"),
            script=_asset("report.js"),
            data=_inside_script(data),
        )

    def write(self, folder: Path | str) -> tuple[Path, Path]:
        """Write `report.json` and `report.html` to `folder`, made if missing; return their paths.

        Each file appears complete or not at all, and replaces the one of an earlier report.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_html = folder / "report.json", folder / "report.html"
        write_text(as_json, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        write_text(as_html, self.html())
        return as_json, as_html

    def _metric_rows(self) -> list[dict[str, Any]]:
        rows = []
        others = [key for key in self.metrics if key not in _METRICS]
        for key in [*(key for key in _METRICS if key in self.metrics), *others]:
            metric = _METRICS.get(key, _Metric(key, "", rising=False))
            value, best = self.metrics[key], (self.best_possible or {}).get(key)
            share = value / best if value is not None and best and metric.rising else None
            rows.append({"key": key, **metric._asdict(), "value": value, "best": best, "share": share})
        return rows


def _plain(value: Any) -> Any:
    """Lists, dicts, strings and finite numbers of whatever `value` is made of."""
    if hasattr(value, "tolist"):  # numpy's and torch's arrays, and their scalars
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):  # a file's name may hold bytes that are no UTF-8, which nothing could write
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _check_columns(name: str, columns: Mapping[str, Sequence[Any]], expected: tuple[str, ...]) -> None:
    if columns and set(columns) != set(expected):
        raise TagreelError(f"{name} has {', '.join(columns)}; it should have {', '.join(expected)}")
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{length} of {key}" for key, length in lengths.items())
        raise TagreelError(f"{name} should have as many values in each column, it has {found}")


def _inside_script(data: Any) -> str:
    """Strict JSON that cannot end the script element it stands in, nor open a comment there."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("tagreel").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _exact(value: float | None) -> str:
    """As `_score`, but a small error has its first digit after the fourth decimal."""
    return f"{value:.6f}" if value is not None and 0 < value < 0.001 else _score(value)


def _first(names: Sequence[str], count: int) -> list[str]:
    if len(names) <= count:
        return list(names)
    return [*names[: count - 1], f"{len(names) - count + 1:,} more"]


def _printable(text: str) -> str:
    """Without the control characters by which a name from a file could steer the terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} m"
