from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

import tagreel
from tagreel import calibrate as stage
from tagreel.calibrate import Calibrated, Counts, calibrate
from tagreel.checkpoint import find
from tagreel.errors import DataError, RecipeError
from tagreel.loader import Loader
from tagreel.metrics.calibration import Calibration
from tagreel.recorded import Recorded
from tagreel.tags import Fit, ShownTag, TagSet
from tests.conftest import InMemory, video

CPU = torch.device("cpu")


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits))


def ids_of(count: int) -> list[str]:
    return [f"video-{number}" for number in range(count)]


def named(tags: int) -> TagSet:
    names = tuple(f"tag {number}" for number in range(tags))
    return TagSet(tuple(ShownTag(name, (c,)) for c, name in enumerate(names)), names)


class World:
    """Videos of known probabilities; the logits of a model's scores are off by `slopes` and `biases`."""

    def __init__(self, videos: int, slopes: list[float], biases: list[float], rarity: list[float]) -> None:
        rng = np.random.default_rng(7)
        logits = rng.normal(0, 2.5, (videos, len(slopes))) - np.array(rarity)
        self.scores = sigmoid(logits).astype(np.float32)
        self.true = sigmoid(np.array(slopes) * logits + np.array(biases))
        self.labels = rng.random(self.true.shape) < self.true
        self.ids = ids_of(videos)

    def counts(self) -> Counts:
        counts = Counts(self.scores.shape[1])
        for first in range(0, len(self.ids), 1000):
            rows = slice(first, first + 1000)
            counts.add(
                self.ids[rows], torch.from_numpy(self.scores[rows]), torch.from_numpy(self.labels[rows])
            )
        return counts

    def fitted(self, precision: float | None = None) -> Calibrated:
        return stage._fitted(self.counts(), named(self.scores.shape[1]), precision=precision, paths=["x"])


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(3)
    rarity = np.concatenate([[0.5, 1.0], rng.uniform(2, 7, 38)])
    slopes = 0.8 * np.exp(rng.normal(0, 0.15, 40))
    return World(8000, slopes.tolist(), (-0.3 + rng.normal(0, 0.4, 40)).tolist(), rarity.tolist())


# ---------------------------------------------------------------------- what is kept


def test_counts_are_those_of_a_loop_in_any_batches():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.random((40, 3)), [[0, 1, 1e-20]]]).astype(np.float32)
    labels, judged = rng.random((41, 3)) < 0.3, rng.random((41, 3)) < 0.8
    labels &= judged
    pairs, positives = np.zeros((2, 5, 3, 256), np.int64)
    for name, row, true, rated in zip(ids_of(41), scores, labels, judged, strict=True):
        for tag, p in enumerate(row.astype(np.float64)):
            logit = -math.inf if p == 0 else math.inf if p == 1 else math.log(p / (1 - p))
            place = int(min(max((logit + 16) / 0.125, 0), 255))
            pairs[stage._fold(name), tag, place] += rated[tag]
            positives[stage._fold(name), tag, place] += true[tag]
    for step in (1, 7, 41):
        counts = Counts(3)
        for first in range(0, 41, step):
            rows = slice(first, first + step)
            given = (torch.from_numpy(each[rows]) for each in (scores, labels, judged))
            counts.add(ids_of(41)[rows], *given)
        assert (counts.pairs.numpy() == pairs).all()
        assert (counts.positives.numpy() == positives).all()
        assert counts.videos == 41


def test_segments_of_a_video_are_in_one_fold_and_videos_in_all():
    assert len({stage._fold(f"abcd:{start}") for start in range(0, 300, 5)}) == 1
    assert stage._fold("abcd:5") == stage._fold("abcd")
    assert stage._fold("a:b") != stage._fold("a:c") or stage._fold("a:b") != stage._fold("a:d")
    counts = np.bincount([stage._fold(name) for name in ids_of(1000)])
    assert len(counts) == 5
    assert counts.min() > 150


# ---------------------------------------------------------------------- calibration


