from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagreel.errors import TagreelError
from tagreel.report import ClassScore, Report

HOSTILE = "</script><b>x<!--"


def make_report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "title": "NeXtVLAD on the validation set",
        "recipe": "nextvlad/single",
        "data": ["validate00.tfrecord", "validate01.tfrecord"],
        "checkpoint": "runs/nextvlad/best",
        "step": 120_000,
        "videos": 111_236,
        "classes": 3,
        "parameters": 79_104_230,
        "seconds": 724.0,
        "metrics": {"perr": 0.7902, "gap@20": 0.8694, "own": 0.25, "calibration_error": 0.0031},
        "history": [{"step": 100, "loss": 4.5, "gap@20": 0.5}, {"step": 200, "loss": 4.0, "gap@20": 0.6}],
        "validations": [{"step": 200, "gap@20": 0.61, "map": 0.3}],
        "precision_recall": {"recall": [0.0, 0.5, 1.0], "precision": [1.0, 0.9, 0.1]},
        "calibration": {"score": [0.01, 0.6], "frequency": [0.02, 0.5], "count": [900, 100]},
        "per_class": [
            one_class(0, "Game", ap=0.9, support=40, train_count=1000),
            one_class(1, HOSTILE, ap=0.2, support=20, train_count=500),
            one_class(2, "never seen", ap=None, support=0, train_count=7),
        ],
    }
    return Report(**{**values, **changes})


def one_class(
    number: int, name: str, *, ap: float | None, support: int = 10, train_count: int | None = None
) -> ClassScore:
    return {"id": number, "name": name, "ap": ap, "support": support, "train_count": train_count}


