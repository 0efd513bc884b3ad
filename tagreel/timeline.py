"""A page that shows when tags apply: the player, and every tag as a lane on the video's timeline.

The page is whole in itself: its content security policy forbids it to fetch anything but the videos that lie
beside it, and to run any script but its own. Names of tags and files are a user's data, and reach the page as
text, never as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import mimetypes
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from tagreel.display import clock
from tagreel.evidence import Interval

_POINTS = 600  # across a lane; of more seconds each point shows the highest of some
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


@dataclass(frozen=True, slots=True)
class Lane:
    """A tag of a video: name and probability, what each second says for it, (T,) in 0 ... 1, and where."""

    name: str
    probability: float
    evidence: Sequence[float]
    intervals: Sequence[Interval]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A video of `seconds` and its tags in the order in which they are shown.

    `source` is the path of its file as seen from the page; None where there is nothing to play.
    """

    title: str
    source: str | None
    seconds: int
    tags: Sequence[Lane]

    def to_json(self) -> dict[str, Any]:
        """The timeline as plain values, under the names of its fields; evidence to four decimals."""
        tags = [
            {
                "name": lane.name,
                "probability": float(lane.probability),
                "evidence": np.asarray(lane.evidence, np.float64).round(4).tolist(),
                "intervals": [asdict(interval) for interval in lane.intervals],
            }
            for lane in self.tags
        ]
        return {"title": self.title, "source": self.source, "seconds": self.seconds, "tags": tags}


def page(videos: Sequence[Timeline]) -> str:
    """One HTML page of one or several videos, which needs nothing but a browser and their files."""
    script = _asset("timeline.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = videos[0].title if len(videos) == 1 else f"{len(videos):,} videos"
    return Template(_asset("timeline.html")).substitute(
        title=html.escape(title),
        digest=digest,
        style=_asset("report.css") + _asset("timeline.css"),
        videos="".join(_section(video, named=len(videos) > 1) for video in videos),
        script=script,
    )


_SECTION = Template("""<section data-seconds="$seconds">
$heading$player<div class="lanes">
<span class="time" aria-hidden="true">0:00</span>
<div class="axis">$ticks
<input type="range" min="0" max="$seconds" step="0.1" value="0" aria-label="Time" aria-valuetext="0:00"></div>
$lanes</div>
</section>
""")

_PLAYER = Template("""<div class="player"><$kind src="$url" controls preload="metadata"></$kind>
<p class="problem" hidden>$source cannot be played here: it is not where the page expects it, or this browser
does not know its format.</p></div>
""")

_LANE = Template("""<span class="name">$name</span><span class="share">$share</span>
<div class="lane"><svg viewBox="0 0 $seconds 1" preserveAspectRatio="none" aria-hidden="true">
<path d="$area"/></svg>$places<i class="cursor"></i></div>
""")

_PLACE = Template(
    '<button type="button" style="left:$left%;width:$width%" data-start="$start" '
    'aria-label="$told" title="$told"></button>'
)


def _section(video: Timeline, *, named: bool) -> str:
    return _SECTION.substitute(
        seconds=video.seconds,
        heading=f"<h2>{html.escape(video.title)}</h2>\n" if named else "",
        player="" if video.source is None else _player(video.source),
        ticks="".join(_ticks(video.seconds)),
        lanes="".join(_lane(lane, video.seconds) for lane in video.tags)
        or '<p class="none">No tag is probable enough to be shown.</p>',
    )


def _player(source: str) -> str:
    """A player of the file, whose name is a path: no name can make it an address elsewhere."""
    path = quote(source, safe="/")
    is_audio = (mimetypes.guess_type(source)[0] or "").startswith("audio/")
    return _PLAYER.substitute(
        kind="audio" if is_audio else "video",
        url=html.escape("/" + path.lstrip("/") if path.startswith("/") else f"./{path}"),
        source=html.escape(source),
    )


def _lane(lane: Lane, seconds: int) -> str:
    return _LANE.substitute(
        name=html.escape(lane.name),
        share=_percent(lane.probability),
        seconds=seconds,
        area=_area(lane.evidence),
        places="".join(_place(lane.name, interval, seconds) for interval in lane.intervals),
    )


def _place(name: str, interval: Interval, seconds: int) -> str:
    told = f"{name}, {clock(interval.start)} to {clock(interval.end)}"
    return _PLACE.substitute(
        left=f"{100 * interval.start / seconds:.3f}",
        width=f"{100 * (interval.end - interval.start) / seconds:.3f}",
        start=interval.start,
        told=html.escape(told),
    )


def _area(evidence: Sequence[float]) -> str:
    """The outline of the evidence as steps of one second, or of some: 0 at the bottom, 1 on top."""
    values = np.asarray(evidence, np.float64).clip(0.0, 1.0)
    width = max(-(-len(values) // _POINTS), 1)
    steps = []
    for at in range(0, len(values), width):
        steps.append(f"V{1 - values[at : at + width].max():.3f}H{min(at + width, len(values))}")
    return f"M0 1{''.join(steps)}V1Z"


def _ticks(seconds: int) -> Iterator[str]:
    """At most five times along the axis; one at the very end is set to its left."""
    step = next((step for step in _STEPS if seconds / step <= 4), _STEPS[-1])
    for at in range(0, seconds + 1, step):
        last = ' class="last"' if at and at > 0.94 * seconds else ""
        yield f'<span{last} style="left:{100 * at / seconds:.3f}%">{clock(at)}</span>'


def _percent(probability: float) -> str:
    """Whole percents; what is nearly certain, or nearly impossible, is not said to be so."""
    return f"{min(max(round(100 * probability), 1), 99)} %"


def _asset(name: str) -> str:
    return files("tagreel").joinpath("assets", name).read_text(encoding="utf-8")
