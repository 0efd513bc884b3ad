from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tagreel
from tagreel import checkpoint, ensemble
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.inference import SegmentedInference
from tagreel.predict import predict
from tagreel.recorded import Recorded
from tagreel.remember import remember
from tagreel.sampling import AllFrames, EvenlySpaced, RandomFrames
from tagreel.tagger import build, set_inference

CPU = torch.device("cpu")
SPACED = partial(EvenlySpaced, frames=2)


def model(recipe, seed, **changes):
    """An untrained model of the recipe, changed."""
    torch.manual_seed(seed)
    names = changes.pop("label_names", None)
    return build(replace(recipe, **changes), label_names=names).eval()


@pytest.fixture
def members(tiny):
    return {name: model(tiny, seed) for seed, name in enumerate("abc")}


def first_batch(tagger, data, size=7):
    return scoring_loader(tagger, data, batch_size=size).batch(0, 0)


@torch.no_grad()
def test_probabilities_are_the_weighted_mean(members, test_data):
    mixed = EnsembleTagger(members, [3, 1, 4])
    batch = first_batch(mixed, test_data)
    each = [member.probabilities(batch) for member in members.values()]
    found = mixed.probabilities(batch)
    for video in range(7):
        for label in range(120):
            expected = sum(w * p[video, label].item() for w, p in zip((3, 1, 4), each, strict=True)) / 8
            assert found[video, label].item() == pytest.approx(expected, rel=1e-5)
    assert mixed.weights.tolist() == [3 / 8, 1 / 8, 4 / 8]
    alike = EnsembleTagger(members)
    torch.testing.assert_close(alike.probabilities(batch), sum(each) / 3)


@torch.no_grad()
def test_of_each_member_the_best_classes_alone_may_count(members, test_data):
    mixed = EnsembleTagger(members, top_k=3)
    batch = first_batch(mixed, test_data)
    expected = torch.zeros(7, 120)
    for member in members.values():
        for video, scores in enumerate(member.probabilities(batch).tolist()):
            for label in sorted(range(120), key=lambda c: -scores[c])[:3]:
                expected[video, label] += scores[label] / 3
    torch.testing.assert_close(mixed.probabilities(batch), expected)


def test_a_member_without_weight_is_not_kept(members):
    mixed = EnsembleTagger(members, [1, 0, 3])
    assert mixed.member_names == ["a", "c"]
    assert len(mixed.members) == 2
    assert mixed.name == "ensemble of 2"
    assert sum(p.numel() for p in mixed.parameters()) == 2 * sum(p.numel() for p in members["a"].parameters())


@pytest.mark.parametrize(
    ("weights", "options", "reason"),
    [
        ([1, 2], {}, "weights: 2 for 3 members"),
        ([1, -1, 2], {}, "the weight of b is -1"),
        ([1, 1, float("nan")], {}, "the weight of c is nan"),
        ([0, 0, 0], {}, "needs a member of weight more than 0"),
        (None, {"top_k": 0}, "top_k is 0"),
    ],
)
def test_what_is_no_weighting_is_refused(weights, options, reason, members):
    with pytest.raises(RecipeError, match=reason):
        EnsembleTagger(members, weights, **options)


def test_none_is_no_ensemble():
    with pytest.raises(RecipeError, match="needs a member"):
        EnsembleTagger({})


def test_members_of_other_classes_are_named(tiny, planted):
    a = model(tiny, 0, label_names=planted.label_names)
    with pytest.raises(RecipeError, match="b has 119 classes, a has 120"):
        EnsembleTagger({"a": a, "b": model(tiny, 1, classes=119)})
    unnamed = model(tiny, 1)
    other = model(tiny, 2, label_names=[*planted.label_names[:7], "x", *planted.label_names[8:]])
    with pytest.raises(RecipeError, match=rf"class 7 is 'x' in c and {planted.label_names[7]!r} in a"):
        EnsembleTagger({"b": unnamed, "a": a, "c": other})
    mixed = EnsembleTagger({"b": unnamed, "a": a})
    assert mixed.label_names == planted.label_names
    assert mixed.has_label_names
    assert not EnsembleTagger({"b": unnamed}).has_label_names


