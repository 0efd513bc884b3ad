from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason='needs pip install "tagreel[onnx]"')
pytest.importorskip("onnxruntime", reason='needs pip install "tagreel[onnx]"')

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tagreel.decoding import Pictures, Sound  # noqa: E402
from tagreel.encoding import find  # noqa: E402
from tagreel.errors import DataError, RecipeError  # noqa: E402

PICTURE = ["n", 3, 8, 8]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def write(
    path, *, shape=PICTURE, kind=TensorProto.FLOAT, seed=0, axes=(2, 3), outputs=("embedding",), **options
):
    """A network that takes the mean over some axes, two layers, and one number that is not the embedding."""
    rng = np.random.default_rng(seed)
    channels = (
        next(size for axis, size in enumerate(shape) if axis and axis not in axes) if axes else shape[-1]
    )
    channels = channels if isinstance(channels, int) else 16000
    first, second = (rng.standard_normal(s).astype(np.float32) for s in ((channels, 16), (16, 5)))
    nodes = [
        helper.make_node("Cast", ["input"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0)
        if axes
        else helper.make_node("Reshape", ["floats", "flat"], ["mean"]),
        helper.make_node("MatMul", ["mean", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["embedding"]),
        helper.make_node("ReduceMax", ["embedding"], ["largest"], keepdims=0),
    ]
    weights = {
        "axes": np.array(axes, np.int64),
        "flat": np.array([-1, channels]),
        "first": first,
        "second": second,
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path, **options)
    return first, second


def example(folder, seed):
    write(folder / "model.onnx", seed=seed)
    return "rgb", f"onnx:{folder / 'model.onnx'}", []


def open_(path, *settings, slot="rgb"):
    return find(f"onnx:{path}", [f"{slot}.{setting}" for setting in settings], slot=slot)


def pictures(count=3, size=8):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.mark.parametrize(("shape", "axes"), [(PICTURE, (2, 3)), ([1, 8, 8, 3], (1, 2))])
def test_pictures_are_normalised_as_imagenets(tmp_path, shape, axes):
    first, second = write(tmp_path / "m.onnx", shape=shape, axes=axes)
    encoder = open_(tmp_path / "m.onnx")
    assert encoder.wants == Pictures(resize=8, crop=8)
    colours = ((pictures() / 255 - MEAN) / STD).mean((1, 2))
    np.testing.assert_allclose(
        encoder(pictures()), np.maximum(colours @ first, 0) @ second, rtol=1e-4, atol=1e-5
    )


def test_pictures_are_normalised_as_the_options_say(tmp_path):
    first, second = write(tmp_path / "m.onnx")
    encoder = open_(tmp_path / "m.onnx", "mean=0.1,0.2,0.3", "std=0.5,0.6,0.7", "fit=stretch")
    assert encoder.wants == Pictures(resize=(8, 8), crop=None)
    colours = ((pictures() / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]).mean((1, 2))
    np.testing.assert_allclose(
        encoder(pictures()), np.maximum(colours @ first, 0) @ second, rtol=1e-4, atol=1e-5
    )
    assert encoder.identity()["preparation"] != open_(tmp_path / "m.onnx").identity()["preparation"]


@pytest.mark.parametrize(("kind", "shift"), [(TensorProto.UINT8, 0), (TensorProto.INT8, -128)])
def test_bytes_go_in_as_they_are(tmp_path, kind, shift):
    first, second = write(tmp_path / "m.onnx", kind=kind)
    colours = (pictures().astype(np.float64) + shift).mean((1, 2))
    found = open_(tmp_path / "m.onnx")(pictures())
    np.testing.assert_allclose(found, np.maximum(colours @ first, 0) @ second, rtol=1e-4, atol=1e-3)
    with pytest.raises(RecipeError, match=r"mean=.*takes a picture's bytes as they are"):
        open_(tmp_path / "m.onnx", "mean=0.5,0.5,0.5")


def test_an_inner_tensor_is_taken_by_its_name(tmp_path):
    first, _ = write(tmp_path / "m.onnx")
    encoder = open_(tmp_path / "m.onnx", "output=active")
    colours = ((pictures() / 255 - MEAN) / STD).mean((1, 2))
    np.testing.assert_allclose(encoder(pictures()), np.maximum(colours @ first, 0), rtol=1e-4, atol=1e-5)
    assert encoder.identity()["options"]["output"] == "active"
    with pytest.raises(
        RecipeError, match=r"output=activ: the file has no tensor of that name; it has active"
    ):
        open_(tmp_path / "m.onnx", "output=activ")


def test_of_several_outputs_one_is_chosen(tmp_path):
    write(tmp_path / "m.onnx", outputs=("embedding", "active"))
    with pytest.raises(RecipeError, match=r"2 outputs; choose one: output=embedding or active"):
        open_(tmp_path / "m.onnx")
    assert open_(tmp_path / "m.onnx", "output=active").out_dim == 16


def test_what_is_no_vector_is_refused(tmp_path):
    write(tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"'floats' is \(1, 3, 8, 8\) for one second; expected one vector"):
        open_(tmp_path / "m.onnx", "output=floats")


def test_pictures_of_any_size_take_the_one_asked_for(tmp_path):
    write(tmp_path / "m.onnx", shape=["n", 3, "h", "w"])
    with pytest.raises(RecipeError, match=r"pictures of any size, \(\?, 3, \?, \?\); choose one: size=224"):
        open_(tmp_path / "m.onnx")
    assert open_(tmp_path / "m.onnx", "size=12")(pictures(size=12)).shape == (3, 5)
    write(tmp_path / "fixed.onnx")
    with pytest.raises(RecipeError, match=r"size=9: the file takes pictures of 8 × 8"):
        open_(tmp_path / "fixed.onnx", "size=9")


def test_pictures_that_are_not_square_are_stretched_or_refused(tmp_path):
    write(tmp_path / "m.onnx", shape=["n", 3, 6, 8])
    with pytest.raises(RecipeError, match=r"6 × 8, not square: fit=stretch"):
        open_(tmp_path / "m.onnx")
    assert open_(tmp_path / "m.onnx", "fit=stretch").wants == Pictures(resize=(6, 8), crop=None)


@pytest.mark.parametrize("shape", [["n", 100], [1, 100], [100], [1, 1, 100]])
def test_sound_is_told_from_its_shape(tmp_path, shape):
    first, second = write(tmp_path / "m.onnx", shape=shape, axes=())
    encoder = open_(tmp_path / "m.onnx", "rate=1000", slot="audio")
    assert encoder.wants == Sound(rate=1000, seconds=0.1)
    sound = np.random.default_rng(0).uniform(-1, 1, (3, 100)).astype(np.float32)
    np.testing.assert_allclose(encoder(sound), np.maximum(sound @ first, 0) @ second, rtol=1e-4, atol=1e-4)
    for option, reason in [
        ("seconds=2", "takes 100 samples, 0.1 s"),
        ("fit=crop", "takes sound"),
        ("rate=0", "rate=0"),
    ]:
        with pytest.raises(RecipeError, match=reason):
            open_(tmp_path / "m.onnx", "rate=1000", option, slot="audio")


def test_sound_of_any_length_is_cut_as_asked(tmp_path):
    write(tmp_path / "m.onnx", shape=["n", "samples"], axes=())
    assert open_(tmp_path / "m.onnx", slot="audio").wants == Sound(rate=16000, seconds=1.0)
    with pytest.raises(RecipeError, match=r"rate=16000, seconds=0"):
        open_(tmp_path / "m.onnx", "seconds=0", slot="audio")


def test_weights_in_a_file_beside_it_are_read_and_hashed(tmp_path):
    write(tmp_path / "one.onnx")
    beside = {"save_as_external_data": True, "size_threshold": 64, "location": "weights.bin"}
    write(tmp_path / "two.onnx", **beside)
    encoder = open_(tmp_path / "two.onnx")
    np.testing.assert_array_equal(encoder(pictures()), open_(tmp_path / "one.onnx")(pictures()))
    content = bytearray((tmp_path / "weights.bin").read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights.bin").write_bytes(content)
    assert open_(tmp_path / "two.onnx").identity()["weights"] != encoder.identity()["weights"]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(DataError, match=r"weights.bin: cannot be read: No such file"):
        open_(tmp_path / "two.onnx")


def test_neither_pictures_nor_sound_is_refused(tmp_path):
    write(tmp_path / "m.onnx", shape=[1, 5, 8, 8])
    with pytest.raises(DataError, match=r"its input is \(1, 5, 8, 8\) in float32; expected pictures"):
        open_(tmp_path / "m.onnx")
    write(tmp_path / "m.onnx", kind=TensorProto.INT64)
    with pytest.raises(DataError, match="expected uint8, int8 or float32"):
        open_(tmp_path / "m.onnx")


def test_a_fixed_batch_of_several_is_told(tmp_path):
    write(tmp_path / "m.onnx", shape=[4, 3, 8, 8])
    with pytest.raises(DataError, match=r"cannot be run: .*Got: 1 Expected: 4"):
        open_(tmp_path / "m.onnx")
