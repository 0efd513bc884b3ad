from __future__ import annotations

import math

import pytest

from tagreel import trials, verdicts
from tagreel.claims import TABLES, Claim, Table
from tagreel.verdicts import in_order, markdown

HIGH, LOW = "willow-cg-none", "willow-cg-none-none"  # 0.827 and 0.822 in the paper
CLAIM = Claim(HIGH, LOW, "gating helps")
TABLE = Table(title="Two rows", rows=(LOW, HIGH), claims=(CLAIM,))


def _runs(*scores):
    return {
        str(seed): {
            "scores": {"gap@20": score, "map": score / 2, "hit@1": 0.9, "perr": 0.8},
            "parameters": 1_250_000,
            "videos": 100,
            "minutes": float(seed + 1),
        }
        for seed, score in enumerate(scores)
    }


def _verdict(high, low, *, same=False):
    [found] = verdicts.verdicts(TABLE, {HIGH: _runs(*high), LOW: _runs(*low)}, lambda a, b: same)
    return found


@pytest.mark.parametrize(
    ("high", "low", "verdict"),
    [
        ((0.50, 0.61, 0.55), (0.48, 0.59, 0.53), "shown"),
        ((0.48, 0.59, 0.53), (0.50, 0.61, 0.55), "opposite"),
        ((0.50, 0.61, 0.55), (0.49, 0.62, 0.52), "not shown"),
        ((0.50, 0.61, 0.55), (0.50, 0.61, 0.55), "not shown"),
        ((0.9,), (0.1,), "not shown"),
    ],
)
def test_a_claim_is_judged_by_the_interval_of_the_differences(high, low, verdict):
    found = _verdict(high, low)
    gains = [a - b for a, b in zip(high, low, strict=True)]
    half = trials.interval(gains)
    assert found.verdict == verdict
    assert found.ours == pytest.approx(sum(gains) / len(gains))
    assert found.runs == len(gains)
    assert found.half is None if math.isnan(half) else found.half == half
    assert found.paper == pytest.approx(0.005)


def test_runs_are_paired_by_their_seeds():
    """Seeds differ far more than the rows do, and only the second and third are in both."""
    better, worse = _runs(0.2, 0.51, 0.81, 0.9), _runs(0.9, 0.50, 0.80)
    del better["0"]
    [found] = verdicts.verdicts(TABLE, {HIGH: better, LOW: worse}, lambda a, b: False)
    assert (found.runs, found.verdict) == (2, "shown")
    assert found.ours == pytest.approx(0.01)


def test_what_is_one_model_is_not_judged():
    assert _verdict((0.5, 0.6), (0.4, 0.5), same=True).verdict == "the same here"


def test_a_claim_without_one_of_its_rows_is_left_out():
    assert verdicts.verdicts(TABLE, {HIGH: _runs(0.5)}, lambda a, b: False) == []


def test_a_difference_in_the_paper_is_on_the_same_data():
    """The final ensemble has a score on the test set first, its members have none there."""
    claim = Claim("cmu-final", "cmu-m19", "more are better")
    table = Table(title="", rows=("cmu-m19", "cmu-final"), claims=(claim,))
    rows = {"cmu-final": _runs(0.5, 0.6), "cmu-m19": _runs(0.4, 0.5)}
    [found] = verdicts.verdicts(table, rows, lambda a, b: False)
    assert found.paper == pytest.approx(0.84675 - 0.83281)


def test_pairs_are_counted_that_have_the_papers_order():
    table = TABLES["willow-2"]
    scores = dict(zip(table.rows, (0.5, 0.4, 0.6, 0.7, 0.55), strict=True))
    published = dict(zip(table.rows, (0.822, 0.824, 0.827, 0.827, 0.830), strict=True))
    expected = [scores[a] > scores[b] for a in table.rows for b in table.rows if published[a] > published[b]]
    rows = {row: _runs(score) for row, score in scores.items()}
    assert in_order(table, rows) == (sum(expected), len(expected)) == (6, 9)


def _result(rows, claims=(), **more):
    return {
        "table": "willow-2",
        "title": "A title",
        "scale": "small",
        "command": "tagreel reproduce willow-2",
        "data": {"videos": 6000, "files": "train0.tfrecord"},
        "validation": {"videos": 2000, "files": "test0.tfrecord"},
        "classes": 120,
        "rows": rows,
        "claims": list(claims),
        **more,
    }


def test_the_table_has_both_figures_side_by_side_and_says_what_they_are():
    rows = {HIGH: _runs(0.5, 0.6), LOW: _runs(0.4)}
    claims = verdicts.judged(_result(rows), lambda a, b: False)
    text = markdown(_result(rows, claims), picture="p.png")
    assert "on 6,000 videos (train0.tfrecord, 120 classes), and scored on 2,000 (test0.tfrecord)" in text
    assert "**The figures here cannot be put beside the paper's**" in text
    assert "\n    tagreel reproduce willow-2\n" in text
    assert "![GAP@20 of every row](p.png)" in text
    [high] = [line for line in text.splitlines() if line.startswith(f"| `{HIGH}` ")]
    cells = [cell.strip() for cell in high.strip("|").split("|")]
    assert cells[1:] == [
        trials.cell([0.5, 0.6]),
        "0.8270",
        trials.cell([0.25, 0.3]),
        trials.cell([0.9, 0.9]),
        trials.cell([0.8, 0.8]),
        "1.25M",
        "168.09M",
        "2.0",
        "2",
    ]
    assert "Of 1 pairs of rows that the paper orders, 1 have the same order here." in text
    assert f"`{HIGH}` before `{LOW}` | +0.1000 (one run) | +0.0050 | not shown |" in text
    assert "One run says nothing of chance" in text


def test_a_table_of_the_published_size_says_so():
    text = markdown(_result({HIGH: _runs(0.5)}, scale="paper", classes=None), picture="p.png")
    assert "Models of the published size, trained as published: on 6,000 videos (train0.tfrecord)," in text
    assert "None of the claims has both of its rows here." in text


@pytest.mark.parametrize("table", ["willow-2", "willow-datasize"])
def test_a_table_is_drawn(table, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'tagreel[bench]'")
    rows = {row: _runs(0.5, 0.6, 0.55) for row in TABLES[table].rows}
    verdicts.draw(_result(rows, table=table), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
