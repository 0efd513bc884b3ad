"""What the runs of a paper's table say: verdicts on its claims, the table as text, and its picture.

A claim is judged by the differences between its two rows over pairs of runs with the same seed, which saw the
videos in the same order; a score is GAP@20, the measure of all five papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tagreel import recipe as recipes
from tagreel.claims import TABLES, Claim, Table
from tagreel.recipe import Ensemble
from tagreel.tagger import count_parameters
from tagreel.trials import METRICS, bars, cell, curves, interval, mean, pyplot

Rows = Mapping[str, Mapping[str, Any]]
"""The runs of each row by their seed, each with "scores", "parameters", "videos" and "minutes"."""


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim: `ours`, the mean difference over `runs` pairs, ± `half` its interval.

    It is "shown" where the whole 95 % interval is on the claim's side of zero, "opposite" where it is on the
    other, "the same here" where both rows are one model at this scale, and else "not shown". `half` is None
    of one pair alone; `paper` is the difference in the paper, None where it has no figures.
    """

    claim: Claim
    ours: float
    half: float | None
    runs: int
    paper: float | None
    verdict: Literal["shown", "opposite", "not shown", "the same here"]


def verdicts(table: Table, rows: Rows, same: Callable[[str, str], bool]) -> list[Verdict]:
    """A verdict on each claim whose rows have runs of one seed; `same` tells rows that are one model."""
    found = []
    for claim in table.claims:
        better, worse = rows.get(claim.better, {}), rows.get(claim.worse, {})
        gains = [_score(better[seed]) - _score(worse[seed]) for seed in better if seed in worse]
        if not gains:
            continue
        ours, half = mean(gains), interval(gains)
        alike = same(claim.better, claim.worse)
        found.append(
            Verdict(
                claim=claim,
                ours=ours,
                half=None if math.isnan(half) else half,
                runs=len(gains),
                paper=_gain_in_paper(table, claim),
                verdict="the same here" if alike else _judge(ours, half),
            )
        )
    return found


def _judge(ours: float, half: float) -> Literal["shown", "opposite", "not shown"]:
    if not abs(ours) > half:  # as of one run, whose interval is not known
        return "not shown"
    return "shown" if ours > 0 else "opposite"


def in_order(table: Table, rows: Rows) -> tuple[int, int]:
    """How many pairs of rows are ordered as in the paper, and how many it orders."""
    published = {row: figure for row in rows if (figure := _in_paper(table, row)) is not None}
    scores = {row: mean(_scores(rows[row], "gap@20")) for row in published}
    pairs = [(a, b) for a in published for b in published if published[a] > published[b]]
    return sum(scores[a] > scores[b] for a, b in pairs), len(pairs)


def judged(result: Mapping[str, Any], same: Callable[[str, str], bool]) -> list[dict[str, Any]]:
    """The verdicts on a table's claims as plain data."""
    return [asdict(found) for found in verdicts(TABLES[result["table"]], result["rows"], same)]