class Page(HTMLParser):
    """The elements of a page as a browser would find them: tags with attributes, and the text of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contents: list[tuple[str, dict[str, str | None], str]] = []
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.contents.append((*self.tags[-1], data) if self.tags else ("", {}, data))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def text_of(self, tag: str, **attributes: str) -> list[str]:
        return [
            text
            for name, found, text in self.contents
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]

    def payload(self) -> Any:
        return json.loads("".join(self.text_of("script", id="data")))


# -- values and JSON


def test_a_report_survives_strict_json() -> None:
    report = make_report(best_possible={"gap@20": 0.9})
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report


def test_arrays_tensors_and_their_scalars_become_plain_values() -> None:
    report = make_report(
        step=np.int64(5),
        seconds=torch.tensor(2.5),
        metrics={"gap@20": np.float32(0.5)},
        precision_recall={"recall": np.array([0.0, 1.0]), "precision": torch.tensor([1.0, 0.5])},
        data=("a", "b"),
    )
    assert type(report.step) is int
    assert report.seconds == 2.5
    assert report.metrics == {"gap@20": 0.5}
    assert report.precision_recall == {"recall": [0.0, 1.0], "precision": [1.0, 0.5]}
    assert report.data == ["a", "b"]
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_what_is_not_finite_becomes_none_wherever_it_stands() -> None:
    report = make_report(
        metrics={"gap@20": math.nan},
        history=[{"step": 1, "loss": math.inf}],
        precision_recall={"recall": np.array([0.0, np.nan]), "precision": [1.0, -math.inf]},
    )
    assert report.metrics == {"gap@20": None}
    assert report.history == [{"step": 1, "loss": None}]
    assert report.precision_recall == {"recall": [0.0, None], "precision": [1.0, None]}
    assert "NaN" not in "".join(Page(report.html()).text_of("script", id="data"))
    assert "GAP@20              –" in report.text()


def test_an_unknown_field_is_named_together_with_those_there_are() -> None:
    with pytest.raises(TagreelError, match=r"no field 'gap'; it has: title, recipe, .*per_class"):
        Report.from_json({**make_report().to_json(), "gap": 1})


def test_a_missing_field_is_named() -> None:
    values = make_report().to_json()
    del values["recipe"]
    with pytest.raises(TagreelError, match="recipe"):
        Report.from_json(values)


def test_curves_need_their_columns_in_one_length() -> None:
    with pytest.raises(TagreelError, match="2 of recall, 1 of precision"):
        make_report(precision_recall={"recall": [0, 1], "precision": [1]})
    with pytest.raises(
        TagreelError, match="calibration has score, count; it should have score, frequency, count"
    ):
        make_report(calibration={"score": [0.5], "count": [1]})


# -- best and worst classes


def test_extremes_are_what_sorting_by_ap_finds_among_classes_with_enough_videos() -> None:
    numbers = np.random.default_rng(0)
    classes = [
        one_class(i, f"c{i}", ap=None if i % 9 == 0 else float(numbers.random()), support=i % 9 * 4)
        for i in range(200)
    ]
    minimum, best, worst = make_report(per_class=classes).extremes(count=15)
    assert minimum == 10
    ranked = sorted(each["ap"] for each in classes if each["ap"] is not None and each["support"] >= 10)
    assert [each["ap"] for each in best] == ranked[::-1][:15]
    assert [each["ap"] for each in worst] == ranked[:15]


def test_with_few_classes_all_that_have_videos_count_and_none_is_both_best_and_worst() -> None:
    classes = [one_class(i, f"c{i}", ap=i / 10, support=1 + i) for i in range(5)]
    minimum, best, worst = make_report(per_class=classes).extremes()
    assert minimum == 1
    assert [each["id"] for each in best] == [4, 3, 2]
    assert [each["id"] for each in worst] == [0, 1]


def test_a_tie_goes_to_the_class_with_more_videos() -> None:
    classes = [one_class(i, f"c{i}", ap=0.5, support=1 + i) for i in range(4)]
    _, best, worst = make_report(per_class=classes).extremes(count=1)
    assert [each["id"] for each in best + worst] == [3, 2]


def test_without_scored_classes_there_are_no_extremes() -> None:
    assert make_report(per_class=[one_class(0, "a", ap=None, support=0)]).extremes()[1:] == ([], [])


# -- text


def test_the_text_says_what_was_measured_and_how_fast() -> None:
    lines = make_report().text().splitlines()
    assert lines[:6] == [
        "NeXtVLAD on the validation set",
        "recipe      nextvlad/single",
        "checkpoint  runs/nextvlad/best, step 120,000",
        "data        validate00.tfrecord, validate01.tfrecord",
        "size        111,236 videos, 3 classes, 79,104,230 parameters",
        "time        12 m 04 s, 154 videos/s",
    ]


def test_metrics_stand_in_their_usual_order_and_foreign_ones_after_them() -> None:
    text = make_report().text()
    wanted = [
        "GAP@20              0.8694",
        "PERR                0.7902",
        "calibration error   0.0031",
        "own  ",
    ]
    places = [text.index(line) for line in wanted]
    assert places == sorted(places)
    assert "mAP" not in text


def test_a_best_possible_score_is_shown_with_the_share_reached() -> None:
    report = make_report(best_possible={"gap@20": 0.9, "calibration_error": 0.001})
    assert "0.8694   96.6 % of the best possible 0.9000" in report.text()
    # for an error less is better, so a share of it means nothing
    assert "0.0031   the best possible 0.0010" in report.text()


def test_a_small_error_keeps_its_digits() -> None:
    assert "calibration error   0.000081\n" in make_report(metrics={"calibration_error": 0.000081}).text()


def test_the_text_lists_best_and_worst_classes_with_their_videos() -> None:
    text = make_report().text()
    assert "best classes by AP, of those with 1 or more videos\n0.9000          40 videos   Game\n" in text
    assert (
        f"worst classes by AP, of those with 1 or more videos\n0.2000          20 videos   {HOSTILE}\n"
        in text
    )
    assert "never seen" not in text


def test_names_cannot_steer_the_terminal() -> None:
    text = make_report(title="a\x1b[2Jb", per_class=[one_class(0, "c\nd\x07", ap=0.5)]).text()
    assert "a\N{REPLACEMENT CHARACTER}[2Jb" in text
    assert "c\N{REPLACEMENT CHARACTER}d\N{REPLACEMENT CHARACTER}" in text


def test_many_data_files_are_shortened_to_a_count() -> None:
    text = make_report(data=[f"v{i}" for i in range(3844)]).text()
    assert "data        v0, v1, v2, 3,841 more\n" in text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0.0 s\n"), (2.31, "2.3 s, "), (59.9, "60 s, "), (60.0, "1 m 00 s, "), (3725.0, "1 h 02 m, ")],
)
def test_durations_read_naturally(seconds: float, shown: str) -> None:
    assert f"time        {shown}" in make_report(seconds=seconds).text()


# -- the page


def test_the_page_carries_the_whole_report() -> None:
    report = make_report(best_possible={"gap@20": 0.9})
    payload = Page(report.html()).payload()
    assert Report.from_json(payload["report"]) == report
    assert [metric["label"] for metric in payload["metrics"]] == [
        "GAP@20",
        "PERR",
        "calibration error",
        "own",
    ]
    assert payload["metrics"][0]["share"] == pytest.approx(0.966)
    assert payload["extremes"]["minimum"] == 1
    assert [each["name"] for each in payload["extremes"]["best"]] == ["Game"]


def test_names_never_become_html() -> None:
    report = make_report(title=HOSTILE, recipe=HOSTILE, checkpoint='"><img src=x>')
    page = Page(report.html())
    assert {tag for tag, _ in page.tags} == {
        *("html", "head", "meta", "title", "style", "body", "main", "noscript", "p", "pre", "script")
    }
    assert page.text_of("title")[0] == HOSTILE
    assert page.payload()["report"]["per_class"][1]["name"] == HOSTILE
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert len(page.comments) == 2


def test_the_script_writes_names_as_text_only() -> None:
    script = files("tagreel").joinpath("assets/report.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", script)


def test_the_page_refers_to_nothing_outside_itself() -> None:
    html = make_report().html()
    page = Page(html)
    assert not [
        attributes for _, attributes in page.tags if {"src", "href", "srcset", "data"} & set(attributes)
    ]
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", html)
    # the banner that uPlot's licence asks to keep is the only address in the page, and it is a comment
    assert re.findall(r"https?://[^\s*]+", html) == ["https://github.com/leeoniya/uPlot"]
    policy = next(
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") and tag == "meta"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"https?:|\*|connect-src|img-src", policy)


def test_the_page_keeps_the_licence_of_what_it_contains() -> None:
    assert any(
        "MIT License" in text and "Leon Sorokin" in text for text in Page(make_report().html()).comments
    )


def test_without_javascript_the_page_shows_the_text() -> None:
    report = make_report()
    assert "".join(Page(report.html()).text_of("pre")).rstrip("\n") == report.text().rstrip("\n")


def test_a_report_without_curves_and_classes_is_still_a_page() -> None:
    report = make_report(history=(), validations=(), precision_recall={}, calibration={}, per_class=())
    payload = Page(report.html()).payload()
    assert payload["extremes"] == {"minimum": 1, "best": [], "worst": []}
    assert "classes by AP" not in report.text()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to parse the script of the page")
def test_the_script_of_the_page_is_javascript() -> None:
    with as_file(files("tagreel").joinpath("assets/report.js")) as script:
        subprocess.run(["node", "--check", script], check=True)


# -- files


def test_write_makes_the_folder_and_two_files(tmp_path: Path) -> None:
    report = make_report()
    as_json, as_html = report.write(tmp_path / "runs" / "first")
    assert sorted(path.name for path in (tmp_path / "runs" / "first").iterdir()) == [
        "report.html",
        "report.json",
    ]
    assert as_html.read_text(encoding="utf-8") == report.html()
    assert (
        Report.from_json(json.loads(as_json.read_text(encoding="utf-8"), parse_constant=pytest.fail))
        == report
    )


def test_a_write_that_fails_leaves_the_earlier_report_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_report()
    before.write(tmp_path)

    def full(source: Path, target: Path) -> None:
        assert source.parent == target.parent, "only a rename within one folder is atomic"
        assert os.path.getsize(source) > 0
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        make_report(title="after").write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert Report.from_json(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))) == before


def test_file_names_that_are_no_utf8_do_not_stop_the_report(tmp_path: Path) -> None:
    report = make_report(data=[os.fsdecode(b"caf\xe9.tfrecord")])
    as_json, _ = report.write(tmp_path)
    assert json.loads(as_json.read_text(encoding="utf-8"))["data"] == ["caf?.tfrecord"]