def test_features_are_those_of_all_and_must_be_of_one_width(tiny):
    picture = {"features": {"rgb": 12}, "streams": {"rgb": tiny.streams["rgb"]}}
    sound = {"features": {"audio": 6}, "streams": {"audio": tiny.streams["audio"]}}
    mixed = EnsembleTagger({"picture": model(tiny, 0, **picture), "sound": model(tiny, 1, **sound)})
    assert mixed.features == {"rgb": 12, "audio": 6}
    wide = model(tiny, 1, features={"rgb": 13, "audio": 6})
    with pytest.raises(RecipeError, match="wide reads 13 wide 'rgb', picture 12; they cannot share videos"):
        EnsembleTagger({"picture": model(tiny, 0, **picture), "wide": wide})


def test_a_video_may_lack_what_nobody_needs(tiny):
    lenient, strict = model(tiny, 0, optional=("audio",)), model(tiny, 1)
    assert EnsembleTagger({"a": lenient, "b": lenient}).optional == ("audio",)
    assert EnsembleTagger({"a": lenient, "b": strict}).optional == ()


def test_members_that_read_alike_have_their_reader(tiny):
    spaced = {name: model(tiny, 0, evaluation_sampling=partial(EvenlySpaced, frames=2)) for name in "ab"}
    assert EnsembleTagger(spaced).reads().frames == 2
    mixed = EnsembleTagger(spaced | {"c": model(tiny, 1)})
    assert isinstance(mixed.reads(), AllFrames)
    assert mixed.reads().max_frames is None


@torch.no_grad()
def test_each_member_is_shown_what_it_reads_and_no_video_is_read_twice(
    tiny, test_data, monkeypatch: pytest.MonkeyPatch
):
    parts = {
        "all": partial(AllFrames),
        "two": SPACED,
        "also two": partial(EvenlySpaced, frames=2),
        "three": partial(EvenlySpaced, frames=3),
        "random": partial(RandomFrames, frames=5),
    }
    members = {name: model(tiny, 1, evaluation_sampling=part) for name, part in parts.items()}
    members["thirds"] = model(tiny, 1, evaluation_sampling=SPACED, inference=partial(SegmentedInference))
    mixed = EnsembleTagger(members)
    loader = scoring_loader(mixed, test_data, batch_size=50)

    opened, views = [], []
    read, view = type(test_data.open(0)).__getitem__, ensemble.view
    monkeypatch.setattr(
        type(test_data.open(0)), "__getitem__", lambda self, i: opened.append(i) or read(self, i)
    )
    monkeypatch.setattr(
        ensemble, "view", lambda batch, sampler: views.append(sampler) or view(batch, sampler)
    )
    batch = loader.batch(0, 0)
    found = dict(zip(members, mixed.each(batch), strict=True))
    assert opened == list(range(50))
    # all, two, three, random; what reads every frame is given the batch itself
    assert len(views) == 4

    for name in ("all", "two", "three", "thirds"):
        alone = scoring_loader(members[name], test_data, batch_size=50).batch(0, 0)
        torch.testing.assert_close(found[name], members[name].probabilities(alone))
    assert torch.equal(found["two"], found["also two"])
    assert not torch.allclose(found["two"], found["three"], atol=1e-4)


def test_a_member_sees_its_own_features_alone(tiny, test_data):
    seen = {}

    class Watching(type(model(tiny, 0))):
        def probabilities(self, batch):
            seen[self.watched] = (sorted(batch.streams), sorted(batch.num_frames))
            return super().probabilities(batch)

    picture = model(tiny, 0, features={"rgb": 12}, streams={"rgb": tiny.streams["rgb"]})
    both = model(tiny, 1)
    for name, member in (("picture", picture), ("both", both)):
        member.__class__, member.watched = Watching, name
    mixed = EnsembleTagger({"picture": picture, "both": both})
    mixed.probabilities(first_batch(mixed, test_data))
    assert seen == {"picture": (["rgb"], ["rgb"]), "both": (["audio", "rgb"], ["audio", "rgb"])}


def test_how_it_scores_can_be_changed_for_all_members(members):
    mixed = EnsembleTagger(members)
    before = mixed.settings()
    set_inference(mixed, ["evaluation_sampling=tagreel.sampling.EvenlySpaced"])
    assert all(member.reads.func is EvenlySpaced for member in mixed.members)
    assert mixed.reads.func is EvenlySpaced
    assert mixed.settings() != before
    json.dumps(mixed.settings())


