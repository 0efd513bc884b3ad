from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tagreel.batch import Example
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import RecipeError
from tagreel.folding import fold
from tagreel.heads.logistic import Logistic
from tagreel.layers.l2_norm import L2Norm
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.mixture import Mixture
from tagreel.layers.product import Frozen, _has_wide_units
from tagreel.layers.projection import Projection
from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.loader import collate
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.deep_bag_of_frames import DeepBagOfFrames
from tagreel.pools.gated_bag_of_words import GatedBagOfWords
from tagreel.pools.lstm import LSTM
from tagreel.pools.max import Max
from tagreel.pools.netfv import NetFV
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.pools.non_local_netvlad import NonLocalNetVLAD
from tagreel.pools.soft_bag_of_words import SoftBagOfWords
from tagreel.recipe import Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine
from tagreel.tagger import build

RGB, AUDIO, CLASSES = 24, 8, 30
NORM = (partial(MaskedBatchNorm),)
STREAMS = {
    "nextvlad": {
        "rgb": Stream(transforms=(partial(ReverseWhitening),), pool=partial(NeXtVLAD, clusters=8, groups=4))
    },
    "netvlad": {"rgb": Stream(transforms=NORM, pool=partial(NetVLAD, clusters=6))},
    "side by side": {
        "all": Stream(inputs=("rgb", "audio"), transforms=NORM, pool=partial(NetVLAD, clusters=6))
    },
    "two streams": {
        "rgb": Stream(transforms=NORM, pool=partial(SoftBagOfWords, clusters=6)),
        "audio": Stream(pool=partial(GatedBagOfWords, clusters=5)),
    },
    "deep bag": {"rgb": Stream(pool=partial(DeepBagOfFrames, clusters=20, pooling="both"))},
    "projected": {
        "rgb": Stream(transforms=(partial(Projection, width=16),), pool=partial(NonLocalNetVLAD, clusters=4))
    },
    "of one length": {"rgb": Stream(transforms=(partial(L2Norm), *NORM), pool=partial(NetVLAD, clusters=6))},
    "fisher": {"rgb": Stream(transforms=NORM, pool=partial(NetFV, clusters=4, couple_weights=True))},
    "in order": {"rgb": Stream(transforms=NORM, pool=partial(LSTM, units=(12,)))},
    "largest": {"rgb": Stream(transforms=NORM, pool=partial(Max))},
}


def _model(streams, **options):
    torch.manual_seed(0)
    recipe = Recipe(
        about=smoke_about(),
        features={"rgb": RGB, "audio": AUDIO},
        classes=CLASSES,
        sampling=partial(AllFrames),
        evaluation_sampling=partial(AllFrames),
        streams=streams,
        body=(partial(Projection, width=20), partial(MaskedBatchNorm)),
        head=partial(Logistic),
        loss=partial(CrossEntropy),
        training=Training(
            batch_size=4, epochs=1, optimizer=partial(torch.optim.Adam, lr=1e-3), schedule=partial(Cosine)
        ),
    )
    model = build(replace(recipe, **options))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.3)
            elif name.endswith(("running_var", "scale")):
                tensor.uniform_(0.5, 2.0)
    return model.eval()


def smoke_about():
    from tagreel.recipes.smoke import smoke

    return smoke.about


