"""A page of one picture and one table, whole in itself: SVG without a script, in the report's style."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from tagreel.files import write_text

_COLOURS = ("blue", "orange", "green", "purple", "gold")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 360, 64, 16, 12, 40

# Nothing may be fetched, and nothing runs.
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
.wide { overflow-x: auto; }
.wide :is(td, th):nth-child(2) { text-align: left; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
$notes
<figure>$picture</figure>
<div class="wide"><table class="classes">$rows</table></div>
</main>
</body>
</html>
""")


@dataclass(frozen=True)
class Line:
    """`values` at x = 1, 2, ..., what to say about each, and a value to compare them with, drawn dashed."""

    values: Sequence[float]
    notes: Sequence[str]
    reference: float


def line_chart(lines: Mapping[str, Line], *, x: str, y: str) -> str:
    """The lines by name, in one picture with a legend; `x` and `y` name the axes."""
    low = min(min(*line.values, line.reference) for line in lines.values())
    high = max(max(*line.values, line.reference) for line in lines.values())
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    longest = max(len(line.values) for line in lines.values())

    def across(place: int) -> float:
        return _LEFT + (place - 1) / max(longest - 1, 1) * (_WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        at = f"{down(tick):.1f}"
        parts.append(f'<path d="M{_LEFT} {at}H{_WIDTH - _RIGHT}" stroke="var(--grid)"/>')
        parts.append(_text(_LEFT - 8, down(tick) + 4, f"{tick:.{_decimals(ticks)}f}", "end"))
    every = math.ceil(longest / 20)
    parts += [_text(across(n), _HEIGHT - 20, str(n), "middle") for n in range(1, longest + 1, every)]
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 3, f"{x} →", "end"))
    legend = []
    for colour, (name, line) in zip(_COLOURS, lines.items(), strict=False):
        stroke = f'stroke="var(--{colour})" fill="none"'
        at = f"{down(line.reference):.1f}"
        parts.append(f'<path d="M{_LEFT} {at}H{_WIDTH - _RIGHT}" {stroke} stroke-dasharray="5 4"/>')
        points = [(across(place), down(value)) for place, value in enumerate(line.values, start=1)]
        route = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
        parts.append(f'<polyline points="{route}" {stroke} stroke-width="2"/>')
        for (left, top), note in zip(points, line.notes, strict=True):
            dot = f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3.5" fill="var(--{colour})">'
            parts.append(f"{dot}<title>{html.escape(note)}</title></circle>")
        legend.append(f'<li><i style="color: var(--{colour})"></i>{html.escape(name)}</li>')
    return (
        f'<ul class="legend">{"".join(legend)}</ul><div class="ylabel">↑ {html.escape(y)}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(y)} by {html.escape(x)}">'
        f"{''.join(parts)}</svg>"
    )


def write_page(
    path: Path, *, title: str, notes: Sequence[str], picture: str, rows: Sequence[Sequence[str]]
) -> None:
    """Write a heading, lines of text, the picture, and a table whose first row names its columns."""
    style = files("tagreel").joinpath("assets", "report.css").read_text(encoding="utf-8")
    text = _PAGE.substitute(
        title=html.escape(title),
        style=style,
        notes="".join(f"<p>{html.escape(note)}</p>" for note in notes),
        picture=picture,
        rows="".join(_row("td" if number else "th", row) for number, row in enumerate(rows)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _row(tag: str, row: Sequence[str]) -> str:
    first, *others = map(html.escape, row)
    cells = "".join(f"<{tag}>{cell}</{tag}>" for cell in others)
    return f'<tr><{tag} class="name">{first}</{tag}>{cells}</tr>'


def _text(left: float, top: float, text: str, anchor: str) -> str:
    place = f'x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="var(--muted)" font-size="12">{html.escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Two to ten round numbers that span low to high."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 8)
    first = math.floor(low / step)
    return [step * n for n in range(first, max(math.ceil(high / step), first + 1) + 1)]


def _decimals(ticks: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
