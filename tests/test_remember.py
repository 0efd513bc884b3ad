from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tagreel
from tagreel import checkpoint
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import evaluate
from tagreel.layers.dropout import Dropout
from tagreel.layers.mixture import Mixture
from tagreel.layers.neighbours import Neighbours
from tagreel.layers.projection import Projection
from tagreel.loader import Loader
from tagreel.predict import predict
from tagreel.recipe import from_json, override, to_json
from tagreel.remember import remember
from tagreel.sampling import EvenlySpaced
from tagreel.tagger import Tagger, build
from tests.conftest import InMemory, payload_damaged, video

CPU = torch.device("cpu")


def saved(recipe, folder: Path, names: list[str] | None = None) -> Path:
    """An untrained run of the recipe."""
    torch.manual_seed(0)
    model = build(recipe, label_names=names)
    checkpoint.save(folder, 7, model, model.state_dict(), facts={"step": 7})
    return folder


@pytest.fixture
def larger(tiny):
    """The tiny recipe with parts before and behind its pools, and another precision and choice of frames."""
    before = (partial(Projection, width=7),)
    return replace(
        tiny,
        streams={name: replace(stream, transforms=before) for name, stream in tiny.streams.items()},
        body=(partial(Dropout, rate=0.5), partial(Projection, width=10)),
        evaluation_sampling=partial(EvenlySpaced, frames=2),
        training=replace(tiny.training, precision="bfloat16"),
    )


def batches(model: Tagger, data, **options):
    sampling = model.recipe.evaluation_sampling()
    loader = Loader(
        data, features=model.features, classes=model.classes, batch_size=16, sampling=sampling, **options
    )
    return (batch for _, batch in loader.epoch())


@torch.inference_mode()
def by_hand(run: Path, data, test, **options) -> torch.Tensor:
    """Scores of a run's model with a layer that is filled here, video by video."""
    model = checkpoint.load(run)

    def read(batch):
        with model.autocast():
            descriptor = model.describe(*batch.packed()).float()
        for part in model.body:
            descriptor = part(descriptor)
        return descriptor

    seen = list(batches(model, data))
    hidden, ids = torch.cat([read(batch) for batch in seen]), torch.cat([batch.label_ids for batch in seen])
    sizes = {"videos": len(hidden), "labels": len(ids)}
    layer = Neighbours(hidden.shape[1], model.classes, **sizes, **options)
    layer.remember(hidden, ids, torch.cat([batch.label_counts for batch in seen]))
    return torch.cat([torch.sigmoid(layer(h, model.head(h))) for h in map(read, batches(model, test))])


@pytest.mark.parametrize("options", [{}, {"neighbours": 5, "sharpness": 8.0, "share": 0.3}])
def test_scores_are_those_of_the_layer_behind_the_run(options, larger, training_data, test_data, tmp_path):
    run = saved(larger, tmp_path / "run")
    told: list[int] = []
    written = remember(
        run, training_data, tmp_path / "out", batch_size=33, device="cpu", on_batch=told.append, **options
    )
    assert told == [33, 66, 99, 100]
    model = tagreel.load(tmp_path / "out")
    scores = torch.cat([model.probabilities(batch) for batch in batches(model, test_data)])
    torch.testing.assert_close(scores, by_hand(run, training_data, test_data, **options))
    before = tagreel.load(run)
    without = torch.cat([before.probabilities(batch) for batch in batches(before, test_data)])
    assert (scores - without).abs().max() > 0.01

    assert (written.videos, written.damaged) == (100, [])
    assert written.labels == sum(len(example.labels) for example in each(training_data))
    assert written.size == 100 * 10 * 2 + 10 * 4 + written.labels * 4 + 101 * 8


def each(data):
    return (data.open(shard)[i] for shard, count in enumerate(data.counts) for i in range(count))


def test_evaluate_predict_and_load_take_it_like_a_checkpoint(run, training_data, test_data, tmp_path):
    out = tmp_path / "models" / "out"
    remember(run, training_data, out, device="cpu")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.safetensors"]
    assert checkpoint.facts(out) == checkpoint.facts(checkpoint.find(run)) | {
        "remembers": {"data": [str(path) for path in training_data.paths], "videos": 100}
    }

    model = tagreel.load(out)
    assert model.label_names == tagreel.load(run).label_names
    with torch.inference_mode():
        expected = torch.cat([model.probabilities(batch) for batch in batches(model, test_data)])
    loader = Loader(test_data, features=model.features, classes=model.classes, batch_size=16)
    assert evaluate(model, loader, device=CPU).videos == 50
    predict(model, loader, tmp_path / "tags.parquet", device=CPU, top_k=1)
    rows = pq.read_table(tmp_path / "tags.parquet").to_pylist()
    np.testing.assert_allclose([row["probabilities"][0] for row in rows], expected.amax(1), rtol=1e-5)
    example = test_data.open(0)[0]
    tags = model.predict(example.streams, top_k=1)
    assert tags[0].probability == pytest.approx(expected[0].max().item(), rel=1e-4)


