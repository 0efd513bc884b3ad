from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tagreel
from tagreel import checkpoint
from tagreel.batch import Batch
from tagreel.errors import DataError
from tagreel.loader import Loader, collate
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.predict import predict
from tagreel.tagger import build
from tagreel.teacher import Teacher, ask, fingerprint
from tests.conftest import InMemory, video

C = 6


def predictions(path: Path, rows, *, names=None, **types) -> Path:
    """A file as `tagreel predict` writes it: rows of id, classes and probabilities."""
    ids, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {
        "id": pa.array(ids, types.get("id", pa.string())),
        "labels": pa.array(labels, types.get("labels", pa.list_(pa.int32()))),
        "probabilities": pa.array(scores, types.get("probabilities", pa.list_(pa.float32()))),
    }
    if names is not None:
        columns["names"] = pa.array([[names[label] for label in row] for row in labels])
    pq.write_table(pa.table(columns), path, row_group_size=16)
    return path


def batch(labels: dict[str, list[int]]) -> Batch:
    return collate([video(name, labels=ids) for name, ids in labels.items()], features={})


def random_problem(videos=200, top_k=4):
    """Labels and the `top_k` best scores of random videos, in another order than the labels."""
    rng = np.random.default_rng(0)
    labels = {f"v{i}": np.flatnonzero(rng.random(C) < 0.25).tolist() for i in range(videos)}
    rows = []
    for name in rng.permutation(list(labels)).tolist():
        # On a coarse grid, so that scores tie.
        scores = np.round(rng.random(C) ** 3, 2)
        best = np.argsort(-scores)[:top_k]
        rows.append((name, best.tolist(), scores[best].tolist()))
    return labels, rows


def naive(labels, rows, share):
    """One class at a time: its negatives by falling score, as many as may be without parting ties."""
    listed = {name: dict(zip(ids, scores, strict=True)) for name, ids, scores in rows}
    forgiven = set()
    for c in range(C):
        negatives = [name for name in labels if c not in labels[name]]
        allowed = math.floor(share * len(negatives))
        known = [name for name in negatives if c in listed[name]]
        for score in sorted({listed[name][c] for name in known}, reverse=True):
            above = [name for name in known if listed[name][c] >= score]
            if len(above) <= allowed:
                forgiven |= {(name, c) for name in above}
    return forgiven


def as_pairs(teacher: Teacher, labels) -> set[tuple[str, int]]:
    mask = teacher.forgiven(batch(labels))
    names = list(labels)
    return {(names[b], c) for b, c in mask.nonzero().tolist()}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.2, 0.6])