def test_scores_and_predict_take_arrays_as_a_taggers_do(members, test_data):
    mixed = EnsembleTagger(members)
    example = test_data.open(0)[0]
    batch = first_batch(mixed, test_data, size=1)
    with torch.no_grad():
        expected = mixed.probabilities(batch)
    torch.testing.assert_close(mixed.scores({k: x[None] for k, x in example.streams.items()}), expected)
    best = mixed.predict(example.streams, top_k=2)
    assert best[0].probability == pytest.approx(expected.max().item(), rel=1e-5)


def saved(folder, **taggers):
    """Runs of untrained models."""
    for name, tagger in taggers.items():
        checkpoint.save(
            folder / name, 5, tagger, tagger.state_dict(), facts={"step": 5}, training={"x": torch.ones(1)}
        )
    return {name: checkpoint.find(folder / name) for name in taggers}


def test_a_saved_ensemble_is_taken_like_a_run(members, test_data, tmp_path, planted):
    sources = saved(tmp_path / "runs", **members)
    mixed = EnsembleTagger(members, [1, 0, 3], top_k=30)
    checkpoint.save_ensemble(tmp_path / "out", mixed, sources, facts={"by": "hand"})
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert names == [
        "ensemble.json",
        *(f"members/{m}/{file}" for m in "ac" for file in ("model.json", "model.safetensors")),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]
    assert checkpoint.facts(tmp_path / "out") == {"by": "hand"}
    assert checkpoint.ensemble_weights(tmp_path / "out") == {"a": 0.25, "c": 0.75}
    size = (sources["a"] / "model.json").stat().st_size + (sources["a"] / "model.safetensors").stat().st_size
    assert checkpoint.member_size(tmp_path / "out", "a") == size

    again = tagreel.load(tmp_path / "out")
    assert isinstance(again, EnsembleTagger)
    assert again.settings() == mixed.settings()
    assert (again.top_k, again.classes, again.label_names) == (30, 120, members["a"].label_names)
    batch = first_batch(again, test_data)
    with torch.no_grad():
        assert torch.equal(again.probabilities(batch), mixed.probabilities(batch))

    loader = scoring_loader(again, test_data)
    assert evaluate(again, loader, device=CPU).videos == 50
    predict(again, loader, tmp_path / "tags.parquet", device=CPU, top_k=1)
    rows = pq.read_table(tmp_path / "tags.parquet").to_pylist()
    scores = torch.cat([again.probabilities(batch).detach() for _, batch in loader.epoch()])
    np.testing.assert_allclose([row["probabilities"][0] for row in rows], scores.amax(1), rtol=1e-5)


