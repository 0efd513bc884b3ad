"""A run's log: one JSON object an event in log.jsonl, the same to a display and to TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from tagreel.distributed import ALONE, Ranks
from tagreel.errors import RecipeError
from tagreel.files import write_text
from tagreel.loader import Loader

Row = dict[str, Any]


class Meter:
    """Loss, rate and waiting since the last log line; the clock stands while something else is done.

    Of several `ranks` each adds what it has done; what is told is told of all, the time but this one's.
    """

    def __init__(self, batches: Loader, ranks: Ranks = ALONE) -> None:
        self.batches, self.ranks = batches, ranks
        self.loss: Tensor | float = 0.0
        self.videos = 0
        self.seconds = self.waited = 0.0
        self.resume()

    def add(self, loss: Tensor, videos: int) -> None:
        """Count the mean loss of so many videos, without waiting for its value."""
        self.loss = self.loss + loss.detach() * videos
        self.videos += videos

    def resume(self) -> None:
        """Let the clock run."""
        self.began, self.waited_before = time.perf_counter(), self.batches.waited

    def pause(self) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self.began
        self.waited += self.batches.waited - self.waited_before
        self.resume()

    def check(self, step: int) -> None:
        """Raise unless the losses so far are finite; weights behind one that is not are lost."""
        self._totals(step)

    def _totals(self, step: int) -> tuple[float, float]:
        """The losses of all videos on all ranks, and how many these are."""
        loss, videos = self.ranks.add_up(float(self.loss), self.videos)
        if not math.isfinite(loss):
            raise RecipeError(
                f"the loss is {loss} at step {step:,}; a lower learning rate "
                "(--set training.optimizer.lr=...) or training.clip_norm usually helps"
            )
        return loss, videos

    def close(self, step: int) -> Row:
        """Mean loss, videos a second and the share of time spent waiting for data; begin anew."""
        loss, videos = self._totals(step)
        row = {
            "loss": loss / videos,
            "videos_per_second": videos / self.seconds,
            "waiting": min(self.waited / self.seconds, 1.0),
        }
        self.loss, self.videos, self.seconds, self.waited = 0.0, 0, 0.0, 0.0
        return row


class Log:
    """log.jsonl, the caller's own display, and TensorBoard when it is asked for."""

    def __init__(
        self,
        out: Path,
        step: int,
        *,
        open_writer: Callable[..., Any] | None,
        on_event: Callable[[Row], None],
    ) -> None:
        self.on_event = on_event
        path = out / "log.jsonl"
        # A killed run may have logged steps that the resumed one takes again.
        kept = [line for line in read_log(out) if line.get("step", 0) <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = path.open("a", buffering=1, encoding="utf-8")
        self.writer: Any = None
        if open_writer is not None:
            self.writer = open_writer(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def event(self, kind: str, **values: Any) -> None:
        """Note one thing that happened."""
        row = {"event": kind, **values}
        self.file.write(json.dumps(row) + "\n")
        self.on_event(row)
        if self.writer is not None and kind in ("train", "validate"):
            for name, value in values.items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"{kind}/{name}", value, values["step"])

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.writer is not None:
            self.writer.close()


def summary_writer() -> Callable[..., Any]:
    """TensorBoard's writer; asked for before a run's folder is touched."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(
            "TensorBoard is not installed; it comes with: pip install 'tagreel[track]'"
        ) from error
    return SummaryWriter


def read_log(run: Path) -> list[Row]:
    """The events of a run's log, oldest first; a last line cut by a kill is left out."""
    path = run / "log.jsonl"
    rows: list[Row] = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or "event" not in row:
            break
        rows.append(row)
    return rows
