from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from tagreel.chart import Line, line_chart, write_page


def _svg(picture):
    return ET.fromstring(re.search(r"<svg.*</svg>", picture, re.DOTALL)[0])


def _line(*values, reference=0.5):
    return Line(values=values, notes=[f"note {value} & <b>" for value in values], reference=reference)


def test_a_point_is_where_its_value_says():
    picture = line_chart({"a": _line(0.5, 0.6, 0.7), "b": _line(0.55, 0.8)}, x="members", y="GAP@20")
    svg = _svg(picture)
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in svg.iter("circle")]
    ticks = {
        float(text.text): float(text.get("y")) - 4
        for text in svg.iter("text")
        if re.fullmatch(r"0\.\d+", text.text)
    }
    low, high = min(ticks), max(ticks)
    for (_, y), value in zip(dots, (0.5, 0.6, 0.7, 0.55, 0.8), strict=True):
        share = (value - low) / (high - low)
        assert y == pytest.approx(ticks[low] + share * (ticks[high] - ticks[low]), abs=0.2)
    assert dots[0][0] == dots[3][0] < dots[1][0] == dots[4][0] < dots[2][0]
    assert next(svg.iter("title")).text == "note 0.5 & <b>"
    places = [text.text for text in svg.iter("text") if text.text.isdigit()]
    assert places == ["1", "2", "3"]


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5), (0.0,), (1e-7, 2e-7), (0.1, 123456.0), (-0.3, 0.4)])
def test_any_values_fit_in_the_picture(values):
    svg = _svg(line_chart({"a": _line(*values, reference=values[0])}, x="x", y="y"))
    for dot in svg.iter("circle"):
        assert 0 <= float(dot.get("cx")) <= 760
        assert 0 <= float(dot.get("cy")) <= 360
    labels = [text.text for text in svg.iter("text")]
    assert len(set(labels)) == len(labels)


def test_many_members_are_numbered_now_and_then():
    svg = _svg(line_chart({"a": _line(*(n / 100 for n in range(75)))}, x="x", y="y"))
    assert [t.text for t in svg.iter("text") if t.text.isdigit()][:3] == ["1", "5", "9"]


def test_the_page_is_whole_and_names_are_text(tmp_path):
    path = tmp_path / "report" / "page.html"
    write_page(
        path,
        title="<b>a & b",
        notes=["<i>"],
        picture=line_chart({"<u>": _line(0.5)}, x="x", y="y"),
        rows=[["name", "n"], ["<script>", "1"]],
    )
    text = path.read_text(encoding="utf-8")
    assert "<h1>&lt;b&gt;a &amp; b</h1>" in text
    for tag in ("<b>", "<i>", "<u>", "<script>"):
        assert tag not in text
    assert '<tr><td class="name">&lt;script&gt;</td><td>1</td></tr>' in text
    assert "http" not in text.replace("http-equiv", "")
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