def reference_line(
    logits: NDArray[np.float64], labels: NDArray[np.bool_], start: list[float], pivot: float, spreads: tuple
) -> list[float]:
    """The most probable log-slope and bias, of the pairs themselves, by somebody else's optimizer."""
    x, y = torch.from_numpy(logits), torch.from_numpy(labels).double()
    at = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([at], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        z = at[0].exp() * (x - pivot) + at[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum")
        for value, mean, spread in zip(at, start, spreads, strict=True):
            if math.isfinite(spread):
                loss = loss + 0.5 * ((value - mean) / spread) ** 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return at.detach().tolist()


def test_lines_are_the_most_probable_ones(world):
    counts = world.counts()
    positives, pairs = counts.positives.sum(0).double(), counts.pairs.sum(0).double()
    shared = stage._shared_line(positives, pairs)
    p = world.scores.astype(np.float64)
    logits = np.log(p / (1 - p))
    together = reference_line(
        logits.ravel(), world.labels.ravel(), [0.0, shared.pivot], shared.pivot, (math.inf, math.inf)
    )
    start = [float(shared.log_slopes[0]), float(shared.biases[0])]
    assert start == pytest.approx(together, abs=2e-3)
    for spreads in ((0.1, 0.5), (0.4, 0.125)):
        lines = stage._stray(shared, positives, pairs, spreads)
        for tag in range(40):
            expected = reference_line(logits[:, tag], world.labels[:, tag], start, shared.pivot, spreads)
            found = [float(lines.log_slopes[tag]), float(lines.biases[tag])]
            assert found == pytest.approx(expected, abs=5e-3)


def test_no_room_to_stray_is_the_shared_line(world):
    counts = world.counts()
    given = counts.positives.sum(0).double(), counts.pairs.sum(0).double()
    shared = stage._shared_line(*given)
    lines = stage._stray(shared, *given, (0.0, 0.0))
    assert torch.allclose(lines.log_slopes, shared.log_slopes.expand(40), atol=1e-6)
    assert torch.allclose(lines.biases, shared.biases.expand(40), atol=1e-6)


def test_blocks_of_tags_change_nothing(world, monkeypatch):
    whole = world.fitted()
    monkeypatch.setattr(stage, "_BLOCK", 7)
    for ours, theirs in zip(world.fitted().tags.tags, whole.tags.tags, strict=True):
        assert ours.fit.slope == pytest.approx(theirs.fit.slope, rel=1e-4)
        assert ours.fit.bias == pytest.approx(theirs.fit.bias, abs=1e-4)


def test_calibration_finds_the_probabilities_that_the_videos_were_made_with(world):
    found = world.fitted()
    before, after = (
        np.abs(scores - world.true).mean()
        for scores in (world.scores, found.tags.apply(torch.from_numpy(world.scores)).numpy())
    )
    assert after < before / 5
    assert found.log_loss[1] < found.log_loss[0]
    assert found.calibration_error[1] < found.calibration_error[0] / 3
    best = -np.log(np.where(world.labels, world.true, 1 - world.true)).sum() / len(world.ids)
    assert best < found.log_loss[1] < best + 0.1 * (found.log_loss[0] - best)


def test_a_tag_of_few_positives_stays_with_the_others_and_a_common_one_goes_its_own_way():
    slopes, biases = [1.0] * 40, [0.0] * 38 + [1.5, 1.5]
    world = World(6000, slopes, biases, [3.0] * 38 + [3.0, 10.5])
    found = world.fitted()
    common, rare = found.tags.tags[38].fit, found.tags.tags[39].fit
    assert 1 <= rare.positives < 30 < 500 < common.positives
    assert common.bias == pytest.approx(1.5, abs=0.3)
    assert abs(rare.bias - found.tags.default.bias) < abs(common.bias - found.tags.default.bias)


def test_tags_that_are_alike_get_no_room_and_those_that_differ_do():
    rng = np.random.default_rng(5)
    rarity = rng.uniform(1, 5, 30).tolist()
    alike = World(6000, [0.7] * 30, [0.5] * 30, rarity).fitted().tags.fitted["spread"]
    apart = World(6000, [0.7] * 30, rng.normal(0, 1, 30).tolist(), rarity).fitted().tags.fitted["spread"]
    assert alike["bias"] <= 0.125
    assert alike["log_slope"] <= 0.05
    assert apart["bias"] >= 0.5


def test_a_tag_that_nobody_has_and_scores_that_say_nothing_do_no_harm():
    world = World(3000, [1.0] * 5, [0.0] * 5, [1.0] * 5)
    world.labels[:, 1] = False
    world.scores[:, 2] = 0.0
    world.scores[:, 3] = 1.0
    world.labels[:, 4] = world.scores[:, 4] < 0.2  # the higher, the less likely
    for precision in (None, 0.9):
        found = world.fitted(precision)
        for tag in found.tags.tags:
            assert 0 < tag.fit.slope < 20
            assert math.isfinite(tag.fit.bias)
            assert tag.fit.threshold > 0


# ---------------------------------------------------------------------- thresholds


def loop_f1(scores: list[float], positives: list[float]) -> float:
    """The lowest score of those from which on F1 is highest."""
    best = (-1.0, 0.0)
    for threshold in sorted(set(scores)):
        shown = [n for n, score in enumerate(scores) if score >= threshold]
        hits = sum(positives[n] for n in shown)
        best = max(best, (2 * hits / (len(shown) + sum(positives)), -threshold))
    return -best[1]


def test_thresholds_lie_between_a_tags_own_best_and_the_best_for_all():
    rng = np.random.default_rng(11)
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64).expand(3, 9) + torch.tensor([[0.0], [0.1], [0.2]])
    pairs = torch.from_numpy(rng.integers(0, 6, (3, 9))).double()
    pairs[2] = 0
    pairs[2, 0] = 2
    positives = torch.from_numpy(rng.binomial(pairs.long().numpy(), 0.5)).double()
    found = stage._thresholds(logits, positives, pairs, None).tolist()

    def listed(tag: int) -> list[float]:
        return [
            z for z, n in zip(logits[tag].tolist(), pairs[tag].tolist(), strict=True) for _ in range(int(n))
        ]

    scores, true = [], []
    for tag in range(3):
        for z, n, m in zip(logits[tag].tolist(), pairs[tag].tolist(), positives[tag].tolist(), strict=True):
            scores += [z] * int(n)
            true += [1.0] * int(m) + [0.0] * int(n - m)
    one = loop_f1(scores, true)
    for tag in range(3):
        expected = [float(sigmoid(np.array(z))) for z in listed(tag)]
        own, total = loop_f1(listed(tag), expected), sum(expected)
        share = total / (2 * total + 1)
        assert found[tag] == pytest.approx(float(sigmoid(np.array(share * own + (1 - share) * one))))
    assert abs(math.log(found[2] / (1 - found[2])) - one) < 0.3, "next to nothing is expected of the last"


def test_a_tag_that_nobody_judged_has_the_threshold_of_all():
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64).expand(2, 9)
    pairs, positives = torch.ones(2, 9, dtype=torch.float64), torch.ones(2, 9, dtype=torch.float64)
    positives[0, :5] = 0
    pairs[1], positives[1] = 0, 0
    found = stage._thresholds(logits, positives, pairs, None)
    assert found[1] == pytest.approx(0.7310586)


