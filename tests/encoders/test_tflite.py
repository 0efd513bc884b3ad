from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason='needs pip install "tagreel[tflite]"')

import ai_edge_litert.schema_py_generated as schema  # noqa: E402
import flatbuffers  # noqa: E402

from tagreel.decoding import Pictures, Sound  # noqa: E402
from tagreel.encoders.tflite import TFLite  # noqa: E402
from tagreel.encoding import find  # noqa: E402
from tagreel.errors import DataError, RecipeError  # noqa: E402

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "weights").is_dir(), reason=f"the networks are not in {DATA}")
EMBEDDING = "yamnet_frames/global_average_pooling2d/Mean"
FLOAT, UINT8 = schema.TensorType.FLOAT32, schema.TensorType.UINT8


def write(path, *, shape=(1, 8, 8, 3), signature=None, kind=FLOAT, seed=0, outputs=("embedding",)):
    """The mean over a picture, or all of a sound, and one layer; in 8 bits throughout or not."""
    rng = np.random.default_rng(seed)
    width, picture = shape[-1], len(shape) == 4
    weights, bias = rng.standard_normal((5, width)), rng.standard_normal(5)
    scales = {
        "input": (1 / 128, 128),
        "mean": (1 / 128, 128),
        "weights": (1 / 32, 128),
        "embedding": (1 / 8, 100),
    }
    model = schema.ModelT()
    model.version, model.description = 3, "test"
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, model.buffers = [], [], [schema.BufferT()]

    def tensor(name, size, dtype=kind, values=None, signature=None):
        added = schema.TensorT()
        added.name, added.shape, added.type, added.shapeSignature = name, list(size), dtype, signature
        if kind == UINT8 and name in scales:
            added.quantization = schema.QuantizationParametersT()
            added.quantization.scale, added.quantization.zeroPoint = ([one] for one in scales[name])
        added.buffer = 0
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            model.buffers.append(buffer)
            added.buffer = len(model.buffers) - 1
        graph.tensors.append(added)
        return len(graph.tensors) - 1

    def operator(code, options_type, options, inputs, output):
        kept = schema.OperatorCodeT()
        kept.builtinCode = kept.deprecatedBuiltinCode = code
        kept.version = 1
        model.operatorCodes.append(kept)
        added = schema.OperatorT()
        added.opcodeIndex, added.inputs, added.outputs = len(model.operatorCodes) - 1, inputs, [output]
        added.builtinOptionsType, added.builtinOptions = options_type, options
        graph.operators.append(added)

    model.operatorCodes = []
    source = tensor("input", shape, signature=signature)
    if picture:
        axes = tensor("axes", [2], schema.TensorType.INT32, np.array([1, 2], np.int32))
        mean = tensor("mean", [1, width])
        options = schema.ReducerOptionsT()
        options.keepDims = False
        reducer = schema.BuiltinOperator.MEAN, schema.BuiltinOptions.ReducerOptions, options
        operator(*reducer, [source, axes], mean)
    else:
        mean = source
    if kind == UINT8:
        stored = np.clip(np.rint(weights * 32) + 128, 0, 255).astype(np.uint8)
        weights = (stored.astype(np.float64) - 128) / 32
        kept = (
            tensor("weights", weights.shape, kind, stored),
            tensor("bias", [5], schema.TensorType.INT32, np.zeros(5, np.int32)),
        )
        graph.tensors[kept[1]].quantization = schema.QuantizationParametersT()
        graph.tensors[kept[1]].quantization.scale, graph.tensors[kept[1]].quantization.zeroPoint = (
            [1 / 4096],
            [0],
        )
        bias = np.zeros(5)
    else:
        kept = (
            tensor("weights", weights.shape, kind, weights.astype(np.float32)),
            tensor("bias", [5], kind, bias.astype(np.float32)),
        )
    embedding = tensor("embedding", [1, 5])
    options = schema.FullyConnectedOptionsT()
    layer = schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOptions.FullyConnectedOptions, options
    operator(*layer, [mean, *kept], embedding)
    graph.inputs = [source]
    graph.outputs = [{"mean": mean, "embedding": embedding}[name] for name in outputs]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return weights, bias


