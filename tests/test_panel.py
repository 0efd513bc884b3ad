from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import evaluate, scoring_loader
from tagreel.panel import ModelPanel
from tagreel.tagger import build
from tests.conftest import InMemory, video

CPU = torch.device("cpu")


def _ensemble(tiny, weights=None, top_k=None, **changes):
    members = {}
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        members[name] = build(replace(tiny, **changes)).eval()
        for parameter in members[name].parameters():
            torch.nn.init.normal_(parameter, std=0.7)  # or all say about the same
    return EnsembleTagger(members, weights, top_k=top_k)


def _panel(ensemble, data, **options):
    return ModelPanel(ensemble, scoring_loader(ensemble, data, batch_size=16), device=CPU, **options)


def _evaluated(ensemble, data):
    return evaluate(ensemble, scoring_loader(ensemble, data, batch_size=16), device=CPU).metrics


@pytest.mark.parametrize("by", ["gap@20", "map"])
@pytest.mark.parametrize("top_k", [None, 5])
def test_a_weighting_scores_what_evaluate_finds(by, top_k, tiny, test_data):
    panel = _panel(_ensemble(tiny, top_k=top_k), test_data, by=by)
    assert panel.names == ["a", "b", "c"]
    assert panel.videos == 50
    for weights in ([1, 0, 0], [0, 0, 1], [1, 1, 1], [5, 1, 2]):
        expected = _evaluated(_ensemble(tiny, weights, top_k), test_data)[by]
        assert panel.score(torch.tensor(weights, dtype=torch.float64)) == pytest.approx(expected, abs=1e-7)
    # and not that they score alike
    assert panel.score(torch.tensor([1.0, 0, 0])) != panel.score(torch.tensor([0, 0, 1.0]))


@pytest.mark.parametrize("top_k", [None, 5])
def test_lists_of_twenty_are_enough_for_the_gap_of_one_model(top_k, tiny, test_data):
    panel = _panel(_ensemble(tiny, top_k=top_k), test_data, listed=20)
    assert max(block.labels.shape[1] for block in panel.blocks) < 90
    for m, weights in enumerate(([1, 0, 0], [0, 1, 0], [0, 0, 1])):
        expected = _evaluated(_ensemble(tiny, weights, top_k), test_data)["gap@20"]
        assert panel.score(torch.eye(3)[m]) == pytest.approx(expected, abs=1e-7)


def test_with_lists_a_class_ranks_the_videos_that_list_it_first(tiny, test_data):
    ensemble = _ensemble(tiny)
    panel = _panel(ensemble, test_data, by="map", listed=20)
    weights, scores, kept, labels = torch.tensor([0.5, 0.2, 0.3]), [], [], []
    with torch.no_grad():
        for _, batch in scoring_loader(ensemble, test_data, batch_size=16).epoch():
            each = [model.probabilities(batch) for model in ensemble.members]
            truth = batch.labels(120) > 0
            mask = truth.clone()
            for p in each:
                mask.scatter_(1, p.topk(20).indices, True)
            scores.append(sum(w * p for w, p in zip(weights, each, strict=True)))
            kept.append(mask)
            labels.append(truth)
    listed = torch.where(torch.cat(kept), torch.cat(scores), -1.0).numpy()
    truth = torch.cat(labels).numpy()
    found = []
    for label in range(120):
        if truth[:, label].any():
            order = np.argsort(-listed[:, label])
            hits = truth[order, label]
            found.append((np.cumsum(hits) / np.arange(1, 51))[hits].mean())
    assert panel.score(weights) == pytest.approx(np.mean(found), abs=1e-6)


