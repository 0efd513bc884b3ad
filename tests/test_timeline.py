from __future__ import annotations

import json
import math
import re
import shutil
import struct
import wave
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tagreel.evidence import Interval
from tagreel.timeline import Lane, Timeline, page

HOSTILE = """</script><img src=x onerror="document.title='broken'">&"' $title"""
CLIP = Path(__file__).parents[2] / "shared" / "data" / "clips" / "big_buck_bunny_0_30.webm"


def _lane(name="guitar", probability=0.83, evidence=(0, 0, 0, 1, 0.5, 0.5, 0, 0, 0, 0), places=((3, 6, 3),)):
    return Lane(name, probability, evidence, [Interval(*place) for place in places])


def _timeline(*tags, title="a song", source=None, seconds=10):
    return Timeline(title, source, seconds, tags)


class Elements(HTMLParser):
    """The elements of a page as a browser finds them, and its text outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self._inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("style", "script"):
            self.text.append(data)

    def named(self, tag):
        return [attributes for found, attributes in self.found if found == tag]


def test_every_tag_has_a_lane_with_its_probability_and_places():
    text = page([_timeline(_lane(), _lane("drums", 0.999, places=()), _lane("bell", 0.001, places=()))])
    elements = Elements(text)
    assert [a["class"] for a in elements.named("div")].count("lane") == 3
    assert {"guitar", "drums", "bell", "83 %", "99 %", "1 %"} <= {part.strip() for part in elements.text}
    [place] = elements.named("button")
    assert place["aria-label"] == place["title"] == "guitar, 0:03 to 0:06"
    assert place["style"] == "left:30.000%;width:30.000%"
    assert place["data-start"] == "3"
    assert elements.named("video") == elements.named("audio") == []


def test_the_outline_is_the_evidence():
    [lane, *_] = Elements(page([_timeline(_lane())])).named("path")
    expected = "M0 1V1.000H1V1.000H2V1.000H3V0.000H4V0.500H5V0.500H6V1.000H7V1.000H8V1.000H9V1.000H10V1Z"
    assert lane["d"] == expected


def test_of_hours_the_highest_of_some_seconds_is_drawn():
    evidence = np.zeros(7200)
    evidence[4321] = 0.75
    [lane] = Elements(page([_timeline(_lane(evidence=evidence), seconds=7200)])).named("path")
    steps = re.findall(r"V([\d.]+)H(\d+)", lane["d"])
    assert len(steps) == 600
    assert [(height, at) for height, at in steps if height != "1.000"] == [("0.250", "4332")]
    assert int(steps[-1][1]) == 7200


@pytest.mark.parametrize("seconds", [1, 2, 7, 30, 59, 60, 301, 3599, 3600, 7200, 36_000, 400_000])
def test_times_along_the_axis_are_few_and_round(seconds):
    text = page([_timeline(seconds=seconds)])
    ticks = re.findall(r'<span(?: class="last")? style="left:([\d.]+)%">([\d:]+)</span>', text)
    assert 2 <= len(ticks) <= 5
    for left, told in ticks:
        at = sum(int(part) * 60**power for power, part in enumerate(reversed(told.split(":"))))
        assert float(left) == pytest.approx(100 * at / seconds, abs=1e-3)


@pytest.mark.parametrize(
    ("source", "kind", "url"),
    [
        ("clip.mp4", "video", "./clip.mp4"),
        ("../my clips/a & b #1?.webm", "video", "./../my%20clips/a%20%26%20b%20%231%3F.webm"),
        ("song.mp3", "audio", "./song.mp3"),
        ("/home/me/song.flac", "audio", "/home/me/song.flac"),
        ("//elsewhere.example/x.mp4", "video", "/elsewhere.example/x.mp4"),
        ("https://elsewhere.example/x.mp4", "video", "./https%3A//elsewhere.example/x.mp4"),
        ("javascript:alert(1)", "video", "./javascript%3Aalert%281%29"),
        ('" onerror="x', "video", "./%22%20onerror%3D%22x"),
    ],
)
def test_a_source_is_a_path_whatever_its_name(source, kind, url):
    [player] = Elements(page([_timeline(source=source)])).named(kind)
    assert player["src"] == url
    assert player.keys() == {"src", "controls", "preload"}


def test_hostile_names_are_text():
    text = page([_timeline(_lane(HOSTILE), title=HOSTILE, source=HOSTILE), _timeline(title=HOSTILE)])
    elements = Elements(text)
    assert elements.named("img") == []
    assert len(elements.named("script")) == 1
    assert "".join(elements.text).count(HOSTILE) == 4
    assert elements.named("button")[0]["title"] == f"{HOSTILE}, 0:03 to 0:06"


def test_nothing_is_fetched_and_no_other_script_runs():
    text = page([_timeline(_lane(), source="a.mp4")])
    elements = Elements(text)
    assert not [a for _, a in elements.found if "href" in a or (a.get("src") and a["src"] != "./a.mp4")]
    [policy] = [a["content"] for a in elements.named("meta") if "http-equiv" in a]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert not re.search(r"url\(|@import|https?://", text)


def test_a_video_without_tags_says_so_and_several_have_headings():
    assert "No tag is probable enough" in page([_timeline()])
    elements = Elements(page([_timeline(title="one"), _timeline(title="two")]))
    assert len(elements.named("section")) == len(elements.named("h2")) == 2
    assert "2 videos" in elements.text


def test_json_says_the_same():
    timeline = _timeline(_lane(evidence=np.array([0.12345678, 1.0], np.float32)), source="a.mp4", seconds=2)
    found = json.loads(json.dumps(timeline.to_json(), allow_nan=False))
    assert found == {
        "title": "a song",
        "source": "a.mp4",
        "seconds": 2,
        "tags": [
            {
                "name": "guitar",
                "probability": 0.83,
                "evidence": [0.1235, 1.0],
                "intervals": [{"start": 3, "end": 6, "peak": 3}],
            }
        ],
    }


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium here")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required"
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium, args=flags.split())
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, tmp_path):
    """`opened(*timelines, width=...)`: their page, whose files lie in `tmp_path`; no fault may be logged."""
    faults = []

    def show(*timelines, width=1280, **options):
        file = tmp_path / "page.html"
        file.write_text(page(timelines), encoding="utf-8")
        view = browser.new_page(viewport={"width": width, "height": 900}, **options)
        view.on("console", lambda message: faults.append(message.text))
        view.on("pageerror", lambda error: faults.append(str(error)))
        view.on("request", lambda request: faults.append(request.url) if "file:" not in request.url else None)
        view.goto(file.as_uri())
        return view

    yield show
    assert not faults


def _tone(path, seconds):
    """A quiet tone as a file that every browser plays."""
    samples = [round(3000 * math.sin(n / 5)) for n in range(8000)]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        for _ in range(seconds):
            file.writeframes(struct.pack("<8000h", *samples))


def _wait_until(view, condition):
    """`view.wait_for_function` for a page whose policy forbids to run strings."""
    for _ in range(200):
        if view.evaluate(condition):
            return
        view.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}")


def _time_of(view, player):
    _wait_until(view, f"!document.querySelector('{player}').seeking")
    return view.evaluate(f"document.querySelector('{player}').currentTime")


def _cursor(view):
    box = view.locator(".lane").first.bounding_box()
    return (view.locator(".cursor").first.bounding_box()["x"] + 1 - box["x"]) / box["width"]


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_click_on_a_lane_jumps_there(opened, tmp_path, kind):
    if kind == "audio":
        source = "a tone & more.wav"
        _tone(tmp_path / source, 30)
    elif CLIP.exists():
        source = "a clip.webm"
        shutil.copyfile(CLIP, tmp_path / source)
    else:
        pytest.skip("needs ../shared/data/clips")
    lane = _lane(HOSTILE, evidence=np.linspace(0, 1, 30), places=((6, 12, 8), (21, 30, 29)))
    view = opened(_timeline(lane, _lane("other"), title=HOSTILE, source=source, seconds=30))
    _wait_until(view, f"document.querySelector('{kind}').readyState >= 1")
    assert view.title() == HOSTILE
    box = view.locator(".lane").nth(1).bounding_box()
    view.mouse.click(box["x"] + box["width"] / 2 + 1, box["y"] + 10)
    assert _time_of(view, kind) == pytest.approx(15, abs=0.1)
    assert _cursor(view) == pytest.approx(0.5, abs=0.01)
    assert view.locator(".time").inner_text() == "0:15"
    # inside an interval as well: where the click was, not where the interval begins
    view.mouse.click(box["x"] + box["width"] * 0.3, view.locator(".lane").first.bounding_box()["y"] + 5)
    assert _time_of(view, kind) == pytest.approx(9, abs=0.1)


def test_the_keyboard_goes_from_place_to_place_and_along_the_axis(opened, tmp_path):
    _tone(tmp_path / "tone.wav", 30)
    view = opened(_timeline(_lane(places=((6, 12, 8), (21, 27, 22))), source="tone.wav", seconds=30))
    _wait_until(view, "document.querySelector('audio').readyState >= 1")
    view.get_by_role("button", name="guitar, 0:21 to 0:27").focus()
    view.keyboard.press("Enter")
    assert _time_of(view, "audio") == pytest.approx(21, abs=0.1)
    view.keyboard.press("Shift+Tab")
    view.keyboard.press("Space")
    assert _time_of(view, "audio") == pytest.approx(6, abs=0.1)
    view.keyboard.press("Shift+Tab")
    assert view.evaluate("document.activeElement.getAttribute('aria-label')") == "Time"
    view.keyboard.press("End")
    assert _time_of(view, "audio") == pytest.approx(30, abs=0.2)
    view.keyboard.press("ArrowLeft")
    assert _time_of(view, "audio") == pytest.approx(29.9, abs=0.15)
    assert view.locator("input").get_attribute("aria-valuetext") == "0:29"


def test_the_cursor_follows_what_plays(opened, tmp_path):
    _tone(tmp_path / "tone.wav", 4)
    view = opened(_timeline(_lane(), source="tone.wav", seconds=4))
    view.evaluate("document.querySelector('audio').play()")
    _wait_until(view, "document.querySelector('audio').currentTime > 0.6")
    view.evaluate("document.querySelector('audio').pause()")
    view.wait_for_timeout(300)
    at = _time_of(view, "audio")
    assert _cursor(view) == pytest.approx(at / 4, abs=0.02)


def test_without_a_file_the_lanes_can_still_be_read(opened):
    view = opened(_timeline(_lane(), seconds=10))
    box = view.locator(".lane").first.bounding_box()
    view.mouse.click(box["x"] + box["width"] * 0.7 + 1, box["y"] + 5)
    assert view.locator(".time").inner_text() == "0:07"
    assert _cursor(view) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("width", [360, 400, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(opened, width, scheme):
    timelines = [
        _timeline(_lane("a" * 80), _lane("several words of a long name"), seconds=seconds)
        for seconds in (1, 10, 36_000)
    ]
    view = opened(*timelines, width=width, color_scheme=scheme)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    ticks = view.locator(".axis span").all()
    for one, other in pairwise(ticks):
        left, right = one.bounding_box(), other.bounding_box()
        assert left["y"] != right["y"] or left["x"] + left["width"] <= right["x"]
    light = view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


def test_a_file_that_cannot_be_played_is_named(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page([_timeline(_lane(), source="gone.mp4")]), encoding="utf-8")
    view = browser.new_page()
    view.goto(file.as_uri())
    view.locator(".problem").wait_for(state="visible")
    assert view.locator(".problem").inner_text().startswith("gone.mp4 cannot be played here")
