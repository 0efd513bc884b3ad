from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tagreel.layers
import tagreel.pools
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError
from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.inference import SegmentedInference
from tagreel.layers.compact_bilinear import CompactBilinear
from tagreel.layers.l2_norm import L2Norm
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.mixture import Mixture
from tagreel.layers.projection import Projection
from tagreel.layers.sums import Sums
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.lstm import LSTM
from tagreel.pools.max import Max
from tagreel.pools.mean import Mean
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import Recipe, Training, find, override
from tagreel.recipe import Stream as Slot
from tagreel.recorded import Recorded
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine
from tagreel.streaming import Stream, Window
from tagreel.tagger import build
from tests.conftest import with_training

WIDTHS = {"rgb": 24, "audio": 8}
SECONDS = 37


def _recipe(pool=NetVLAD, *, inputs=(), transforms=(), **changes):
    streams = {name: Slot(inputs=inputs, transforms=transforms, pool=partial(pool)) for name in WIDTHS}
    if inputs:
        streams = {"both": Slot(inputs=inputs, transforms=transforms, pool=partial(pool))}
    recipe = Recipe(
        features=WIDTHS,
        classes=7,
        streams=streams,
        head=partial(Logistic),
        loss=partial(CrossEntropy),
        sampling=partial(AllFrames),
        evaluation_sampling=partial(AllFrames),
        training=Training(
            optimizer=partial(torch.optim.AdamW), schedule=partial(Cosine), batch_size=4, epochs=1
        ),
    )
    return replace(recipe, **changes)


def _made(recipe, **sizes):
    """A tagger whose statistics are not the neutral first ones."""
    torch.manual_seed(0)
    tagger = build(recipe, **sizes)
    with torch.no_grad():
        for name, tensor in [*tagger.named_parameters(), *tagger.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.3)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
    return tagger.eval()