def test_of_each_class_the_likeliest_share_of_the_negatives_is_forgiven(share, tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.predictions._ROWS", 24)
    labels, rows = random_problem()
    teacher = Teacher(predictions(tmp_path / "t.parquet", rows), classes=C, forgive=share)
    names = list(labels)
    teacher.compare(batch({n: labels[n] for n in names[at : at + 32]}) for at in range(0, len(names), 32))
    expected = naive(labels, rows, share)
    assert as_pairs(teacher, labels) == expected
    assert teacher.pairs == len(expected)
    assert bool(expected) == (share > 0)
    # Any videos in any order, also one of them twice.
    some = [names[i] for i in (7, 3, 199, 0, 120, 5)]
    found = as_pairs(teacher, {name: labels[name] for name in some})
    assert found == {pair for pair in expected if pair[0] in some}
    twice = batch({some[0]: []})
    twice.ids = twice.ids * 2
    assert torch.equal(*teacher.forgiven(twice).unbind())


def test_videos_outside_of_the_training_set_do_not_count(tmp_path):
    labels, rows = random_problem()
    half = {name: ids for name, ids in labels.items() if int(name[1:]) % 2}
    teacher = Teacher(predictions(tmp_path / "t.parquet", rows), classes=C, forgive=0.1)
    teacher.compare([batch(half)])
    expected = naive(half, [row for row in rows if row[0] in half], 0.1)
    assert expected
    assert as_pairs(teacher, half) == expected
    assert not as_pairs(teacher, {name: [] for name in labels if name not in half})


def test_a_label_is_never_forgiven(tmp_path):
    rows = [("a", [2, 0], [0.9, 0.8]), ("b", [2], [0.7]), ("c", [2], [0.1])]
    teacher = Teacher(predictions(tmp_path / "t.parquet", rows), classes=C, forgive=0.5)
    teacher.compare([batch({"a": [2], "b": [], "c": []})])
    assert as_pairs(teacher, {"a": [2], "b": [], "c": []}) == {("b", 2)} | {("a", 0)}


def test_what_ties_stays_in_the_loss(tmp_path):
    rows = [("a", [1], [0.75]), ("b", [1], [0.75]), ("c", [1], [0.5])]
    labels: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    path = predictions(tmp_path / "t.parquet", rows)
    for share, expected in ((0.34, set()), (0.67, {("a", 1), ("b", 1)})):
        teacher = Teacher(path, classes=C, forgive=share)
        teacher.compare([batch(labels)])
        assert as_pairs(teacher, labels) == expected


def test_a_class_in_no_list_and_a_video_with_an_empty_one_forgive_nothing(tmp_path):
    rows = [("a", [], []), ("b", [1], [1.0]), ("c", [1], [0.0])]
    labels: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    teacher = Teacher(predictions(tmp_path / "t.parquet", rows), classes=C, forgive=0.5)
    teacher.compare([batch(labels)])
    assert as_pairs(teacher, labels) == {("b", 1)}


def test_it_works_on_what_predict_writes(run, training_data, tmp_path):
    model = tagreel.load(run)
    loader = Loader(training_data, features=model.features, classes=model.classes, batch_size=16)
    out = tmp_path / "teacher.parquet"
    predict(model, loader, out, device=torch.device("cpu"), top_k=100)
    teacher = Teacher(out, classes=model.classes, forgive=0.1, label_names=model.label_names)
    teacher.compare(found for _, found in loader.epoch())
    forgiven = total = 0
    for _, found in loader.epoch():
        mask = teacher.forgiven(found)
        labels = found.labels(model.classes)
        scores = torch.sigmoid(model.logits(found))
        assert not mask[labels == 1].any()
        forgiven += int(mask.sum())
        total += int((labels == 0).sum())
        if mask.any():
            assert scores[mask].mean() > scores[(labels == 0) & ~mask].mean()
    assert 0.08 < forgiven / total <= 0.1


def test_the_fingerprint_tells_files_apart(tmp_path):
    _, rows = random_problem()
    files = [predictions(tmp_path / name, some) for name, some in (("a", rows), ("b", rows), ("c", rows[1:]))]
    prints = list(map(fingerprint, files))
    assert prints[0] == prints[1] != prints[2]


def test_a_video_without_a_row_is_named(tmp_path):
    path = predictions(tmp_path / "t.parquet", [("a", [1], [0.5])])
    teacher = Teacher(path, classes=C, forgive=0.1)
    for call in (lambda b: teacher.compare([b]), teacher.forgiven):
        with pytest.raises(DataError, match="has no row for the training video 'zz'; score the same data"):
            call(batch({"a": [], "zz": []}))


def test_ratings_by_people_are_not_missing(tmp_path):
    teacher = Teacher(predictions(tmp_path / "t.parquet", [("a", [1], [0.5])]), classes=C, forgive=0.1)
    rated = video("a", labels=[1])
    rated.rated = np.array([1, 2])
    with pytest.raises(DataError, match="people rated the training videos"):
        teacher.compare([collate([rated], features={})])


@pytest.mark.parametrize(
    ("rows", "types", "message"),
    [
        ([], {}, "holds no predictions"),
        ([("a", [6], [0.5])], {}, "record 0: class 6; expected 0 to 5, of 6 classes"),
        ([("a", [-1, 3], [0.5, 0.5])], {}, "record 0: class -1; expected 0 to 5"),
        ([("a", [1], [1.5])], {}, "the score of class 1 is 1.5; expected 0 to 1"),
        ([("a", [1], [math.nan])], {}, "the score of class 1 is nan; expected 0 to 1"),
        ([("a", [1], [None])], {}, "'probabilities' is empty in some rows"),
        ([("a", [1], [0.5]), ("b", [], []), ("a", [2], [0.5])], {}, "record 2: the same video as record 0"),
        ([("a", [1, 2], [0.5])], {}, "differ in length"),
        ([("a", None, [0.5])], {}, "'labels' is empty in some rows"),
        ([(None, [1], [0.5])], {}, "'id' is empty in some rows"),
        ([(1, [1], [0.5])], {"id": pa.int64()}, "'id' is of int64; expected a .parquet"),
        ([("a", ["x"], [0.5])], {"labels": pa.list_(pa.string())}, "'labels' is of list<"),
        ([("a", [1], 0.5)], {"probabilities": pa.float32()}, "'probabilities' is of float;"),
    ],
)
def test_rows_that_are_no_predictions_for_these_classes_are_refused(rows, types, message, tmp_path):
    path = predictions(tmp_path / "t.parquet", rows, **types)
    with pytest.raises(DataError, match=message) as error:
        Teacher(path, classes=C, forgive=0.1).compare([batch({"a": [1]})])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    text, ranking = tmp_path / "t.parquet", tmp_path / "ranking.csv"
    text.write_text("VideoId,Labels\n", encoding="utf-8")
    ranking.write_text("Class,Segments\n1,a:0 b:5\n", encoding="utf-8")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"], "score": [1.0]}), other)
    for path, message in (
        (text, "'VideoId,Labels'; expected a .parquet"),
        (ranking, "is a ranking; a teacher gives probabilities"),
        (tmp_path / "nowhere.parquet", "cannot be read: "),
        (tmp_path, "cannot be read: "),
        (other, r"has no column 'labels' \(it has: id, score\)"),
    ):
        with pytest.raises(DataError, match=message) as error:
            Teacher(path, classes=C, forgive=0.1)
        assert "\n" not in str(error.value)


def test_a_file_of_any_origin_teaches(tmp_path):
    path = tmp_path / "submitted.csv"
    path.write_text("VideoId,LabelConfidencePairs\na,2 0.5 0 0.25\nb,1 1.0\n", encoding="utf-8")
    teacher = Teacher(path, classes=C, distill=1.0)
    targets, _ = teacher.teach(batch({"b": [3], "a": []}))
    assert targets.tolist() == [[0, 1, 0, 0, 0, 0], [0.25, 0, 0.5, 0, 0, 0]]


def test_a_damaged_file_is_named(tmp_path):
    _, rows = random_problem()
    path = predictions(tmp_path / "t.parquet", rows)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"t\.parquet: is damaged"):
        Teacher(path, classes=C, forgive=0.1).compare([batch({"v0": []})])


