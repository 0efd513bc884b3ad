from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tagreel import checkpoint
from tagreel.errors import DataError, RecipeError
from tagreel.evaluate import check_names, evaluate, scoring_loader
from tagreel.loader import Loader, collate
from tagreel.predict import predict
from tagreel.predictions import PredictionFile, write_ranking
from tagreel.recorded import Recorded
from tagreel.tagger import Tagger
from tests.conftest import REPOSITORY, InMemory, video

CPU = torch.device("cpu")
HEADER = "VideoId,LabelConfidencePairs\n"
EXAMPLE = REPOSITORY.parent / "shared" / "data" / "yt8m" / "predictions_example.csv"
ROWS = [("a", [1, 4], [0.75, 0.5]), ("b", [0], [0.25]), ("c", [], []), ("d", [2, 0, 3], [0.125, 1.0, 0.0])]


@pytest.fixture
def model(run) -> Tagger:
    return checkpoint.load(run)


def batch(*ids: str):
    return collate([video(name) for name in ids], features={})


def parquet(path: Path, rows=ROWS, names=None, **types) -> Path:
    ids, labels, scores = zip(*rows, strict=True)
    columns = {
        "id": pa.array(ids, types.get("id", pa.string())),
        "labels": pa.array(labels, types.get("labels", pa.list_(pa.int32()))),
        "probabilities": pa.array(scores, types.get("probabilities", pa.list_(pa.float32()))),
    }
    if names is not None:
        columns["names"] = pa.array([[names[label] for label in row] for row in labels])
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def jsonl(path: Path, rows=ROWS, names=None, **types) -> Path:
    lines = [{"id": name, "labels": labels, "probabilities": scores} for name, labels, scores in rows]
    if names is not None:
        lines = [{**line, "names": [names[label] for label in line["labels"]]} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def pairs(path: Path, rows=ROWS, names=None, confidence="%g") -> Path:
    lines = [
        f"{name}," + " ".join(f"%i {confidence}" % pair for pair in zip(labels, scores, strict=True))
        for name, labels, scores in rows
    ]
    path.write_text(HEADER + "".join(line + "\n" for line in lines))
    return path


FORMATS = {"x.parquet": parquet, "x.jsonl": jsonl, "x.csv": pairs}
every_format = pytest.mark.parametrize("name", FORMATS)


def dense(rows, classes):
    found = torch.zeros(len(rows), classes)
    for at, (_, labels, scores) in enumerate(rows):
        for label, score in zip(labels, scores, strict=True):
            found[at, label] = score
    return found


# ---------------------------------------------------------------------- looking up


@every_format
def test_a_video_has_the_scores_of_its_row_and_0_elsewhere(name, tmp_path):
    model = Recorded(FORMATS[name](tmp_path / name), classes=6)
    expected = dense(ROWS, 6)
    assert torch.equal(model.probabilities(batch("a", "b", "c", "d")), expected)
    assert torch.equal(model.probabilities(batch("d", "a", "d")), expected[[3, 0, 3]])
    assert torch.equal(model.probabilities(batch("c")), torch.zeros(1, 6))
    assert model.probabilities(batch()).shape == (0, 6)


@pytest.mark.parametrize("rows_a_piece", [1, 3, 1024])
@every_format
def test_many_videos_in_pieces(name, rows_a_piece, tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.predictions._ROWS", rows_a_piece)
    rng = np.random.default_rng(0)
    rows = [
        (f"video {i}", labels.tolist(), (rng.integers(0, 9, len(labels)) / 8).tolist())
        for i in range(50)
        for labels in [rng.choice(30, rng.integers(0, 12), replace=False)]
    ]
    model = Recorded(FORMATS[name](tmp_path / name, rows), classes=30)
    order = rng.permutation(50)
    found = model.probabilities(batch(*(rows[i][0] for i in order)))
    assert torch.equal(found, dense(rows, 30)[order])


@every_format
def test_a_video_that_the_file_lacks_is_named_with_the_file_and_the_mending(name, tmp_path):
    model = Recorded(FORMATS[name](tmp_path / name))
    with pytest.raises(DataError, match=rf"{name}: has no row for the video 'e'; .*`tagreel predict`"):
        model.probabilities(batch("a", "e"))


def test_it_is_a_model_that_looks_at_nothing(tmp_path):
    model = Recorded(parquet(tmp_path / "some.parquet"))
    assert (model.name, model.features, model.optional, model.classes) == ("some.parquet", {}, (), 5)
    assert model.reads()(300, (0,)) == slice(0, 1)
    assert list(model.parameters()) == []


def test_a_loader_reads_records_for_it_without_their_frames(test_data, tmp_path):
    ids = [test_data.open(0)[i].id for i in range(50)]
    model = Recorded(pairs(tmp_path / "x.csv", [(name, [3], [0.5]) for name in ids]), classes=120)
    batches = [found for _, found in scoring_loader(model, test_data, batch_size=16).epoch()]
    assert [len(found) for found in batches] == [16, 16, 16, 2]
    assert [name for found in batches for name in found.ids] == ids
    assert all(found.streams == {} and found.num_frames == {} for found in batches)
    labels = torch.cat([found.labels(120) for found in batches])
    assert labels[7].nonzero()[:, 0].tolist() == test_data.open(0)[7].labels.tolist()
    assert all((model.probabilities(found.to(CPU))[:, 3] == 0.5).all() for found in batches)


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_what_predict_wrote_scores_as_the_model_itself(ending, model, test_data, tmp_path):
    out = tmp_path / f"x.{ending}"
    predict(model, scoring_loader(model, test_data), out, device=CPU, top_k=20)
    recorded = Recorded(out, classes=120)
    ours = evaluate(recorded, scoring_loader(recorded, test_data, batch_size=7), device=CPU).metrics
    theirs = evaluate(model, scoring_loader(model, test_data), device=CPU).metrics
    tolerance = 0 if ending == "parquet" else 1e-6
    for metric in ("gap@20", "map_top20", "hit@1", "perr"):
        assert ours[metric] == pytest.approx(theirs[metric], abs=tolerance)
    # What is outside of the lists is lost to this one.
    assert ours["map"] < theirs["map"]


@every_format
def test_written_again_it_is_the_same_model(name, tmp_path):
    first = Recorded(FORMATS[name](tmp_path / name), classes=6)
    first.write(tmp_path / "again.parquet")
    again = Recorded(tmp_path / "again.parquet", classes=6)
    ids = batch("d", "c", "b", "a")
    assert torch.equal(again.probabilities(ids), first.probabilities(ids))
    assert again.settings() == first.settings()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "again.parquet"])
    changed = [*ROWS[:-1], ("d", [2, 0, 3], [0.125, 0.875, 0.0])]
    assert Recorded(parquet(tmp_path / "other.parquet", changed), classes=6).settings() != first.settings()