def test_batches_hold_what_the_models_said_of_each_kept_class(tiny, test_data):
    ensemble = _ensemble(tiny)
    panel = _panel(ensemble, test_data, listed=20)
    loader = scoring_loader(ensemble, test_data, batch_size=16)
    for (scores, labels), block, (_, batch) in zip(
        panel.batches(), panel.blocks, loader.epoch(), strict=True
    ):
        with torch.no_grad():
            each = torch.stack([model.probabilities(batch) for model in ensemble.members], dim=2)
        assert scores.shape == (*labels.shape, 3)
        for row in range(len(batch)):
            classes = block.classes[row]
            count = int((classes >= 0).sum())
            best = {c for m in range(3) for c in each[row, :, m].topk(20).indices.tolist()}
            true = set(batch.labels(120)[row].nonzero().flatten().tolist())
            assert classes[:count].tolist() == sorted(best | true)
            torch.testing.assert_close(scores[row, :count], each[row, classes[:count].long()])
            assert classes[:count][labels[row, :count]].tolist() == sorted(true)
            assert not scores[row, count:].any()
            assert not labels[row, count:].any()


def test_what_nobody_rated_counts_nothing(tiny):
    """As in evaluation, of 2019's segments."""
    rng = np.random.default_rng(0)
    videos = []
    for n in range(30):
        streams = {"rgb": rng.random((3, 12), np.float32), "audio": rng.random((3, 6), np.float32)}
        rated = np.sort(rng.permutation(120)[:6])
        videos.append(replace(video(f"v{n}", labels=rated[:3], **streams), rated=rated))
    data = InMemory(videos)
    for by in ("gap@20", "map"):
        panel = _panel(_ensemble(tiny), data, by=by)
        for weights in ([0, 1, 0], [1, 2, 1]):
            expected = _evaluated(_ensemble(tiny, weights), data)[by]
            assert panel.score(torch.tensor(weights)) == pytest.approx(expected, abs=1e-7)


def test_the_same_weights_are_not_scored_twice(tiny, test_data, monkeypatch: pytest.MonkeyPatch):
    panel = _panel(_ensemble(tiny), test_data)
    first = panel.score(torch.full((3,), 1 / 3, dtype=torch.float64))
    monkeypatch.setattr(panel, "_gap", None)
    assert panel.score(torch.full((3,), 0.7, dtype=torch.float64)) == first  # not a third to the last bit


def test_what_cannot_be_scored_is_an_error(tiny, test_data):
    with pytest.raises(RecipeError, match="--listed is 19; expected at least 20"):
        _panel(_ensemble(tiny), test_data, listed=19)
    streams = {"rgb": np.ones((1, 12), np.float32), "audio": np.ones((1, 6), np.float32)}
    with pytest.raises(DataError, match="shard0: none of the 2 videos has a label"):
        _panel(_ensemble(tiny), InMemory([video(n, labels=(), **streams) for n in "ab"])).score(torch.ones(3))
    broken = _ensemble(tiny)
    torch.nn.init.constant_(broken.members[1].head.linear.bias, float("nan"))
    with pytest.raises(RecipeError, match=r"b: its scores: .* are NaN; .*; its weights cannot be used"):
        _panel(broken, test_data).score(torch.ones(3))
    renamed = InMemory([video("a", **streams)])
    renamed.label_names = ["x"] * 120
    named = _ensemble(tiny)
    named.name_classes(120, ["y"] * 120)
    with pytest.raises(DataError, match="class 0 is 'x' here and 'y' in the model"):
        _panel(named, renamed)


def test_progress_is_told(tiny, test_data):
    told = []
    panel = _panel(_ensemble(tiny), test_data, on_batch=told.append)
    assert told == []  # nothing is scored before it is asked for
    assert panel.videos == 50
    panel.score(torch.ones(3))
    assert told == [16, 32, 48, 50]


def test_a_few_classes_are_all_listed(tiny):
    """Fewer than the twenty that GAP@20 ranks."""
    rng = np.random.default_rng(0)
    videos = [
        video(
            f"v{n}", labels=[n % 3], rgb=rng.random((3, 12), np.float32), audio=rng.random((3, 6), np.float32)
        )
        for n in range(30)
    ]
    ensemble = _ensemble(tiny, classes=3)
    for by in ("gap@20", "map"):
        found = _panel(ensemble, InMemory(videos), by=by).score(torch.ones(3))
        assert found == pytest.approx(_evaluated(ensemble, InMemory(videos))[by], abs=1e-7)