def test_a_precision_is_reached_with_confidence_or_the_tag_is_never_shown():
    rng = np.random.default_rng(2)
    logits = torch.linspace(-3, 5, 17, dtype=torch.float64).expand(6, 17)
    pairs = torch.from_numpy(rng.integers(0, 80, (6, 17))).double()
    pairs[3:] = (pairs[3:] / 20).round()
    positives = torch.from_numpy(rng.binomial(pairs.long().numpy(), logits.sigmoid().numpy())).double()
    positives[2] = 0
    for precision in (0.6, 0.8, 0.95):
        found = stage._thresholds(logits, positives, pairs, precision).tolist()
        for tag in range(6):
            expected = math.inf
            for k in reversed(range(17)):
                n, m = float(pairs[tag, k:].sum()), float(positives[tag, k:].sum())
                if not n:
                    continue
                prior = float((pairs[tag, k:] * logits[tag, k:].sigmoid()).sum()) / n
                n, m = n + 30, m + 30 * prior
                p, z = m / n, 1.645
                bound = (p + z * z / 2 / n - z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)) / (
                    1 + z * z / n
                )
                if bound >= precision and pairs[tag, k]:
                    expected = float(logits[tag, k].sigmoid())
            assert found[tag] == pytest.approx(expected)
        assert found[2] == math.inf
    assert any(math.isfinite(t) for t in found)


