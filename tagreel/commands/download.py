"""`tagreel download yt8m` and `audioset`: the official feature files."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from tagreel.commands._shared import LISTED, Json, finish, printer
from tagreel.display import duration
from tagreel.errors import RecipeError

if TYPE_CHECKING:
    from tagreel.download import Downloaded, File, Progress

app = typer.Typer(
    no_args_is_help=True,
    help="Fetch YouTube-8M or AudioSet: features and names of classes.",
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option(metavar="DIR", help="The folder for the files.")]
Mirror = Annotated[str, typer.Option(help="The nearest of us, eu and asia.")]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Fetch from a server of your own, with the same paths as the official one."
    ),
]
Jobs = Annotated[int, typer.Option(min=1, max=16, help="Files to fetch at once.")]
List = Annotated[bool, typer.Option("--list", help="Say what would be fetched, and fetch nothing.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Check the files that are there by their checksums, not their sizes.")
]


@app.command()
def yt8m(
    out: Out,
    level: Annotated[str, typer.Option(help="frame (a row a second) or video (their means).")] = "frame",
    split: Annotated[
        list[str],
        typer.Option(help="train, validate, test, segments or segments-test (rated in 2019). Several times."),
    ] = ["train", "validate"],  # noqa: B006
    shard: Annotated[
        str, typer.Option(metavar="I,N", help="Only part I of N: 1,100 is a hundredth of each split.")
    ] = "1,1",
    mirror: Mirror = "us",
    base: Base = None,
    jobs: Jobs = 4,
    list_only: List = False,
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Fetch YouTube-8M (2018, and the rated segments of 2019), whole or a part.

    All frames are 1.5 TB, all videos 31 GB. Each file is compared with its official checksum. The same
    command goes on where a stopped one was, and fetches nothing twice.

    Example: tagreel download yt8m --out yt8m --level video --shard 1,100
    """
    from tagreel.official import SPLITS, parse_shard, youtube8m

    say = printer(as_json)
    part = parse_shard(shard)
    files = youtube8m(level=level, splits=split, shard=part, mirror=mirror, base=base, say=say)
    if list_only:
        _list(files, out, jobs, as_json, say)
        return
    done = _fetch(files, out, jobs=jobs, verify=verify, needs=1, say=say)
    folders = {name: out / SPLITS[name].format(level=level) for name in split}
    next_commands = [f"tagreel check {folder}" for folder in folders.values()]
    if "train" in folders:
        recipe = "nextvlad-g8-d05-k128" if level == "frame" else "youtube8m-video-mlp"
        validate = f" --validate {folders['validate']}" if "validate" in folders else ""
        labels = out / "vocabulary.csv"
        next_commands.append(
            f"tagreel train {recipe} --data {folders['train']}{validate} --labels {labels} --out RUN"
        )
    _end(done, out, as_json, say, next_commands=next_commands)