def example(folder, seed):
    write(folder / "model.tflite", seed=seed)
    return "rgb", f"tflite:{folder / 'model.tflite'}", []


def open_(path, *settings, slot="rgb"):
    return find(f"tflite:{path}", [f"{slot}.{setting}" for setting in settings], slot=slot)


def pictures(count=3, size=8):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def test_pictures_in_floats_go_in_from_minus_one_to_one(tmp_path):
    weights, bias = write(tmp_path / "m.tflite")
    encoder = open_(tmp_path / "m.tflite")
    assert encoder.wants == Pictures(resize=8, crop=8)
    colours = (pictures() / 127.5 - 1).mean((1, 2))
    np.testing.assert_allclose(encoder(pictures()), colours @ weights.T + bias, rtol=1e-4, atol=1e-5)


def test_pictures_are_normalised_as_the_options_say(tmp_path):
    weights, bias = write(tmp_path / "m.tflite")
    encoder = open_(tmp_path / "m.tflite", "mean=0,0,0.5", "std=1,1,2")
    colours = ((pictures() / 255 - [0, 0, 0.5]) / [1, 1, 2]).mean((1, 2))
    np.testing.assert_allclose(encoder(pictures()), colours @ weights.T + bias, rtol=1e-4, atol=1e-5)
    with pytest.raises(RecipeError, match=r"std=\(1, 0, 1\): expected numbers other than 0"):
        open_(tmp_path / "m.tflite", "std=1,0,1")


def test_eight_bits_go_in_as_they_are_and_come_out_scaled(tmp_path):
    weights, bias = write(tmp_path / "m.tflite", kind=UINT8)
    found = open_(tmp_path / "m.tflite")(pictures())
    expected = ((pictures() - 128.0) / 128).mean((1, 2)) @ weights.T + bias
    assert np.abs(found - expected).max() < 1 / 8
    np.testing.assert_array_equal(found, np.rint(found * 8) / 8)
    with pytest.raises(RecipeError, match=r"mean=.*takes a picture's bytes as they are, in uint8"):
        open_(tmp_path / "m.tflite", "mean=0,0,0")