def test_another_vocabulary_is_refused(tmp_path):
    names = [f"tag {c}" for c in range(C)]
    rows = [("a", [1, 3], [0.5, 0.4])]
    path = predictions(tmp_path / "t.parquet", rows, names=names)
    Teacher(path, classes=C, forgive=0.1, label_names=names)
    with pytest.raises(DataError, match="class 3 is 'tag 3' here and 'other' in the training"):
        Teacher(path, classes=C, forgive=0.1, label_names=[*names[:3], "other", *names[4:]])
    unnamed = predictions(tmp_path / "u.parquet", rows, names=[f"class {c}" for c in range(C)])
    Teacher(unnamed, classes=C, forgive=0.1, label_names=names)


def halved(p: float) -> float:
    """What half precision leaves of a number."""
    return struct.unpack("e", struct.pack("e", p))[0]


@pytest.mark.parametrize(("forgive", "rated"), [(0.0, False), (0.2, False), (0.0, True)])
@pytest.mark.parametrize("distill", [0.0, 0.3, 1.0])
def test_what_is_taught_is_the_mixture_of_two_losses(distill, forgive, rated, tmp_path, monkeypatch):
    """(1 - λ) of the labels' cross entropy, of what counts, and λ of the teacher's probabilities'."""
    monkeypatch.setattr("tagreel.predictions._ROWS", 24)
    labels, rows = random_problem()
    listed = {name: dict(zip(ids, scores, strict=True)) for name, ids, scores in rows}
    teacher = Teacher(predictions(tmp_path / "t.parquet", rows), classes=C, distill=distill, forgive=forgive)
    teacher.compare([batch(labels)] if forgive else [])
    missing = naive(labels, rows, forgive) if forgive else set()
    assert bool(missing) == bool(forgive)

    names = ["v7", "v3", "v199", "v0", "v120", "v5"]
    examples = [video(name, labels=labels[name]) for name in names]
    judged = {name: list(range(C)) for name in names}
    if rated:
        for index, example in enumerate(examples):
            judged[example.id] = [index % C, (index + 2) % C]
            example.rated = np.array(judged[example.id])
    some = collate(examples, features={})
    logits = torch.randn(len(names), C, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for b, name in enumerate(names):
        for c in range(C):
            p = 1 / (1 + math.exp(-logits[b, c].item()))
            y, t = float(c in labels[name]), halved(listed[name].get(c, 0.0))
            if c in judged[name] and (name, c) not in missing:
                expected -= (1 - distill) * (y * math.log(p) + (1 - y) * math.log(1 - p))
            expected -= distill * (t * math.log(p) + (1 - t) * math.log(1 - p))
    targets, counts = teacher.teach(some)
    assert (counts is None) == (not rated and not forgive)
    found = CrossEntropy()(logits, targets, counts)
    assert found.item() == pytest.approx(expected / len(names), rel=1e-5)
    assert 0 <= targets.min() <= targets.max() <= 1


def test_without_a_share_the_labels_are_what_is_taught(tmp_path):
    labels, rows = random_problem()
    teacher = Teacher(predictions(tmp_path / "t.parquet", rows), classes=C)
    some = batch(labels)
    targets, counts = teacher.teach(some)
    assert torch.equal(targets, some.labels(C))
    assert counts is None


def test_a_listed_class_takes_four_bytes(tmp_path):
    """As the docstring says, so that whoever has millions of videos can count."""
    labels, rows = random_problem()
    teacher = Teacher(predictions(tmp_path / "t.parquet", rows), classes=C, distill=0.5)
    kept = [array for array in vars(teacher._listed).values() if isinstance(array, np.ndarray)]
    listed = sum(len(ids) for _, ids, _ in rows)
    assert sum(array.nbytes for array in kept) == (len(rows) + 1) * 8 + listed * 4
    assert len(teacher) == len(labels)


def test_a_model_is_asked_once(run, training_data, tmp_path, monkeypatch):
    out, told = tmp_path / "student" / "teacher.parquet", []
    ask(run, training_data, out, device=torch.device("cpu"), on_batch=told.append)
    assert told[-1] == 100
    model = tagreel.load(run)
    loader = Loader(training_data, features=model.features, classes=model.classes, batch_size=16)
    predict(model, loader, tmp_path / "by_hand.parquet", device=torch.device("cpu"), top_k=100)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "by_hand.parquet"))

    with monkeypatch.context() as patched:
        patched.setattr("tagreel.teacher.predict", None)  # not called again
        ask(run, training_data, out, device=torch.device("cpu"))
    # A killed one goes on behind its last whole part.
    (out.with_suffix(".json")).unlink()
    monkeypatch.setattr("tagreel.predict.PART_VIDEOS", 32)

    def kill(done):
        if done > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(run, training_data, out, device=torch.device("cpu"), on_batch=kill)
    told.clear()
    ask(run, training_data, out, device=torch.device("cpu"), on_batch=told.append)
    assert told[0] == 48
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "by_hand.parquet"))