def test_what_the_training_videos_say_is_heard(run, training_data, test_data, tmp_path):
    """A tagger that has learnt little ranks better with a hundred examples at hand."""
    remember(run, training_data, tmp_path / "out", device="cpu", neighbours=10)
    gap = {}
    for which in (run, tmp_path / "out"):
        model = tagreel.load(which)
        loader = Loader(test_data, features=model.features, classes=model.classes, batch_size=16)
        gap[which] = evaluate(model, loader, device=CPU).metrics["gap@20"]
    assert gap[tmp_path / "out"] > gap[run]


def test_the_checkpoint_asked_for_is_taken(tiny, training_data, tmp_path):
    run = saved(tiny, tmp_path / "run")
    model = checkpoint.load(run)
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    checkpoint.save(run, 9, model, weights, facts={"step": 9})
    for step in (7, 9):
        remember(run, training_data, tmp_path / str(step), checkpoint=f"step-{step}", device="cpu")
        wanted = checkpoint.load(run, checkpoint=f"step-{step}")
        assert torch.equal(checkpoint.load(tmp_path / str(step)).head.linear.bias, wanted.head.linear.bias)
        assert checkpoint.facts(tmp_path / str(step))["step"] == step


def test_damaged_records_are_left_out(tiny, shards, training_data, tmp_path):
    run = saved(tiny, tmp_path / "run")
    with payload_damaged(shards / "train1.tfrecord", 3):
        with pytest.raises(DataError, match=r"train1.tfrecord, record 3"):
            remember(run, training_data, tmp_path / "out", device="cpu")
        assert not (tmp_path / "out").exists()
        written = remember(run, training_data, tmp_path / "out", device="cpu", skip_damaged=1)
    assert written.videos == 99
    assert [(Path(error.path).name, error.record) for error in written.damaged] == [("train1.tfrecord", 3)]
    assert len(checkpoint.load(tmp_path / "out").memory.keys) == 99


def test_a_recipe_with_a_memory_goes_through_json_and_those_without_still_load(tiny):
    recipe = replace(tiny, memory=partial(Neighbours, videos=3, labels=4))
    assert to_json(from_json(to_json(recipe))) == to_json(recipe)
    old = to_json(tiny)
    del old["memory"]
    assert to_json(from_json(old)) == to_json(tiny)
    assert override(recipe, "memory.share=0.3").memory.keywords["share"] == 0.3
    assert len(build(recipe).memory.keys) == 3


def test_another_number_of_videos_than_the_file_has_is_an_error(run, training_data, tmp_path):
    remember(run, training_data, tmp_path / "out", device="cpu")
    path = tmp_path / "out" / "model.json"
    description = json.loads(path.read_text())
    description["recipe"]["memory"]["options"]["videos"] = 90
    path.write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"'memory.keys' is \(100, 18\), the recipe says \(90, 18\)"):
        checkpoint.load(tmp_path / "out")


def test_what_cannot_have_a_memory_is_refused(run, tiny, training_data, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match=r"sharpness=-1, share=0\.5; expected"):
        remember(run, training_data, out, device="cpu", sharpness=-1)
    mixed = saved(replace(tiny, mixture=partial(Mixture, branches=2)), tmp_path / "mixed")
    with pytest.raises(RecipeError, match="mixture of networks"):
        remember(mixed, training_data, out, device="cpu")
    remember(run, training_data, out, device="cpu")
    with pytest.raises(RecipeError, match=r"--out .*out: exists"):
        remember(run, training_data, out, device="cpu")
    with pytest.raises(RecipeError, match="has a memory already"):
        remember(out, training_data, tmp_path / "again", device="cpu")


def _videos(count: int = 4, **changes) -> InMemory:
    rng = np.random.default_rng(0)
    streams = {
        "rgb": rng.integers(0, 256, (3, 12), np.uint8),
        "audio": rng.integers(0, 256, (3, 6), np.uint8),
    }
    return InMemory([replace(video(f"v{i}", **streams), **changes) for i in range(count)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_videos(labels=np.zeros(0, np.int64)), "none of the 4 videos has a label"),
        (_videos(rated=np.array([0, 1])), "--whole-videos"),
        (_videos(count=0), "no record could be read"),
    ],
)
def test_data_that_say_nothing_are_refused(data, message, run, tmp_path):
    with pytest.raises(DataError, match=message):
        remember(run, data, tmp_path / "out", device="cpu")
    assert not list(tmp_path.glob("out*"))


def test_a_video_may_lack_what_is_optional(tiny, tmp_path):
    run = saved(replace(tiny, optional=("audio",)), tmp_path / "run")
    data = InMemory([video("v0", rgb=np.zeros((3, 12), np.uint8))])
    assert remember(run, data, tmp_path / "out", device="cpu").videos == 1


def test_classes_of_other_names_are_refused(run, tmp_path):
    data = _videos()
    data.label_names = [f"other {c}" for c in range(120)]
    with pytest.raises(DataError, match="class 0 is 'other 0' here"):
        remember(run, data, tmp_path / "out", device="cpu")


def test_what_a_killed_one_left_is_no_hindrance(run, training_data, tmp_path):
    left = tmp_path / "out.partial" / "checkpoints" / "step-00000003"
    left.mkdir(parents=True)
    (left / "model.json").write_text("{}")
    remember(run, training_data, tmp_path / "out", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