def test_an_inner_tensor_is_taken_by_its_name(tmp_path):
    write(tmp_path / "m.tflite")
    encoder = open_(tmp_path / "m.tflite", "output=mean")
    np.testing.assert_allclose(
        encoder(pictures()), (pictures() / 127.5 - 1).mean((1, 2)), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(
        RecipeError, match=r"output=embed: the file has no tensor of that name; it has embedding"
    ):
        open_(tmp_path / "m.tflite", "output=embed")


def test_of_several_outputs_one_is_chosen(tmp_path):
    write(tmp_path / "m.tflite", outputs=("embedding", "mean"))
    with pytest.raises(RecipeError, match=r"2 outputs; choose one: output=embedding or mean"):
        open_(tmp_path / "m.tflite")
    assert open_(tmp_path / "m.tflite", "output=mean").out_dim == 3


def test_pictures_of_any_size_take_the_one_asked_for(tmp_path):
    write(tmp_path / "m.tflite", signature=[-1, -1, -1, 3])
    assert open_(tmp_path / "m.tflite", "size=12")(pictures(size=12)).shape == (3, 5)
    with pytest.raises(RecipeError, match="choose one: size=224"):
        open_(tmp_path / "m.tflite")


def test_sound_is_told_from_its_shape(tmp_path):
    weights, bias = write(tmp_path / "m.tflite", shape=(1, 100))
    encoder = open_(tmp_path / "m.tflite", "rate=1000", slot="audio")
    assert encoder.wants == Sound(rate=1000, seconds=0.1)
    sound = np.random.default_rng(0).uniform(-1, 1, (3, 100)).astype(np.float32)
    np.testing.assert_allclose(encoder(sound), sound @ weights.T + bias, rtol=1e-4, atol=1e-5)
    write(tmp_path / "m.tflite", shape=(1, 100), kind=UINT8)
    with pytest.raises(DataError, match=r"its input is \(1, 100\) in uint8; expected sound in float32"):
        open_(tmp_path / "m.tflite", slot="audio")


def picture(path, side):
    """A picture's middle, its shorter side scaled to `side`, by FFmpeg as in decoding."""
    av = pytest.importorskip("av", reason='needs pip install "tagreel[video]"')
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
    scale = side / min(frame.width, frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    pixels = frame.reformat(width, height, format="rgb24", interpolation="BICUBIC").to_ndarray()
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def sound(path, samples):
    """Windows around the middle of each second, at 16 kHz, by PyAV."""
    av = pytest.importorskip("av", reason='needs pip install "tagreel[video]"')
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
    with av.open(str(path)) as file:
        parts = [part.to_ndarray()[0] for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    whole = np.concatenate(parts)
    seconds = len(whole) // 16000
    padded = np.pad(whole, samples)
    starts = [samples + 16000 * t + 8000 - samples // 2 for t in range(seconds)]
    return np.stack([padded[start : start + samples] for start in starts]).astype(np.float32)


@needs_data
@pytest.mark.parametrize(
    ("name", "label"), [("cat.bmp", "Egyptian cat"), ("bird.bmp", "chickadee"), ("hot_dog.jpg", "hotdog")]
)
def test_mobilenet_knows_what_is_in_a_picture(name, label):
    encoder = TFLite(str(DATA / "weights" / "mobilenet_v2_1.0_224_quant.tflite"))
    names = (DATA / "weights" / "imagenet_labels.txt").read_text().splitlines()
    scores = encoder(picture(DATA / "weights" / "images" / name, 224)[None])[0]
    assert names[scores.argmax()].partition(",")[0] == label
    assert abs(scores.sum() - 1) < 0.05


@needs_data
def test_mobilenets_embedding_is_of_1024_numbers_and_likes_like():
    encoder = TFLite(str(DATA / "weights" / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"))
    assert (encoder.out_dim, encoder.stream, encoder.wants) == (1024, "rgb", Pictures(resize=224, crop=224))
    cat, bird = (picture(DATA / "weights" / "images" / f"{name}.bmp", 224) for name in ("cat", "bird"))
    rows = encoder(np.stack([cat, cat[:, ::-1], bird]))
    assert (rows >= 0).all(), "it ends in a ReLU6 and a mean"
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    same, other = rows[0] @ rows[1], rows[0] @ rows[2]
    assert same > 0.85 > other + 0.1


@needs_data
@pytest.mark.parametrize(
    ("name", "label"), [("nasa_13013.mp4.audio.mp3", "Speech"), ("chaplin.mp4", "Music")]
)
def test_yamnet_knows_what_is_in_a_sound(name, label):
    encoder = TFLite(str(DATA / "weights" / "yamnet.tflite"), output="Identity")
    assert encoder.wants == Sound(rate=16000, seconds=0.975)
    names = [
        line.split(",", 2)[2]
        for line in (DATA / "weights" / "yamnet_class_map.csv").read_text().splitlines()[1:]
    ]
    scores = encoder(sound(DATA / "clips" / name, 15600)).mean(0)
    assert names[scores.argmax()].strip('"') == label
    assert scores.max() > 0.5


@needs_data
def test_yamnets_embedding_is_the_tensor_before_its_scores():
    path = DATA / "weights" / "yamnet.tflite"
    heard = sound(DATA / "clips" / "chaplin.mp4", 15600)[:2]
    encoder = TFLite(str(path), output=EMBEDDING)
    found = encoder(heard)
    assert found.shape == (2, 1024)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is for debugging
        whole = interpreter.Interpreter(str(path), num_threads=1, experimental_preserve_all_tensors=True)
    whole.allocate_tensors()
    index = next(tensor["index"] for tensor in whole.get_tensor_details() if tensor["name"] == EMBEDDING)
    for row, window in zip(found, heard, strict=True):
        whole.set_tensor(whole.get_input_details()[0]["index"], window[None])
        whole.invoke()
        np.testing.assert_array_equal(whole.get_tensor(index)[0], row)