def test_a_recorded_model_can_be_predicted_with(model, test_data, tmp_path):
    predict(model, scoring_loader(model, test_data), tmp_path / "a.parquet", device=CPU)
    recorded = Recorded(tmp_path / "a.parquet", label_names=model.label_names)
    predict(recorded, scoring_loader(recorded, test_data), tmp_path / "b.parquet", device=CPU)
    assert pq.read_table(tmp_path / "b.parquet") == pq.read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize("confidence", ["%g", "%f"])
def test_confidences_as_the_starter_code_and_as_willow_write_them(confidence, tmp_path):
    rows = [("a", list(range(50)), np.linspace(0.9, 1e-7, 50).tolist())]
    model = Recorded(pairs(tmp_path / "x.csv", rows, confidence=confidence))
    assert model.classes == 50
    np.testing.assert_allclose(model.probabilities(batch("a"))[0], rows[0][2], atol=5e-7)


def test_ids_with_commas_and_quotes_line_ends_of_windows_and_a_byte_order_mark(tmp_path):
    text = HEADER + '"a,b",1 0.5\n"say ""hi""",2 0.25\nplain,"0 0.125"\n\n'
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    found = Recorded(tmp_path / "x.csv").probabilities(batch("a,b", 'say "hi"', "plain"))
    assert found.tolist() == [[0, 0.5, 0], [0, 0, 0.25], [0.125, 0, 0]]


def test_columns_as_other_programs_write_them(tmp_path):
    path = parquet(
        tmp_path / "x.parquet",
        id=pa.large_string(),
        labels=pa.large_list(pa.uint16()),
        probabilities=pa.large_list(pa.float64()),
    )
    assert torch.equal(Recorded(path).probabilities(batch("d")), dense(ROWS, 5)[3:])