@app.command()
def audioset(
    out: Out,
    mirror: Mirror = "us",
    base: Base = None,
    jobs: Jobs = 4,
    list_only: List = False,
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Fetch AudioSet: 2.1 million clips of ten seconds, 128 numbers a second, 2.4 GB, and unpack it.

    The same command goes on where a stopped one was, and fetches nothing twice.

    Example: tagreel download audioset --out audioset --mirror eu
    """
    from tagreel.official import ARCHIVE
    from tagreel.official import audioset as files_of_audioset
    from tagreel.unpack import unpack

    say = printer(as_json)
    files = files_of_audioset(mirror=mirror, base=base)
    if list_only:
        _list(files, out, jobs, as_json, say)
        return
    done = _fetch(files, out, jobs=jobs, verify=verify, needs=2, say=say)
    if ARCHIVE not in done.failed:
        archive = out / ARCHIVE
        with _shown("unpacking", say) as (show, _):
            size = archive.stat().st_size
            count = unpack(archive, out, verify=verify, on_bytes=lambda read: show(f"{read / size:.0%}"))
        say(f"{archive}: {count:,} files, unpacked")
    train, test = (out / "audioset_v1_embeddings" / name for name in ("bal_train", "eval"))
    next_commands = (
        f"tagreel check {train}",
        f"tagreel train audioset-attention --data {train} --validate {test} "
        f"--labels {out / 'class_labels_indices.csv'} --out RUN",
    )
    _end(done, out, as_json, say, next_commands=next_commands)


def _list(files: Sequence[File], out: Path, jobs: int, as_json: bool, say: Callable[[str], None]) -> None:
    """What would be fetched."""
    from tagreel.download import estimate, free_bytes, missing

    absent = missing(files, out)
    size = estimate(absent, jobs=jobs)
    for (source, folder), count in Counter(
        (file.url.rpartition("/")[0], PurePosixPath(file.path).parent) for file in files
    ).items():
        say(f"{count:>6,} {'file ' if count == 1 else 'files'}   from {source}   to {out / folder}")
    say(f"{_summary(files, absent, size)}; free there: {_bytes(free_bytes(out))}")
    listed = [{"url": file.url, "path": file.path, "checksum": file.checksum} for file in files]
    finish(as_json, {"out": str(out), "missing": len(absent), "bytes": size, "files": listed})


def _fetch(
    files: Sequence[File], out: Path, *, jobs: int, verify: bool, needs: int, say: Callable[[str], None]
) -> Downloaded:
    """Download, showing how far it is; raises `RecipeError` where `needs` times as much is not free."""
    from tagreel.download import download, estimate, free_bytes, missing

    absent = missing(files, out)
    size, free = estimate(absent, jobs=jobs), free_bytes(out)
    if size is not None and size * needs > free:
        raise RecipeError(
            f"{out}: needs about {_bytes(size * needs)}, {_bytes(free)} are free; take another disk, or of "
            "YouTube-8M a part: --shard 1,100"
        )
    say(_summary(files, absent, size))
    with _shown("fetching", say) as (show, tell):
        try:
            return download(
                files, out, jobs=jobs, verify=verify, on_progress=lambda at: show(_line(at)), say=tell
            )
        except KeyboardInterrupt:
            tell("stopped; the same command goes on from here")
            raise


def _end(
    done: Downloaded, out: Path, as_json: bool, say: Callable[[str], None], *, next_commands: Sequence[str]
) -> None:
    """Say what there is, what there is not, and what comes next; exit code 2 where something failed."""
    failed = [str(error) for error in done.failed.values()]
    say(f"{out}: {done.fetched:,} files fetched ({_bytes(done.received)}), {done.kept:,} there already")
    for line in failed[:LISTED]:
        print(f"tagreel: {line}", file=sys.stderr)  # noqa: T201
    if len(failed) > LISTED:
        print(f"tagreel: ... and {len(failed) - LISTED:,} more", file=sys.stderr)  # noqa: T201
    if failed:
        missing = "1 file is" if len(failed) == 1 else f"{len(failed):,} files are"
        say(f"{missing} missing; the same command tries again")
    else:
        for number, command in enumerate(next_commands):
            say(f"{'next:' if number == 0 else '     '} {command}")
    result = {"fetched": done.fetched, "kept": done.kept, "bytes": done.received, "failed": failed}
    finish(as_json, {"out": str(out), **result})
    if failed:
        raise typer.Exit(2)


@contextmanager
def _shown(
    verb: str, say: Callable[[str], None]
) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """How to show how far it is, and how to say something meanwhile.

    On a terminal a line that changes; elsewhere a line a minute, for a log that somebody reads tomorrow.
    """
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False)
        with console.status(verb) as status:
            yield (lambda text: status.update(f"{verb} {text}")), console.print
        return
    said = time.monotonic()

    def show(text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= 60:
            said = time.monotonic()
            say(f"{verb} {text}")

    yield show, say


def _line(at: Progress) -> str:
    rate = at.received / max(at.seconds, 1e-9)
    left = (at.total - at.bytes) / rate if at.total is not None and rate else None
    eta = f"   eta {duration(max(left, 0))}" if left is not None else ""
    total = f" of {_about(at.total)}" if at.total is not None else ""
    return f"{at.whole:,} of {at.files:,} files   {_bytes(at.bytes)}{total}   {_bytes(int(rate))}/s{eta}"


def _summary(files: Sequence[File], absent: Sequence[File], size: int | None) -> str:
    there = len(files) - len(absent)
    return f"{len(files):,} files, {there:,} of them there already; to fetch: {_about(size)}"


def _about(size: int | None) -> str:
    return "an unknown size" if size is None else f"about {_bytes(size)}" if size else "nothing"


def _bytes(size: int) -> str:
    from rich.filesize import decimal

    return decimal(size)
