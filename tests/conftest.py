from __future__ import annotations

import os

# Before torch is imported anywhere: threads that spin while they wait cost far more than they bring here.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from tagreel.batch import Example
from tagreel.heads.logistic import Logistic
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.mean import Mean
from tagreel.readers._tfexample import encode_sequence_example
from tagreel.readers._tfrecord import write
from tagreel.readers.synthetic import Planted
from tagreel.recipe import Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine
from tagreel.source import Source

torch.set_num_threads(1)
# A busy machine is no failure.
settings.register_profile("tagreel", deadline=None)
settings.load_profile("tagreel")

REPOSITORY = Path(__file__).parents[1]


def write_shard(path: Path, examples: Iterable[Example]) -> None:
    """Examples as a frame-level TFRecord file."""
    write(
        path,
        [
            encode_sequence_example({"id": [example.id.encode()], "labels": example.labels}, example.streams)
            for example in examples
        ],
    )


@contextmanager
def payload_damaged(path: Path, record: int) -> Iterator[None]:
    """Flip a bit in the middle of one record's payload, and back."""
    data = path.read_bytes()
    at = 0
    for _ in range(record):
        at += int.from_bytes(data[at : at + 8], "little") + 16
    middle = at + 12 + int.from_bytes(data[at : at + 8], "little") // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    try:
        yield
    finally:
        path.write_bytes(data)


class MemoryShard:
    """A shard of examples that lie in memory; where there is an error in place of one, it is raised."""

    def __init__(self, path: str, examples: list[Example | Exception]) -> None:
        self.path, self.examples = path, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        found = self.examples[index]
        if isinstance(found, Exception):
            raise found
        # Fresh arrays each time, as a reader gives them.
        return replace(found, streams=dict(found.streams))


class InMemory:
    """What the loader asks of a `Source`, for shards in memory."""

    def __init__(self, *shards: list[Example | Exception]) -> None:
        self.paths = [f"shard{index}" for index in range(len(shards))]
        self.shards = [MemoryShard(path, shard) for path, shard in zip(self.paths, shards, strict=True)]
        self.counts = [len(shard) for shard in shards]
        self.label_names: list[str] | None = None
        self.provenance: dict[str, Any] | None = None

    def __len__(self) -> int:
        return sum(self.counts)

    def open(self, index: int) -> MemoryShard:
        return self.shards[index]

    def fingerprint(self) -> str:
        return "in memory"

    def versions(self) -> list[str]:
        return ["" for _ in self.paths]

    def fetching(self, needs: Callable[[], Any]) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda step: None)


def video(name: str, *, frames: int = 3, labels: Iterable[int] = (0,), **streams: Any) -> Example:
    """A video of the streams given, or of one stream `rgb`, four wide, that counts its frames."""
    if not streams:
        streams = {"rgb": np.arange(1, 4 * frames + 1, dtype=np.uint8).reshape(frames, 4)}
    return Example(id=name, labels=np.array(list(labels), np.int64), streams=streams)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What survives a power cut is beyond a test's reach, and waiting for the disk is most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def planted() -> Planted:
    return Planted(rgb=12, audio=6)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, planted: Planted) -> Path:
    """A folder of the planted set: three training shards of 40, 30 and 30 videos, a test shard of 50."""
    folder = tmp_path_factory.mktemp("planted")
    first = 0
    for index, count in enumerate((40, 30, 30)):
        write_shard(folder / f"train{index}.tfrecord", planted.examples(first, count))
        first += count
    write_shard(folder / "test0.tfrecord", planted.examples(10_000, 50))
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in planted.label_names))
    return folder


@pytest.fixture
def training_data(shards: Path) -> Source:
    return Source(f"{shards}/train*.tfrecord")


@pytest.fixture
def test_data(shards: Path) -> Source:
    return Source(f"{shards}/test*.tfrecord")


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """The smallest recipe that reads both streams: their means and a logistic layer."""
    return Recipe(
        features={"rgb": 12, "audio": 6},
        classes=120,
        streams={"rgb": Stream(pool=partial(Mean)), "audio": Stream(pool=partial(Mean))},
        head=partial(Logistic),
        loss=partial(CrossEntropy),
        sampling=partial(AllFrames),
        evaluation_sampling=partial(AllFrames),
        training=Training(
            optimizer=partial(torch.optim.AdamW, lr=1e-2), schedule=partial(Cosine), batch_size=16, epochs=2
        ),
    )


def with_training(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other settings of its training."""
    return replace(recipe, training=replace(recipe.training, **changes))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny: Recipe, planted: Planted) -> Path:
    """The folder of a finished run of the tiny recipe. Nobody writes into it."""
    from tagreel.train import train

    out = tmp_path_factory.mktemp("finished") / "run"
    train(
        tiny,
        data=Source(f"{shards}/train*.tfrecord"),
        validation=Source(f"{shards}/test*.tfrecord"),
        label_names=planted.label_names,
        out=out,
        device="cpu",
    )
    return out


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media files: films of 2 to 19 seconds, one without sound, one of sound alone, and one that is none."""
    av = pytest.importorskip("av", reason="needs PyAV: pip install 'tagreel[video]'")
    folder = tmp_path_factory.mktemp("films")
    for name, seconds in (("a/long.mkv", 19), ("b.mkv", 2), ("c.mkv", 3), ("d.mkv", 4), ("silent.mkv", 5)):
        film(av, folder / name, seconds=seconds, sound=name != "silent.mkv")
    film(av, folder / "sound.mka", seconds=6, pictures=False)
    (folder / "broken.mkv").write_bytes((folder / "d.mkv").read_bytes()[:900])
    return folder


def film(av: Any, path: Path, *, seconds: int, pictures: bool = True, sound: bool = True) -> None:
    """A film of noise that depends on its name, five small pictures a second and sound of 8 kHz."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        video = out.add_stream("mpeg4", rate=5) if pictures else None
        audio = out.add_stream("pcm_s16le", rate=8000, layout="mono") if sound else None
        if video is not None:
            video.width, video.height = 32, 32
        for second in range(seconds):
            for picture in range(5 if video is not None else 0):
                level = rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                frame = av.VideoFrame.from_ndarray(level, "rgb24")
                frame.pts = second * 5 + picture
                out.mux(video.encode(frame))
            if audio is not None:
                heard = av.AudioFrame.from_ndarray(
                    rng.integers(-9999, 9999, (1, 8000), np.int16), "s16", "mono"
                )
                heard.sample_rate, heard.pts = 8000, second * 8000
                out.mux(audio.encode(heard))
        for stream in (video, audio):
            if stream is not None:
                out.mux(stream.encode(None))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: its exit code, stdout and stderr."""
    from tagreel.cli import run as run_command

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call