@pytest.mark.skipif(not EXAMPLE.exists(), reason=f"{EXAMPLE} is not there")
def test_a_real_submission_file_is_read():
    model = Recorded(EXAMPLE)
    found = model.probabilities(batch("../videos/4HOQFTxxPdM.mp4"))
    assert model.classes == 3847
    assert int((found > 0).sum()) == 20
    assert found[0, 1].item() == np.float32(0.142756)


# ---------------------------------------------------------------------- classes and their names


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
def test_names_are_taken_from_the_file(name, tmp_path):
    names = ["cat", "dog", "owl", "hen", "cow"]
    model = Recorded(FORMATS[name](tmp_path / name, names=names))
    assert (model.label_names, model.has_label_names) == (names, True)


def test_where_some_classes_are_not_mentioned_the_names_of_all_are_not_known(tmp_path):
    names = ["cat", "dog", "owl", "hen", "cow"]
    model = Recorded(jsonl(tmp_path / "x.jsonl", names=names), classes=7)
    assert model.label_names == [*names, "class 5", "class 6"]
    assert not model.has_label_names
    model = Recorded(tmp_path / "x.jsonl", label_names=[*names, "fox", "elk"])
    assert model.label_names == [*names, "fox", "elk"]
    assert model.has_label_names
    # Nobody named the classes of the data set: the file's names stand.
    model = Recorded(tmp_path / "x.jsonl", label_names=[f"class {c}" for c in range(5)])
    assert (model.label_names, model.has_label_names) == (names, True)


def test_a_file_of_other_classes_is_refused(tmp_path):
    names = ["cat", "dog", "owl", "hen", "cow"]
    path = jsonl(tmp_path / "x.jsonl", names=names)
    with pytest.raises(DataError, match="class 1 is 'dog' here and 'ape' elsewhere"):
        Recorded(path, label_names=["cat", "ape", "owl", "hen", "cow"])
    with pytest.raises(DataError, match="line 1: class 4; expected 0 to 3, of 4 classes"):
        Recorded(path, classes=4)
    with pytest.raises(RecipeError, match="2 label names and 5 classes"):
        Recorded(path, classes=5, label_names=["cat", "dog"])
    data = InMemory([video("a")])
    data.label_names = ["cat", "ape", "owl", "hen", "cow"]
    with pytest.raises(DataError, match="class 1 is 'ape' here and 'dog' in the model"):
        check_names(Recorded(path), data)


# ---------------------------------------------------------------------- rankings


def test_a_ranking_gives_place_i_of_n_the_score_1_minus_i_of_n(tmp_path):
    write_ranking(tmp_path / "x.csv", [(1, ["a:0", "b:5", "a:5", "c:0"]), (3, ["c:0"]), (4, [])])
    model = Recorded(tmp_path / "x.csv", classes=5)
    found = model.probabilities(batch("a:0", "a:5", "b:5", "c:0", "d:0"))
    expected = torch.zeros(5, 5)
    expected[[0, 2, 1, 3], 1] = torch.tensor([4 / 4, 3 / 4, 2 / 4, 1 / 4])
    expected[3, 3] = 1
    assert torch.equal(found, expected)
    with pytest.raises(DataError, match="ranks segments, each named video:start, and 'a' is none"):
        model.probabilities(batch("a"))