def test_precision_holds_on_other_videos(world):
    found = world.fitted(0.8)
    fresh = World(8000, [1.0] * 40, [0.0] * 40, [0.0] * 40)  # shapes only
    rng = np.random.default_rng(99)
    fresh.labels = rng.random(world.true.shape) < world.true
    shown = found.tags.apply(torch.from_numpy(world.scores)) >= found.tags.thresholds
    hits, predicted = (shown.numpy() & fresh.labels).sum(0), shown.numpy().sum(0)
    assert hits.sum() / predicted.sum() > 0.8
    assert (hits >= 0.8 * predicted - 2 * np.sqrt(0.16 * predicted) - 1).all()
    assert found.never == [tag.name for tag in found.tags.tags if tag.fit.threshold == math.inf]
    assert (predicted[[tag.fit.threshold == math.inf for tag in found.tags.tags]] == 0).all()
    assert found.shown["fitted"].precision > 0.8 > found.shown["one threshold"].precision


# ---------------------------------------------------------------------- what is said of it


def test_what_is_said_of_scores_as_trained_is_what_the_metrics_say(world):
    found = world.fitted()
    metric = Calibration()
    metric.update(world.scores, world.labels)
    assert found.calibration_error[0] == pytest.approx(metric.compute(), rel=0.02)
    p = world.scores.astype(np.float64)
    loss = -np.log(np.where(world.labels, p, 1 - p)).sum() / len(p)
    assert found.log_loss[0] == pytest.approx(loss, rel=1e-3)
    shown, row = world.scores >= 0.5, found.shown["0.5"]
    hits, predicted, true = (each.sum(0) for each in (shown & world.labels, shown, world.labels))
    f1 = [2 * h / (n + m) for h, n, m in zip(hits, predicted, true, strict=True) if m]
    assert row.macro_f1 == pytest.approx(np.mean(f1))
    assert row.micro_f1 == pytest.approx(2 * hits.sum() / (predicted.sum() + true.sum()))
    assert row.precision == pytest.approx(hits.sum() / predicted.sum())
    assert row.recall == pytest.approx(hits.sum() / true.sum())
    assert row.tags_per_video == pytest.approx(predicted.sum() / 8000)


def test_what_is_said_of_fitted_tags_is_of_videos_they_were_not_fitted_on(world):
    # Labels that have nothing to do with the scores: whatever was fitted to them helps nobody else.
    rng = np.random.default_rng(13)
    noise = World(400, [1.0] * 200, [0.0] * 200, [3.0] * 200)
    noise.labels = rng.random(noise.labels.shape) < 0.01
    found = noise.fitted()
    entropy = -400 * 200 * (0.01 * math.log(0.01) + 0.99 * math.log(0.99)) / 400
    assert found.log_loss[1] > 0.9 * entropy
    assert found.shown["fitted"].micro_f1 < 0.03
    assert world.fitted().shown["fitted"].macro_f1 > world.fitted().shown["one threshold"].macro_f1


# ---------------------------------------------------------------------- models and data