def test_another_teacher_or_other_data_are_asked_anew(
    run, tiny, training_data, test_data, tmp_path, monkeypatch
):
    out = tmp_path / "teacher.parquet"
    torch.manual_seed(3)
    model = build(tiny, label_names=tagreel.load(run).label_names)
    checkpoint.save(tmp_path / "other", 1, model, model.state_dict(), facts={})
    seen = []
    for teacher, data in ((run, training_data), (tmp_path / "other", training_data), (run, test_data)):
        ask(teacher, data, out, device=torch.device("cpu"))
        seen.append(pq.read_table(out))
    assert not seen[0].equals(seen[1])
    assert [len(table) for table in seen] == [100, 100, 50]
    assert fingerprint(run) == fingerprint(checkpoint.find(run)) != fingerprint(tmp_path / "other")
    # Whose answers they are is not believed of another's, however late that one's asking was killed.
    with monkeypatch.context() as patched:
        patched.setattr("tagreel.teacher.write_json", None)
        with pytest.raises(TypeError):
            ask(tmp_path / "other", training_data, out, device=torch.device("cpu"))
    ask(run, test_data, out, device=torch.device("cpu"))
    assert pq.read_table(out).equals(seen[2])


def test_a_teacher_that_names_the_classes_otherwise_is_refused(run, tmp_path):
    data = InMemory([video("v0", rgb=np.ones((2, 12), np.uint8), audio=np.ones((2, 6), np.uint8))])
    data.label_names = [f"other {c}" for c in range(120)]
    with pytest.raises(DataError, match="class 0 is 'other 0' here"):
        ask(run, data, tmp_path / "teacher.parquet", device=torch.device("cpu"))
    assert not list(tmp_path.iterdir())