def test_of_a_ranking_no_more_than_the_challenge_read_count(tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.predictions.RANKED", 2)
    write_ranking(tmp_path / "x.csv", [(0, ["a:0", "b:0", "c:0"])])
    found = Recorded(tmp_path / "x.csv").probabilities(batch("a:0", "b:0", "c:0"))
    assert found[:, 0].tolist() == [1, 0.5, 0]


def test_a_ranking_written_as_rows_still_knows_that_it_leaves_segments_out(tmp_path):
    write_ranking(tmp_path / "x.csv", [(1, ["a:0", "b:5"])])
    first = Recorded(tmp_path / "x.csv", classes=3)
    first.write(tmp_path / "x.parquet")
    again = Recorded(tmp_path / "x.parquet", classes=3)
    assert again.settings() == first.settings()
    ids = batch("b:5", "z:0", "a:0")
    assert torch.equal(again.probabilities(ids), first.probabilities(ids))


def _starter_code(path, labels, top_n):
    """MAP as `segment_eval_inference.py` computes it, a class after the other; {(segment, class): 0 or 1}."""
    positives: dict[int, int] = {}
    for (_, label), score in labels.items():
        positives[label] = positives.get(label, 0) + (score > 0)
    found = []
    for line in path.read_text().splitlines()[1:]:
        label, listed = line.split(",")
        judged = [name for name in listed.split(" ")[:top_n] if (name, int(label)) in labels]
        if not positives.get(int(label)):
            continue
        hits, terms = 0, 0.0
        for place, name in enumerate(judged, start=1):
            if labels[name, int(label)] > 0:
                hits += 1
                terms += hits / place
        found.append(terms / positives[int(label)])
    return np.mean(found)


def test_a_submission_of_2019_is_scored_as_the_starter_code_does(tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.predictions.RANKED", 40)
    rng = np.random.default_rng(0)
    examples, labels = [], {}
    for index in range(60):
        rated = np.sort(rng.choice(6, 2, replace=False))
        true = rated[rng.random(2) < 0.5]
        example = video(f"v{index}:0", labels=true)
        example.rated = rated
        examples.append(example)
        labels |= {(example.id, int(c)): int(c in true) for c in rated}
    # Segments besides that nobody rated, which take places of the best forty.
    segments = [example.id for example in examples] + [f"w{index}:5" for index in range(30)]
    write_ranking(tmp_path / "x.csv", [(c, rng.permutation(segments).tolist()[:70]) for c in range(5)])
    model = Recorded(tmp_path / "x.csv", classes=6)
    found = evaluate(model, Loader(InMemory(examples), features={}, classes=6, batch_size=8), device=CPU)
    starter = _starter_code(tmp_path / "x.csv", labels, 40)
    # A class that the submission leaves out counts 0 with us, and not at all there.
    assert found.metrics["map@100000"] == pytest.approx(starter * 5 / 6, rel=1e-6)
    assert 0.1 < starter < 0.9


# ---------------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty; expected a .parquet or .jsonl file"),
        ("\n\n", "is empty"),
        (HEADER, "holds no predictions"),
        ("hello\n", r"line 1: 'hello'; expected a .parquet or .jsonl file .* Class,Segments"),
        ("Name,Tags\na,1 0.5\n", r"line 1: 'Name,Tags'; expected"),
        (HEADER + "a,1 0.5\nb,1 0.5 2\n", "line 3: label '2' has no confidence behind it"),
        (HEADER + "a,1 0.5\n\nb,cat 0.5\n", "line 4: 'cat' where a label, which is a whole number"),
        (HEADER + "a,1 high\n", "line 2: 'high' where a confidence should be"),
        (HEADER + "a,1 nan\n", "line 2: the score of class 1 is nan; expected 0 to 1"),
        (HEADER + "a,1 0.5 2 1.5\n", "line 2: the score of class 2 is 1.5; expected 0 to 1"),
        (HEADER + "a,1 0.5\nb,-1 0.5\n", r"line 3: class -1; expected 0 to 2,147,483,647"),
        (HEADER + f"a,{10**30} 0.5\n", "line 2: class 1000.*; expected at most"),
        (HEADER + "a,1 0.5\nb,4 0.5 4 0.25\n", "line 3: class 4 twice"),
        (HEADER + "a\n", "line 2: 'a'; expected an id, a comma"),
        (HEADER + "a,1 0.5\nb,1 0.5\na,2 0.5\n", "has the video 'a' twice, as its row 1 and its row 3"),
        ('{"id": "a", "labels"', "line 1: is not JSON"),
        ('{"id": 4, "labels": [], "probabilities": []}', "line 1: .*; expected an object with 'id'"),
        ('{"id": "a", "labels": [1]}', "line 1: 'probabilities' is None; expected a list of float"),
        (
            '{"id": "a", "labels": [1.5], "probabilities": [1]}',
            r"line 1: 'labels' is \[1.5\]; expected a list of int",
        ),
        ('{"id": "a", "labels": [true], "probabilities": [1]}', r"line 1: 'labels' is \[True\]; expected"),
        ('{"id": "a", "labels": [1], "probabilities": [NaN]}', "line 1: the score of class 1 is nan"),
        ('{"id": "a", "labels": [1], "probabilities": []}', "line 1: 1 'labels' and 0 'probabilities'"),
        ("Class,Segments\n", "holds no predictions"),
        ("Class,Segments\n1,a:0 b:0 a:0\n", "line 2: lists 'a:0' twice"),
        ("Class,Segments\n1,a:0\n2,a:0\n1,b:0\n", "line 4: class 1 again, as in line 2"),
        ("Class,Segments\ncat,a:0\n", "line 2: 'cat,a:0'; expected a class, a comma"),
        ("Class,Segments\n9,a:0\n", "line 2: class 9; expected 0 to 7, of 8 classes"),
    ],
)
def test_a_wrong_text_file_gets_one_line_with_its_place(text, reason, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=rf"x\.csv: {reason}") as caught:
        Recorded(tmp_path / "x.csv", classes=8 if "9," in text else None)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"id": ["a"], "labels": [[1]]}, r"has no column 'probabilities' \(it has: id, labels\)"),
        ({"id": [1], "labels": [[1]], "probabilities": [[0.5]]}, "'id' is of int64; expected"),
        ({"id": ["a"], "labels": [[1.0]], "probabilities": [[0.5]]}, "'labels' is of list"),
        ({"id": ["a", None], "labels": [[1], [1]], "probabilities": [[0.5], [0.5]]}, "'id' is empty in some"),
        (
            {"id": ["a"], "labels": [[1, 2]], "probabilities": [[0.5, None]]},
            "'probabilities' is empty in some",
        ),
        ({"id": ["a"], "labels": [[1, 2]], "probabilities": [[0.5]]}, "differ in length"),
        ({"id": ["a"], "labels": [[1]], "names": [[]], "probabilities": [[0.5]]}, "'names' is of list<"),
        ({"id": ["a"], "labels": [[1]], "names": ["x"], "probabilities": [[0.5]]}, "'names' is of string"),
        (
            {"id": ["a"], "labels": [[1]], "names": [["x", "y"]], "probabilities": [[0.5]]},
            "'labels' and 'names'",
        ),
        (
            {"id": ["a", "b"], "labels": [[1], [2]], "probabilities": [[0.5], [float("nan")]]},
            "x.parquet, record 1: the score of class 2 is nan",
        ),
        (
            {"id": ["a"], "labels": [[3_000_000_000]], "probabilities": [[0.5]]},
            "record 0: class 3,000,000,000;",
        ),
        ({"id": ["a", "a"], "labels": [[1], [1]], "probabilities": [[0.5], [0.5]]}, "the video 'a' twice"),
    ],
)
def test_a_wrong_parquet_file_gets_one_line(columns, reason, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=reason):
        Recorded(tmp_path / "x.parquet")