def _frames(tagger, seconds=SECONDS, seed=0):
    """Bytes in the first feature and floats in the others."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, (seconds, width), np.uint8)
        if index == 0
        else rng.normal(size=(seconds, width)).astype(np.float32)
        for index, (name, width) in enumerate(tagger.features.items())
    }


def _whole(tagger, frames):
    return tagger.scores({name: rows[None] for name, rows in frames.items()})[0]


def _fed(tagger, frames, pieces=(1, 3, 16, 16), **options):
    stream = Stream(tagger, **options)
    first = 0
    for length in (*pieces, SECONDS):
        stream.feed({name: rows[first : first + length] for name, rows in frames.items()})
        first += length
    return stream


def _assert_streamed(tagger):
    frames = _frames(tagger)
    torch.testing.assert_close(_fed(tagger, frames).scores(), _whole(tagger, frames), rtol=1e-5, atol=1e-6)


def _walk(package):
    for module in pkgutil.iter_modules(package.__path__):
        found = importlib.import_module(f"{package.__name__}.{module.name}")
        for name, value in vars(found).items():
            if inspect.isclass(value) and value.__module__ == found.__name__ and not name.startswith("_"):
                yield value


@pytest.mark.parametrize(
    "pool", [pytest.param(p, id=p.__name__) for p in _walk(tagreel.pools) if hasattr(p, "accumulate")]
)
@pytest.mark.parametrize("joint", [True, False], ids=["joint norm", "no norm"])
def test_a_stream_scores_as_the_whole_file(pool, joint):
    _assert_streamed(_made(_recipe(pool, joint_l2_norm=joint)))
    _assert_streamed(_made(_recipe(pool, inputs=("rgb", "audio"), joint_l2_norm=joint)))


@pytest.mark.parametrize(
    "pool", [pytest.param(p, id=p.__name__) for p in _walk(tagreel.pools) if not hasattr(p, "accumulate")]
)
def test_a_pool_that_is_not_additive_is_refused_by_name(pool):
    with pytest.raises(RecipeError, match=rf"streams.rgb.pool: {pool.__name__} needs all frames"):
        Stream(_made(_recipe(pool)))


def test_parts_around_the_pools_are_as_in_the_whole_file():
    transforms = (partial(MaskedBatchNorm), partial(Projection, width=16), partial(L2Norm))
    _assert_streamed(_made(_recipe(NeXtVLAD, transforms=transforms)))
    _assert_streamed(_made(_recipe(join=partial(CompactBilinear, width=64), head=partial(MixtureOfExperts))))
    mixture = _recipe(NeXtVLAD, mixture=partial(Mixture, branches=2))
    _assert_streamed(_made(mixture))
    _assert_streamed(_made(replace(mixture, joint_l2_norm=True)))


REAL = {
    "smoke": [],
    "audioset-nextvlad": ["training.precision=float32"],
    "audioset-attention": ["training.precision=float32"],
    "audioset-gem": ["training.precision=float32"],
    "nextvlad-g8-d05-k128": ["features.rgb=32", "features.audio=16", "streams.rgb.transforms=[]"],
    "nextvlad-mix3-t3-460k": ["features.rgb=32", "features.audio=16", "streams.rgb.transforms=[]"],
    "willow-gated-netvlad-256": ["features.rgb=32", "features.audio=16"],
    "nlvlad-lfnl-netvlad": ["features.rgb=32", "features.audio=16"],
}


@pytest.mark.parametrize("name", REAL)
def test_recipes_stream_as_they_score(name):
    recipe = find(name)
    for setting in (*REAL[name], "classes=50"):
        recipe = override(recipe, setting)
    _assert_streamed(_made(recipe))


def test_a_recipe_in_bfloat16_streams_in_float32():
    recipe = _recipe(NeXtVLAD)
    exact, rough = _made(recipe), _made(with_training(recipe, precision="bfloat16"))
    frames = _frames(exact)
    torch.testing.assert_close(_fed(rough, frames).scores(), _whole(exact, frames), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_fed(rough, frames).scores(), _whole(rough, frames), rtol=0, atol=0.05)


def test_an_ensemble_streams_as_it_scores():
    members = {
        "a": _made(_recipe(NetVLAD, joint_l2_norm=True)),
        "b": _made(replace(_recipe(Max), features={"rgb": 24}, streams={"rgb": Slot(pool=partial(Max))})),
        "c": EnsembleTagger({"d": _made(_recipe(Mean)), "e": _made(_recipe(NeXtVLAD))}, [1, 3]),
    }
    for top_k in (None, 3):
        _assert_streamed(EnsembleTagger(members, [1.0, 2.0, 0.5], top_k=top_k).eval())


def test_an_ensemble_with_a_member_that_cannot_be_streamed_is_refused_with_the_part(tmp_path):
    with pytest.raises(RecipeError, match=r"streams.rgb.pool: LSTM"):
        Stream(EnsembleTagger({"a": _made(_recipe()), "b": _made(_recipe(LSTM))}))
    (tmp_path / "some.csv").write_text("VideoId,LabelConfidencePairs\nv,0 0.5 6 0.25\n")
    with pytest.raises(RecipeError, match=r"some.*holds predictions; expected a trained model"):
        Stream(EnsembleTagger({"a": _made(_recipe()), "b": Recorded(tmp_path / "some.csv", classes=7)}))


@pytest.mark.parametrize("pool", [NetVLAD, Max])
@pytest.mark.parametrize("step", [1, 3])
def test_a_window_scores_as_its_seconds_alone(pool, step):
    tagger = _made(_recipe(pool, joint_l2_norm=True))
    frames = _frames(tagger, seconds=50)
    stream = Stream(tagger, window=12, step=step)
    for second in range(50):
        stream.feed({name: rows[second : second + 1] for name, rows in frames.items()})
        complete = (second + 1) // step * step
        seen = slice(max(complete - 12, 0), second + 1)
        expected = _whole(tagger, {name: rows[seen] for name, rows in frames.items()})
        torch.testing.assert_close(stream.scores(), expected, rtol=1e-5, atol=1e-6)
    assert stream.seconds == 50


def test_how_a_window_is_fed_changes_nothing():
    tagger = _made(_recipe())
    frames = _frames(tagger, seconds=50)
    streams = []
    for pieces in ((50,), (1,) * 50, (7, 20, 3, 20)):
        stream, first = Stream(tagger, window=20), 0
        for length in pieces:
            stream.feed({name: rows[first : first + length] for name, rows in frames.items()})
            first += length
        streams.append(stream.scores())
    torch.testing.assert_close(streams[0], streams[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(streams[0], streams[2], rtol=1e-5, atol=1e-6)


def test_a_window_is_the_sum_of_its_last_states_however_long_it_moves():
    window = Window(7)
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert window.total() is None
    for n, value in enumerate(values):
        window.push((Sums((value[None],), (value[None],)),))
        [total] = window.total()
        last = values[max(n - 6, 0) : n + 1]
        torch.testing.assert_close(total.sums[0][0], last.sum(), rtol=0, atol=1e-5)
        assert total.maxima[0][0] == last.max()


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("inputs", [(), ("rgb", "audio")])
def test_a_feature_may_end_before_the_others(joint, inputs):
    tagger = _made(_recipe(NeXtVLAD, inputs=inputs, joint_l2_norm=joint))
    frames = _frames(tagger)
    frames["audio"] = frames["audio"][:20]
    stream = _fed(tagger, frames)
    length = {"rgb": SECONDS, "audio": 20}
    batch = tagger.frames(
        {name: torch.from_numpy(rows)[None] for name, rows in frames.items()},
        {name: torch.ones(1, length[name], dtype=torch.bool) for name in frames},
    )
    masks = {name: torch.ones(1, length[name], dtype=torch.bool) for name in frames}
    with torch.no_grad():
        expected = torch.sigmoid(tagger.classify(tagger.pool(batch, masks)))[0]
    torch.testing.assert_close(stream.scores(), expected, rtol=1e-5, atol=1e-6)


def test_a_last_second_of_sound_stands_beside_its_own_picture_alone():
    """One frame of a feature is its first second in a stream, not a vector of the whole."""
    tagger = _made(_recipe(Mean, inputs=("rgb", "audio")))
    frames = _frames(tagger, seconds=4)
    one = {"rgb": frames["rgb"], "audio": frames["audio"][:1]}
    padded = {"rgb": frames["rgb"], "audio": np.pad(frames["audio"][:1], ((0, 3), (0, 0)))}
    stream, expected = Stream(tagger), Stream(tagger)
    stream.feed(one)
    expected.feed(padded)
    torch.testing.assert_close(stream.scores(), expected.scores())


def test_an_optional_feature_may_never_come_and_a_needed_one_must():
    tagger = _made(_recipe(NeXtVLAD, optional=("audio",)))
    frames = {"rgb": _frames(tagger)["rgb"]}
    torch.testing.assert_close(_fed(tagger, frames).scores(), _whole(tagger, frames), rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="no 'rgb' yet; got: audio"):
        _fed(tagger, {"audio": _frames(tagger)["audio"]}).scores()
    with pytest.raises(DataError, match="no 'rgb' yet"):
        Stream(tagger).scores()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((3, 25), np.float32), "'rgb' is 3 × 25; expected frames × 24"),
        (np.zeros(24, np.float32), "'rgb' is 24; expected"),
        (np.zeros((3, 24), np.int64), "'rgb' is int64; expected uint8 bytes or floats"),
        (np.full((3, 24), np.nan, np.float32), "'rgb' holds numbers that are not finite"),
    ],
)
def test_misshapen_frames_are_refused_and_leave_the_stream_as_it_was(frames, message):
    tagger = _made(_recipe())
    good = _frames(tagger)
    stream = Stream(tagger)
    stream.feed(good)
    before = stream.scores()
    with pytest.raises(DataError, match=message):
        stream.feed({"rgb": frames, "audio": good["audio"]})
    assert stream.seconds == SECONDS
    assert torch.equal(stream.scores(), before)


@pytest.mark.parametrize(("window", "step"), [(12, 5), (3, 5), (0, 1), (5, 0)])
def test_a_window_is_made_of_whole_steps(window, step):
    with pytest.raises(RecipeError, match=f"window={window}, step={step}"):
        Stream(_made(_recipe()), window=window, step=step)


def test_an_inference_of_several_views_and_a_gate_that_counts_rows_are_refused():
    with pytest.raises(RecipeError, match=r"SegmentedInference.*--set inference=None"):
        Stream(_made(_recipe(inference=partial(SegmentedInference))))
    for gate in ("padded", "features"):
        with pytest.raises(RecipeError, match=f"gate='{gate}'"):
            Stream(_made(_recipe(mixture=partial(Mixture, gate=gate))))


class _Differences(nn.Module):
    """What a frame has more than the one before."""

    def __init__(self, dim):
        super().__init__()
        self.out_dim = dim

    def forward(self, frames, mask=None):
        return frames - frames.roll(1, dims=1)


def test_a_transform_over_several_frames_is_refused():
    with pytest.raises(RecipeError, match=r"streams.rgb.transforms.1: _Differences looks at several frames"):
        Stream(_made(_recipe(transforms=(partial(L2Norm), partial(_Differences)))))


def test_every_layer_that_can_transform_frames_looks_at_each_by_itself():
    found = set()
    for layer in _walk(tagreel.layers):
        if not issubclass(layer, nn.Module):
            continue
        made_of, *options = inspect.signature(layer).parameters.values()
        reads = [*inspect.signature(layer.forward).parameters][1:]
        of_width_alone = made_of.name == "dim" and all(each.default is not each.empty for each in options)
        if of_width_alone and reads in (["x", "mask"], ["frames", "mask"]):
            found.add(layer.__name__)
            Stream(_made(_recipe(Mean, inputs=("rgb",), transforms=(partial(layer),))))
    assert {"MaskedBatchNorm", "L2Norm", "ReverseWhitening", "Projection", "SparseCode", "Dropout"} <= found


def test_a_model_in_training_is_left_in_training_and_scored_in_evaluation():
    tagger = _made(_recipe(transforms=(partial(MaskedBatchNorm),)))
    frames = _frames(tagger)
    expected = _whole(tagger, frames)
    statistics = {name: buffer.clone() for name, buffer in tagger.named_buffers()}
    tagger.train()
    torch.testing.assert_close(_fed(tagger, frames).scores(), expected, rtol=1e-5, atol=1e-6)
    assert tagger.training
    for name, buffer in tagger.named_buffers():
        assert torch.equal(buffer, statistics[name])


def test_a_day_is_scored_as_it_should_be():
    """A video that repeats has the scores of one round, but for sums that grew 86,400 seconds long."""
    tagger = _made(_recipe(NetVLAD))
    frames = _frames(tagger, seconds=100)
    round_ = {name: np.tile(rows, (36, 1)) for name, rows in frames.items()}
    stream = Stream(tagger)
    for _ in range(24):
        stream.feed(round_)
    assert stream.seconds == 86_400
    torch.testing.assert_close(stream.scores(), _whole(tagger, frames), rtol=1e-5, atol=1e-6)