def _batch(dtype=np.uint8, *, audio=(5, 1, 9, 40)):
    rng = np.random.default_rng(0)
    examples = []
    for number, (frames, heard) in enumerate(zip((5, 1, 9, 40), audio, strict=True)):
        streams = {"rgb": rng.integers(0, 256, (frames, RGB)), "audio": rng.integers(0, 256, (heard, AUDIO))}
        streams = {
            name: rows.astype(np.uint8) if dtype == np.uint8 else (rows / 64 - 2).astype(dtype)
            for name, rows in streams.items()
        }
        examples.append(Example(id=str(number), labels=np.array([number]), streams=streams))
    return collate(examples, features={"rgb": RGB, "audio": AUDIO})


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("name", STREAMS)
def test_folded_in_float32_a_model_gives_the_same_probabilities(name, dtype):
    model, batch = _model(STREAMS[name]), _batch(dtype)
    with torch.inference_mode():
        expected = model.probabilities(batch)
        folded = fold(model)
        torch.testing.assert_close(folded.probabilities(batch), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(folded.probabilities(batch), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.probabilities(batch), expected)  # the model itself is as it was


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", STREAMS)
def test_in_fewer_bits_probabilities_move_little(name, precision):
    model, batch = _model(STREAMS[name]), _batch()
    with torch.inference_mode():
        expected, found = model.probabilities(batch), fold(model, precision).probabilities(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)


def test_a_model_that_reads_bytes_and_floats_is_folded_for_each():
    model = _model(STREAMS["netvlad"])
    folded = fold(model)
    with torch.inference_mode():
        for batch in (_batch(), _batch(np.float32), _batch()):
            torch.testing.assert_close(
                folded.probabilities(batch), model.probabilities(batch), rtol=1e-4, atol=1e-5
            )


def test_where_streams_are_not_of_the_same_frames_they_are_padded_and_the_same():
    model, batch = _model(STREAMS["side by side"], optional=("audio",)), _batch(audio=(5, 0, 9, 0))
    with torch.inference_mode():
        expected = model.probabilities(batch)
        torch.testing.assert_close(fold(model).probabilities(batch), expected, rtol=1e-4, atol=1e-5)


def test_a_mixture_and_the_joint_norm_are_folded_as_well():
    for options in ({"mixture": partial(Mixture, branches=2)}, {"joint_l2_norm": True}):
        model, batch = _model(STREAMS["nextvlad"], **options), _batch()
        with torch.inference_mode():
            expected = model.probabilities(batch)
            torch.testing.assert_close(fold(model).probabilities(batch), expected, rtol=1e-4, atol=1e-5)


def test_an_ensemble_is_folded_member_by_member():
    members = {name: _model(STREAMS[name]) for name in ("nextvlad", "deep bag")}
    model = EnsembleTagger(members)
    folded = fold(model)
    assert all(any(isinstance(m, Frozen) for m in member.modules()) for member in folded.members.children())
    with torch.inference_mode():
        torch.testing.assert_close(
            folded.probabilities(_batch()), model.probabilities(_batch()), rtol=1e-4, atol=1e-5
        )


def test_another_precision_is_refused():
    with pytest.raises(RecipeError, match="precision 'int4'; choose one of: float32, bfloat16, int8"):
        fold(_model(STREAMS["netvlad"]), "int4")


@pytest.mark.skipif(not _has_wide_units(), reason="bytes are multiplied in bfloat16 on this processor")
def test_bytes_times_bytes_are_off_by_the_rounding_of_the_weights_and_exact_in_the_middle_of_the_grid():
    torch.manual_seed(0)
    from tagreel.batch import on_the_grid

    weight, bias = torch.randn(512, 40), torch.randn(40)
    frozen = Frozen(weight, bias, precision="int8", exact=True)
    middle = torch.full((3, 512), 128, dtype=torch.uint8)
    exact = on_the_grid(middle).multiplied() @ weight + bias
    torch.testing.assert_close(frozen(on_the_grid(middle)), exact, rtol=1e-4, atol=1e-3)
    frames = torch.randint(0, 256, (200, 512), dtype=torch.uint8)
    exact = on_the_grid(frames).multiplied() @ weight + bias
    # A rounded weight is off by up to half a step, a byte up to 128 from the middle.
    step = weight.abs().amax(0) / 127
    most = step / 2 * (frames.float() - 128).abs().sum(1, keepdim=True) * (4 / 255)
    assert ((frozen(on_the_grid(frames)) - exact).abs() <= most + 1e-3).all()
    assert (frozen(on_the_grid(frames)) - exact).abs().max() > 1e-4