def markdown(result: Mapping[str, Any], *, picture: str) -> str:
    """The table, its `picture` and the verdicts."""
    parts = [f"# {result['title']}", _introduction(result)]
    if result["command"]:
        parts.append(f"    {result['command']}")
    parts += [f"![GAP@20 of every row]({picture})", "\n".join(_table(result)), "## What the paper claims"]
    agreeing, pairs = in_order(TABLES[result["table"]], result["rows"])
    if pairs:
        parts.append(f"Of {pairs} pairs of rows that the paper orders, {agreeing} have the same order here.")
    if result["claims"]:
        parts += ["\n".join(_claims(result["claims"])), _caution(result["claims"])]
    else:
        parts.append("None of the claims has both of its rows here.")
    return "\n\n".join(parts) + "\n"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the rows beside the paper's figures, or scores by the size of the data where a table has repeats.

    Raises `RecipeError` where matplotlib is not installed.
    """
    table = TABLES[result["table"]]
    scores = {row: _scores(runs, "gap@20") for row, runs in result["rows"].items()}
    if table.repeats:
        lines: dict[str, dict[int, Sequence[float]]] = {}
        for row, values in scores.items():
            size = min(run["videos"] for run in result["rows"][row].values())
            lines.setdefault(row.rpartition("-")[0], {})[size] = values
        curves(path, lines, x="videos in each of the disjoint sets", y="GAP@20: mean and standard deviation")
        return
    plt = pyplot()
    colours = dict.fromkeys(scores, "tab:blue")
    published = {row: [figure] for row in scores if (figure := _in_paper(table, row)) is not None}
    panels = {"GAP@20 here: runs, their mean and its 95 % interval": scores}
    if published:
        panels["GAP@20 in the paper: other data, other sizes"] = published
    size = (6 * len(panels), 1.2 + 0.3 * len(scores))
    figure, places = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, (label, shown) in zip(places[0], panels.items(), strict=True):
        bars(axes, shown, colours, label=label)
    for axes in places[0][1:]:
        axes.tick_params(labelleft=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _introduction(result: Mapping[str, Any]) -> str:
    size = {
        "small": "Models **of the same structure and a fraction of the size**, all trained alike",
        "paper": "Models of the published size, trained as published",
    }[result["scale"]]
    data, validation = result["data"], result["validation"]
    classes = f", {result['classes']:,} classes" if result["classes"] else ""
    return (
        f"{size}: on {data['videos']:,} videos ({data['files']}{classes}), and scored on "
        f"{validation['videos']:,} ({validation['files']}) after the last step. **The figures here cannot be "
        "put beside the paper's**, which are of YouTube-8M; what can be compared is which row is ahead of "
        "which. Means over the runs with half their 95 % interval; minutes are those of training one model. "
        f"{TABLES[result['table']].note}"
    ).strip()


def _table(result: Mapping[str, Any]) -> list[str]:
    table, rows = TABLES[result["table"]], result["rows"]
    figures = {row: _in_paper(table, row) for row in rows}
    columns = ["GAP@20 here"]
    columns += ["in the paper"] if any(figures.values()) else []
    others = [metric for metric in METRICS if metric != "gap@20"]
    columns += [*(METRICS[metric] for metric in others), "parameters here", "as published", "minutes", "runs"]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for row, runs in rows.items():
        about = recipes.find_any(table.recipes(row)[0]).about
        cells = [f"`{row}` {about.summary if not table.repeats else ''}".strip()]
        cells.append(cell(_scores(runs, "gap@20")))
        if "in the paper" in columns:
            cells.append("–" if figures[row] is None else f"{figures[row]:.4f}")
        minutes = sorted(run["minutes"] for run in runs.values())[len(runs) // 2]
        parameters = next(iter(runs.values()))["parameters"]
        cells += [cell(_scores(runs, metric)) for metric in others]
        cells += [_millions(parameters), _millions(_published_size(table, row))]
        lines.append(f"| {' | '.join([*cells, f'{minutes:.1f}', str(len(runs))])} |")
    return lines


def _claims(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| claim | ahead by, here | in the paper | verdict |", "|---|---:|---:|---|"]
    for found in claims:
        claim = found["claim"]
        half = " (one run)" if found["half"] is None else f" ± {found['half']:.4f}"
        paper = "–" if found["paper"] is None else f"{found['paper']:+.4f}"
        said = f"{claim['means']}: `{claim['better']}` before `{claim['worse']}`"
        lines.append(f"| {said} | {found['ours']:+.4f}{half} | {paper} | {found['verdict']} |")
    return lines


def _caution(claims: Sequence[Mapping[str, Any]]) -> str:
    widths = sorted(found["half"] for found in claims if found["half"] is not None)
    if not widths:
        return "One run says nothing of chance, so nothing is shown."
    return (
        "*Shown* and *opposite* are differences whose 95 % interval, over pairs of runs with the same seed, "
        f"leaves out zero; one in twenty such intervals misses. Half of it is {widths[len(widths) // 2]:.4f} "
        "in the middle of these claims: smaller differences cannot be seen with so few runs, and *not shown* "
        "does not mean that there is none."
    )


def _score(run: Mapping[str, Any]) -> float:
    score: float = run["scores"]["gap@20"]
    return score


def _scores(runs: Mapping[str, Any], metric: str) -> list[float]:
    return [run["scores"][metric] for run in runs.values()]


def _figures(table: Table, row: str) -> dict[str, float]:
    """The GAP@20 that the paper has for a row, by the data they are of."""
    published = recipes.find_any(table.recipes(row)[0]).about.published
    return {name: figure for name, figure in published.items() if name.startswith("GAP")}


def _in_paper(table: Table, row: str) -> float | None:
    return next(iter(_figures(table, row).values()), None)


def _gain_in_paper(table: Table, claim: Claim) -> float | None:
    """How far ahead the paper has it, on the first of the data that both rows are scored on."""
    better, worse = _figures(table, claim.better), _figures(table, claim.worse)
    return next((better[name] - worse[name] for name in better if name in worse), None)


def _published_size(table: Table, row: str) -> int:
    found = recipes.find_any(table.recipes(row)[0])
    members = found.members.values() if isinstance(found, Ensemble) else [found]
    return sum(recipe.about.parameters or count_parameters(recipe) or 0 for recipe in members)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M"
