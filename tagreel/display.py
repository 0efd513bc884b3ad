"""What the terminal shows: one line an event, a bar where somebody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def training_lines(say: Callable[[str], None]) -> Callable[[dict[str, Any]], None]:
    """One aligned line an event."""

    def show(row: dict[str, Any]) -> None:
        if row["event"] == "start":
            verb = f"resuming at step {row['step']:,}" if row["resumed"] else "training"
            say(
                f"{verb}: {row['parameters']:,} parameters, {row['videos']:,} videos, "
                f"{row['steps']:,} steps, on {row['device']}"
                + (f", from {row['taken']:,} tensors of another run" if row["taken"] else "")
            )
        elif row["event"] == "member":
            say(f"\nmember {row['number']} of {row['members']}: {row['name']}")
        elif row["event"] == "teacher":
            if row["distill"]:
                say(f"{row['distill']:.0%} of what is learnt is what the teacher says, the rest the labels")
            if row["forgiven"]:
                say(f"the teacher's likeliest negatives, {row['forgiven']:,} in all, are forgiven")
        elif row["event"] == "train":
            gap = f"GAP@20 {row['gap@20']:.4f}   " if "gap@20" in row else ""  # a pretraining has none
            say(
                f"step {row['step']:>9,}   loss {row['loss']:<8.4g}   {gap}"
                f"{row['videos_per_second']:>7,.0f} videos/s   waiting {row['waiting']:>4.0%}   "
                f"eta {duration(row['eta_seconds'])}"
            )
        elif row["event"] == "validate":
            shown = (
                f"error {row['error']:.4g}   explained {row['explained']:.2%}"
                if "error" in row
                else (
                    f"GAP@20 {row['gap@20']:.4f}   mAP {row['map']:.4f}   Hit@1 {row['hit@1']:.4f}   "
                    f"PERR {row['perr']:.4f}"
                )
            )
            when = f"validated at {row['step']:,} (epoch {row['epoch']:g})"
            say(f"{when}   {shown}   in {duration(row['seconds'])}")

    return show


def duration(seconds: float) -> str:
    """A time as a person says it: 45s, 12m, 3h05m."""
    if seconds < 100:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02d}m"


def clock(second: float) -> str:
    """A place in a film as a player shows it: 0:07, 12:31, 1:02:09."""
    minutes, rest = divmod(int(second), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress(verb: str, total: int = 0, *, unit: str = "videos") -> Iterator[Callable[..., None]]:
    """A bar with rate and time left on a terminal; nothing where nobody looks.

    What is yielded is called with how many are done, and of how many if that was not known before.
    """
    if not sys.stderr.isatty():
        yield lambda done, of=total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}   {task.fields[rate]:,.0f}"),
        TextColumn("{task.fields[unit]}/s   eta"),
        TimeRemainingColumn(),
    )
    began = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=total, rate=0.0, unit=unit)

        def advance(done: int, of: int = total) -> None:
            bar.update(task, completed=done, total=of, rate=done / max(time.perf_counter() - began, 1e-9))

        yield advance
