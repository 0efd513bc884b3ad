import pytest

from tagreel.errors import DataError
from tagreel.provenance import Provenance, check, difference, merged, only

LAYOUT = {
    "kind": "onnx",
    "what": "a.onnx",
    "weights": "12345678abc",
    "options": {"size": 2},
    "projection": None,
    "versions": {"x": "1"},
}


def known(**changes):
    return Provenance({"rgb": LAYOUT | changes})


def test_the_same_features_are_alike_whatever_their_file_was_called_and_what_is_not_known_fits():
    assert difference(known(), known(what="/elsewhere/b.onnx", versions={"x": "2"})) is None
    assert difference(None, known()) is None
    assert difference(known(), None) is None
    assert difference(known(), Provenance({"audio": {"kind": "mel"}})) is None
    check(known(), known(), path="x")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"weights": "87654321"},
            r"onnx:a.onnx \(weights 12345678\), these are of onnx:a.onnx \(weights 87654321\)",
        ),
        ({"kind": "mel", "what": None, "weights": None}, r"weights 12345678\), these are of mel$"),
        ({"options": {"size": 3}}, r'has options \{"size": 2\}, these have \{"size": 3\}'),
        ({"projection": {"sha256": "x"}}, 'has projection null, these have {"sha256": "x"}'),
        ({"seconds": 2.0}, "has seconds null, these have 2.0"),
    ],
)
def test_any_other_difference_is_a_sentence(changes, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        raise DataError(str(difference(known(), known(**changes))), path="x")
    assert "'rgb'" in str(caught.value)
    with pytest.raises(DataError, match="--foreign"):
        check(known(), known(**changes), path="x")


def test_what_several_know_is_put_together():
    audio = Provenance({"audio": {"kind": "mel"}}, {"p": b"1"})
    both = merged([None, known(), audio, known(kind="later")])
    assert both is not None
    assert both.streams == {"rgb": LAYOUT, "audio": {"kind": "mel"}}
    assert both.files == {"p": b"1"}
    assert merged([None]) is None
    assert only(both, ["audio", "x"]) == Provenance({"audio": {"kind": "mel"}}, {"p": b"1"})
    assert only(both, ["x"]) is None
    assert only(None, ["x"]) is None
