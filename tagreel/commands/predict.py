"""`tagreel predict`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tagreel.commands._cluster import Engine, Part, share
from tagreel.commands._shared import (
    BatchSize,
    Checkpoint,
    Data,
    Device,
    Foreign,
    Inference,
    Json,
    NoCrc,
    Precision,
    Run,
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


def predict(
    run: Run,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help=".parquet, .jsonl, or .csv (YouTube-8M's submission formats)."),
    ],
    top_k: Annotated[int | None, typer.Option(min=1, help="Tags a video, 20 by default.")] = None,
    only: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Choose from the classes in this file, one id a line.")
    ] = None,
    segments: Annotated[
        int | None,
        typer.Option(metavar="FRAMES", min=1, help="Tag each part of a video of so many frames on its own."),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Segments a class in a ranking, 100,000 by default.")
    ] = None,
    threshold: Annotated[
        bool, typer.Option("--threshold", help="Write only tags above their thresholds (tagreel calibrate).")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the classes as trained, not as `tagreel tags` shows them.")
    ] = False,
    checkpoint: Checkpoint = "best",
    settings: Inference = [],  # noqa: B006
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = 1,
    skip_damaged: SkipDamaged = 0,
    foreign: Foreign = False,
    no_crc: NoCrc = False,
    whole_videos: WholeVideos = False,
    trust: Trust = [],  # noqa: B006
    part: Part = "1/1",
    engine: Engine = "local",
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Write the most probable tags of every video to a file.

    One row a video, with names and probabilities, in the order of the input. .csv is the submission file of
    YouTube-8M's challenges of 2017 and 2018.

    --segments 5 cuts videos into parts of five frames, as the challenge of 2019 did, and tags each as a video
    named video:start. There .csv is that year's ranking: for each class the segments that show it, the best
    first. Give that year's 1,000 classes with --only: what may still get into the ranking of a class is kept
    in memory and beside FILE, 8 bytes a segment and class, of up to 150,000 segments a class in memory.

    --precision bfloat16 or int8 multiplies frames in fewer bits, several times as fast on a CPU; what that
    costs `tagreel evaluate --precision` says.

    Where the model's tags were calibrated, renamed, merged or dropped (`tagreel calibrate`, `tagreel tags`),
    .parquet and .jsonl hold those, without class ids, and --only chooses the tags made of any of its classes.
    What goes into an ensemble, a teacher or `evaluate` are classes as trained: --raw. .csv always has those.

    A run that was killed goes on where it was when the command is given again. Millions of videos are shared
    among the workers of a Ray cluster (--engine ray), or the tasks of a batch queue (--part 3/8), that see
    the same folders. FILE is the same to the byte, whoever was killed on the way.

    Example: tagreel predict tagreel-demo/run --data tagreel-demo/data/test* --segments 5 --out best.csv
    """
    from tagreel.checkpoint import TAGS, find
    from tagreel.evaluate import scoring_loader
    from tagreel.predict import TOP_K, cluster_device, read_classes, videos_of
    from tagreel.predict import predict as predict_all
    from tagreel.runtime import pick_device
    from tagreel.tags import TagSet

    say = printer(as_json)
    own, whole = share(part), segments is not None
    source = source_of(data, check_crc=not no_crc, whole_videos=whole_videos or whole, say=say)
    # A cluster's workers take the model from here to their own devices.
    target = pick_device(device if engine == "local" else "cpu")
    folder = find(run, checkpoint)
    tags = None if raw or out.suffix == ".csv" else TagSet.read(folder)
    if tags is not None:
        say(f"tags as in {folder / TAGS} (--raw: the classes as trained)")
    model = model_of(run, checkpoint, str(target), tuple(trust), settings)
    classes = None if only is None else read_classes(only, classes=model.classes)
    loader = scoring_loader(
        model,
        source,
        batch_size=batch_size,
        threads=threads,
        skip_damaged=skip_damaged,
        whole=whole,
        foreign=foreign,
    )
    if engine == "ray":
        target = cluster_device(device)
    began = time.perf_counter()
    with progress("tagging", videos_of(loader, own, segments=segments)) as advance:
        result = predict_all(
            model,
            loader,
            out,
            device=target,
            top_k=top_k,
            only=classes,
            segments=segments,
            per_class=per_class,
            tags=tags,
            threshold=threshold,
            part=own,
            engine=engine,
            precision=precision or "float32",
            on_batch=advance,
        )
    seconds = time.perf_counter() - began
    if result.resumed:
        say(f"an earlier run had left {result.resumed:,} rows")
    speed = f"{result.videos / seconds:,.0f} videos/s   waiting for data {result.waiting:.0%}"
    if not result.whole:
        say(f"part {part} of {out} is done; the file is whole when the others are   {speed}")
        list_damaged(say, result.damaged)
        finish(as_json, {"out": str(out), "whole": False, "damaged": len(result.damaged)})
        return
    chosen = model.classes if classes is None else len(classes)
    videos = len(source) - len(result.damaged)
    what = f"{videos:,} videos" if not whole else f"{result.rows:,} segments of {videos:,} videos"
    if whole and out.suffix == ".csv":
        what += f", the best of them for each of {chosen:,} classes"
    else:
        what += f" × {'at most ' if tags is not None else ''}{min(top_k or TOP_K, chosen)} tags"
    say(f"wrote {out}: {what}   {speed}")
    list_damaged(say, result.damaged)
    found = {"out": str(out), "whole": True, "videos": videos, "damaged": len(result.damaged)}
    finish(as_json, found | ({"segments": result.rows} if whole else {}))