def test_a_damaged_file_and_one_that_is_not_there(tmp_path):
    data = bytearray(parquet(tmp_path / "x.parquet").read_bytes())
    (tmp_path / "cut.parquet").write_bytes(data[:200])
    with pytest.raises(DataError, match=r"cut\.parquet: is damaged"):
        Recorded(tmp_path / "cut.parquet")
    (tmp_path / "bytes.csv").write_bytes(b"\x80\x81" + bytes(100))
    with pytest.raises(DataError, match=r"bytes\.csv: is not text; expected"):
        Recorded(tmp_path / "bytes.csv")
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
        Recorded(tmp_path / "none.csv")


def test_names_that_change_within_a_file_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.predictions._ROWS", 1)
    lines = [{"id": i, "labels": [1], "probabilities": [0.5], "names": [n]} for i, n in ("ax", "by")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="class 1 is 'y' here and 'x' elsewhere"):
        Recorded(tmp_path / "x.jsonl")


def test_a_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("tagreel.predictions._ROWS", 3)
    rows = [(f"v{i}", [i], [0.5]) for i in range(10)]
    for name, write in FORMATS.items():
        pieces = list(PredictionFile(write(tmp_path / name, rows)).rows())
        assert max(len(piece.ids) for piece in pieces) <= 3
        assert [i for piece in pieces for i in piece.ids] == [row[0] for row in rows]
        assert [c for piece in pieces for c in piece.classes.tolist()] == list(range(10))
