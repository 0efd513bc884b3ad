"""`tagreel compress`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tagreel.commands._shared import (
    SOURCES_HELP,
    BatchSize,
    Checkpoint,
    Device,
    Inference,
    Json,
    NoCrc,
    SkipDamaged,
    Threads,
    Trust,
    WholeVideos,
    finish,
    list_damaged,
    model_of,
    printer,
    source_of,
)
from tagreel.display import progress
from tagreel.errors import RecipeError

Storage = Literal["float32", "bfloat16", "float16", "int8", "codebook"]


def compress(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run, a model or an ensemble.")],
    out: Annotated[
        Path | None, typer.Option(metavar="NEW", help="The folder for the smaller model; it must be new.")
    ] = None,
    storage: Annotated[Storage | None, typer.Option(help="How to keep the weights.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Take the best storage whose files fit: 10MB, 1GB (10^9 bytes), 995MiB (2^20).",
        ),
    ] = None,
    data: Annotated[
        list[str], typer.Option("--data", metavar="SRC", help=f"Score each. {SOURCES_HELP}")
    ] = [],  # noqa: B006
    checkpoint: Checkpoint = "best",
    settings: Inference = [],  # noqa: B006
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Make a trained model smaller: its weights in 16 or 8 bits.

    bfloat16 and float16 halve a model, int8 (a scale and an offset a row) and codebook (256 values a tensor)
    quarter it. It computes in float32 as before, so it is no faster.

    First comes a table: the size of the weights in MB (10^6 bytes) and MiB (2^20); their error, root mean
    square as a share of that of the weights, and the largest as a share of the largest, each in the layer
    that fares worst; and with --data how the smaller model scores.

    Then, with --storage or --budget, it is written, and `evaluate` and `predict` take it like MODEL. Of what
    fits a budget the one with the best score on --data is taken, by the metric that the model's recipe goes
    by; without --data the one with the smallest error. How it scores (--set) is kept in it, too.

    Example: tagreel compress tagreel-demo/run --data tagreel-demo/data/test* --budget 1MB --out small
    """
    from tagreel.checkpoint import find
    from tagreel.compress import best_first, check, measure, parse_size, show_size
    from tagreel.compress import compress as write_compressed
    from tagreel.evaluate import scoring_loader
    from tagreel.runtime import pick_device
    from tagreel.storage import STORAGES

    if storage is not None and budget is not None:
        raise RecipeError("--storage and --budget both say how to keep the weights; give one of them")
    if out is not None and storage is None and budget is None:
        raise RecipeError("--out is written in a --storage or to fit a --budget; give one of them")
    if out is None and (storage is not None or budget is not None):
        raise RecipeError("--storage and --budget need --out NEW, a folder to write; the table needs none")
    limit = None if budget is None else parse_size(budget)
    say, folder = printer(as_json), find(model, checkpoint)
    check(folder, out)
    source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos, say=say) if data else None
    found = model_of(folder, checkpoint, device, tuple(trust), settings)
    loader = None
    if source is not None:
        loader = scoring_loader(
            found, source, batch_size=batch_size, threads=threads, skip_damaged=skip_damaged
        )
    wanted = STORAGES if storage is None else tuple(dict.fromkeys(["float32", storage]))
    heads = f"{'GAP@20':>10}{'mAP':>9}" if data else ""
    say(f"{'storage':<9}{'MB':>11}{'MiB':>11}{'error':>9}{'largest':>9}{heads}")
    rows = []
    for name in wanted:
        with progress(f"evaluating {name}", len(source or ())) as advance:
            row = measure(found, name, loader=loader, device=pick_device(device), on_batch=advance)
        scores = f"{row.metrics['gap@20']:>10.4f}{row.metrics['map']:>9.4f}" if data else ""
        units = f"{row.size / 1e6:>11,.2f}{row.size / 2**20:>11,.2f}"
        say(f"{row.storage:<9}{units}{row.error:>9.2%}{row.largest_error:>9.2%}{scores}")
        rows.append(row)
    damaged = list(loader.damaged.values()) if loader is not None else []
    list_damaged(say, list(map(str, damaged)))
    result: dict[str, Any] = {"rows": [asdict(row) for row in rows], "damaged": len(damaged)}
    if out is not None:
        choice = rows[-1:] if limit is None else best_first(found, rows, limit)
        taken, size = write_compressed(
            folder,
            out,
            [row.storage for row in choice],
            budget=limit,
            settings=settings,
            trust=tuple(trust),
        )
        say(f"\nwrote {out}: {taken}, {show_size(size)} with all its files")
        say(f"next: tagreel evaluate {out} --data SRC")
        result |= {"out": str(out), "storage": taken, "bytes": size}
    else:
        say(f"next: tagreel compress {model} --out NEW --storage NAME, or --budget SIZE")
    finish(as_json, result)