def recorded(path: Path, world: World) -> Recorded:
    """A model that has these scores."""
    tags = world.scores.shape[1]
    columns = {
        "id": world.ids,
        "labels": [list(range(tags))] * len(world.ids),
        "probabilities": pa.array(world.scores.tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path)
    return Recorded(path, classes=tags)


def test_merged_tags_are_calibrated_as_they_are_shown(tmp_path):
    world = World(600, [0.8] * 4, [0.4] * 4, [1.0, 1.5, 2.0, 2.5])
    model = recorded(tmp_path / "x.parquet", world)
    data = InMemory(
        [video(name, labels=np.flatnonzero(row)) for name, row in zip(world.ids, world.labels, strict=True)]
    )
    tags = TagSet.of(model).merge("both", ["class 1", "class 3"]).drop("class 2")
    tags = tags.with_fits([Fit(9.0, 9.0)] * 2, default=Fit(), fitted={"old": True})
    loader = Loader(data, features={}, classes=4, batch_size=64)
    done: list[int] = []
    found = calibrate(model, tags, loader, device=CPU, on_batch=done.append)
    expected = World(600, [0.8] * 2, [0.4] * 2, [0.0] * 2)
    expected.scores = np.stack([world.scores[:, 0], world.scores[:, [1, 3]].max(1)], 1)
    expected.labels = np.stack([world.labels[:, 0], world.labels[:, [1, 3]].any(1)], 1)
    theirs = expected.fitted()
    assert [tag.fit for tag in found.tags.tags] == [tag.fit for tag in theirs.tags.tags]
    assert found.shown == theirs.shown
    assert found.tags.names == ["class 0", "both"]
    assert found.tags.fitted["videos"] == 600
    assert done[-1] == 600


def test_of_rated_segments_only_what_was_judged_counts(tmp_path):
    world = World(300, [1.0] * 3, [0.0] * 3, [0.0] * 3)
    rng = np.random.default_rng(4)
    judged = rng.random((300, 3)) < 0.5
    world.labels &= judged
    model = recorded(tmp_path / "x.parquet", world)
    examples = []
    for name, true, rated in zip(world.ids, world.labels, judged, strict=True):
        example = video(name, labels=np.flatnonzero(true))
        example.rated = np.flatnonzero(rated)
        examples.append(example)
    tags = TagSet.of(model).merge("both", ["class 0", "class 1"])
    counted: list[Counts] = []
    real = stage._fitted

    def spy(counts, *arguments, **options):
        counted.append(counts)
        return real(counts, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_fitted", spy)
        calibrate(model, tags, Loader(InMemory(examples), features={}, classes=3, batch_size=7), device=CPU)
    of_both = judged[:, :2].all(1) | world.labels[:, :2].any(1)
    assert counted[0].pairs.sum((0, 2)).tolist() == [of_both.sum(), judged[:, 2].sum()]
    assert counted[0].positives.sum((0, 2)).tolist() == [
        world.labels[:, :2].any(1).sum(),
        world.labels[:, 2].sum(),
    ]


def test_data_that_cannot_be_calibrated_on_is_one_line(tmp_path):
    world = World(20, [1.0] * 3, [0.0] * 3, [0.0] * 3)
    model = recorded(tmp_path / "x.parquet", world)
    unlabelled = InMemory([video(name, labels=()) for name in world.ids])
    one = InMemory([video(name, labels=[0] * (number == 3)) for number, name in enumerate(world.ids)])
    for data, reason in ((unlabelled, "0 labels in 20 videos are too few"), (one, "1 labels in 20 videos")):
        with pytest.raises(DataError, match=reason):
            calibrate(model, TagSet.of(model), Loader(data, features={}, classes=3, batch_size=8), device=CPU)
    for precision in (0.0, 1.0, -1.0, 90.0):
        with pytest.raises(RecipeError, match=r"--precision is .*; expected more than 0 and less than 1"):
            calibrate(
                model,
                TagSet.of(model),
                Loader(one, features={}, classes=3, batch_size=8),
                device=CPU,
                precision=precision,
            )


def test_the_command_writes_into_the_model_and_predict_uses_it(cli, run, shards, tmp_path):
    own = shutil.copytree(run, tmp_path / "own")
    assert cli("tags", own, "--rename", "beach=Strand")[0] == 0
    code, out, err = cli("calibrate", own, "--data", f"{shards}/test*", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["videos"], found["never"]) == (50, [])
    assert set(found["shown"]) == {"0.5", "one threshold", "fitted"}
    assert "fitted thresholds" in err
    tags = TagSet.read(find(own))
    assert tags is not None
    assert "Strand" in tags.names
    assert tags.fitted["videos"] == 50
    out = tmp_path / "x.jsonl"
    assert cli("predict", own, "--data", f"{shards}/test*", "--out", out, "--threshold")[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    thresholds = dict(zip(tags.names, tags.thresholds.tolist(), strict=True))
    for row in rows:
        for name, p in zip(row["names"], row["probabilities"], strict=True):
            assert p >= thresholds[name] - 1e-5
    code, out, _ = cli("calibrate", own, "--data", f"{shards}/test*", "--precision", 0.99)
    assert code == 0
    assert "120 tags do not reach a precision of 0.99 and are never shown:" in out
    assert "... and 20 more" in out
    assert "never" in cli("tags", own)[1]
    assert cli("calibrate", own, "--data", f"{shards}/test*", "--precision", 2)[0] == 2
    assert tagreel.load(own).predict({"rgb": np.ones((2, 12)), "audio": np.ones((2, 6))})