def test_an_ensemble_may_have_ensembles_and_predictions_as_members(
    members, test_data, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    sources = saved(tmp_path / "runs", **members)
    inner = EnsembleTagger({name: members[name] for name in "ab"}, [1, 2])
    checkpoint.save_ensemble(tmp_path / "inner", inner, sources, facts={})
    loader = scoring_loader(members["c"], test_data)
    predict(members["c"], loader, tmp_path / "c.csv", device=CPU, top_k=120)
    tags = Recorded(tmp_path / "c.csv", classes=120)
    mixed = EnsembleTagger({"inner": inner, "tags.c": tags})
    where = {"inner": tmp_path / "inner", "tags.c": tmp_path / "c.csv"}
    checkpoint.save_ensemble(tmp_path / "out", mixed, where, facts={})
    assert (tmp_path / "out" / "members" / "tags.c.parquet").is_file()
    again = tagreel.load(tmp_path / "out")
    batch = first_batch(again, test_data)
    monkeypatch.setattr(ensemble, "view", None)  # who looks at no frame is shown none
    with torch.no_grad():
        each = [member.probabilities(batch) for member in members.values()]
        expected = (each[0] / 3 + each[1] * 2 / 3 + each[2]) / 2
        torch.testing.assert_close(again.probabilities(batch), expected, rtol=1e-4, atol=1e-6)
    size = (tmp_path / "out" / "members" / "tags.c.parquet").stat().st_size
    assert checkpoint.member_size(tmp_path / "out", "tags.c") == size


def test_predictions_alone_need_no_frames(members, test_data, tmp_path, planted):
    files = {}
    for name in "ab":
        files[name] = tmp_path / f"{name}.parquet"
        loader = scoring_loader(members[name], test_data)
        predict(members[name], loader, files[name], device=CPU, top_k=120)
    tags = {name: Recorded(path, label_names=planted.label_names) for name, path in files.items()}
    checkpoint.save_ensemble(tmp_path / "out", EnsembleTagger(tags), files, facts={})
    again = tagreel.load(tmp_path / "out")
    assert again.features == {}
    assert again.label_names == planted.label_names
    both = EnsembleTagger({name: members[name] for name in "ab"})
    with torch.no_grad():
        expected = both.probabilities(first_batch(both, test_data, 50))
        torch.testing.assert_close(again.probabilities(first_batch(again, test_data, 50)), expected)


def test_predictions_that_name_some_classes_are_found_again(run, test_data, tmp_path):
    model = tagreel.load(run)
    path = tmp_path / "tags.jsonl"
    predict(model, scoring_loader(model, test_data), path, device=CPU, top_k=5)
    tags = Recorded(path, classes=121)
    checkpoint.save_ensemble(tmp_path / "out", EnsembleTagger({"tags": tags}), {"tags": path}, facts={})
    again = tagreel.load(tmp_path / "out")
    assert again.classes == 121
    assert not again.has_label_names
    batch = first_batch(again, test_data)
    assert torch.equal(again.probabilities(batch), tags.probabilities(batch))


def test_what_others_leave_among_the_members_is_no_part_of_it(members, tmp_path):
    sources = saved(tmp_path / "runs", **members)
    checkpoint.save_ensemble(tmp_path / "out", EnsembleTagger(members), sources, facts={})
    files = checkpoint.model_files(tmp_path / "out")
    (tmp_path / "out" / "members" / ".DS_Store").touch()  # as a Mac does
    assert checkpoint.model_files(tmp_path / "out") == files


def test_what_needs_one_model_refuses_an_ensemble(members, test_data, tmp_path):
    sources = saved(tmp_path / "runs", **members)
    checkpoint.save_ensemble(tmp_path / "out", EnsembleTagger(members), sources, facts={})
    for wrong in (
        lambda: remember(tmp_path / "out", test_data, tmp_path / "new", device="cpu"),
        lambda: checkpoint.load_tagger(tmp_path / "out"),
        lambda: checkpoint.start_from(members["a"], tmp_path / "out"),
    ):
        with pytest.raises(DataError, match="out: is an ensemble; expected one model"):
            wrong()
    with pytest.raises(DataError, match="out: is one model; --checkpoint step-3 needs the run's folder"):
        tagreel.load(tmp_path / "out", checkpoint="step-3")
    with pytest.raises(DataError, match="a: is no ensemble"):
        checkpoint.ensemble_weights(tmp_path / "runs" / "a")


def test_what_is_there_is_not_written_over_and_nothing_half_written_is_left_to_be_found(
    members, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    sources = saved(tmp_path / "runs", **members)
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="out: exists; expected the name of a new folder"):
        checkpoint.save_ensemble(tmp_path / "out", EnsembleTagger(members), sources, facts={})

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_ensemble(tmp_path / "new", EnsembleTagger(members), sources, facts={})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 9}, "format 9; this tagreel reads 1"),
        ({"members": [{"name": "a"}]}, "not an ensemble as tagreel writes it"),
        ({"members": 3}, "not an ensemble as tagreel writes it"),
        ({"members": [{"name": "..", "weight": 1}]}, "not an ensemble as tagreel writes it"),
        ({"members": [{"name": "a", "weight": 1}] * 2}, "two members of one name"),
        ({"members": [{"name": "gone", "weight": 1}]}, r"gone.parquet: cannot be read: No such file"),
    ],
)
def test_a_file_that_is_not_ours_is_an_error(change, reason, members, tmp_path):
    sources = saved(tmp_path / "runs", **members)
    checkpoint.save_ensemble(tmp_path / "out", EnsembleTagger(members), sources, facts={})
    path = tmp_path / "out" / "ensemble.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=reason):
        tagreel.load(tmp_path / "out")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(members, test_data, tmp_path):
    predict(
        members["c"], scoring_loader(members["c"], test_data), tmp_path / "c.parquet", device=CPU, top_k=120
    )
    mixed = EnsembleTagger({**members, "tags": Recorded(tmp_path / "c.parquet", classes=120)}, top_k=50)
    batch = first_batch(mixed, test_data)
    with torch.no_grad():
        expected = mixed.probabilities(batch)
        found = mixed.cuda().probabilities(batch.to(torch.device("cuda")))
    torch.testing.assert_close(found.cpu(), expected)
