from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tagreel.batch import Batch, dequantize
from tagreel.errors import DataError, RecipeError
from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.dropout import Dropout
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.probability_gating import ProbabilityGating
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.model import Tag, top_classes
from tagreel.pools.max import Max
from tagreel.pools.mean import Mean
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine
from tagreel.tagger import build, count_parameters

RGB, AUDIO, CLASSES = 4, 3, 5


def _recipe(**changes):
    settings = {
        "features": {"rgb": RGB, "audio": AUDIO},
        "classes": CLASSES,
        "streams": {"rgb": Stream(pool=partial(Mean)), "audio": Stream(pool=partial(Max))},
        "head": partial(Logistic),
        "loss": partial(CrossEntropy),
        "sampling": partial(AllFrames),
        "evaluation_sampling": partial(AllFrames),
        "training": Training(optimizer=partial(torch.optim.Adam), schedule=partial(Cosine)),
    }
    return Recipe(**(settings | changes))


def _built(**changes):
    torch.manual_seed(0)
    return build(_recipe(**changes))


DEEP = {
    "streams": {
        "rgb": Stream(
            transforms=(partial(MaskedBatchNorm),), pool=partial(NeXtVLAD, clusters=3, groups=2)
        ),
        "audio": Stream(pool=partial(NetVLAD, clusters=2)),
    },
    "joint_l2_norm": True,
    "body": (partial(Projection, width=6), partial(MaskedBatchNorm), partial(ContextGating)),
    "head": partial(MixtureOfExperts),
    "output": (partial(ProbabilityGating),),
}  # fmt: skip


def _videos(lengths=(3, 1, 2), *, padded_to=None, padding=0, audio_lengths=None, dtype=torch.uint8):
    """Videos of these lengths as the loader gives them; the same ones whatever they are padded with."""
    streams, num_frames = {}, {}
    for name, width, counts in (("rgb", RGB, lengths), ("audio", AUDIO, audio_lengths or lengths)):
        length = padded_to or max(*counts, 1)
        frames = torch.full((len(counts), length, width), padding, dtype=torch.uint8)
        for b, count in enumerate(counts):
            torch.manual_seed(10 * b + width)
            frames[b, :count] = torch.randint(0, 256, (count, width), dtype=torch.uint8)
        streams[name] = frames if dtype == torch.uint8 else dequantize(frames).to(dtype)
        num_frames[name] = torch.tensor(counts)
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(
        ids=[str(b) for b in range(len(lengths))],
        streams=streams,
        num_frames=num_frames,
        label_ids=none,
        label_counts=torch.zeros(len(lengths), dtype=torch.int64),
    )


def test_streams_are_dequantised_pooled_and_joined_in_the_recipes_order():
    batch = _videos()
    model = _built()
    for b, logits in enumerate(model.logits(batch)):
        n = batch.num_frames["rgb"][b]
        rgb = dequantize(batch.streams["rgb"][b, :n]).mean(0)
        audio = dequantize(batch.streams["audio"][b, :n]).amax(0)
        torch.testing.assert_close(logits, model.head(torch.cat([rgb, audio])))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", [0, 255])
def test_padding_changes_nothing_in_a_whole_model(training, padding):
    results = []
    for batch in (_videos(), _videos(padded_to=7, padding=padding)):
        model = _built(**DEEP).train(training)
        logits = model.logits(batch)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters()), *model.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_gradients_reach_every_parameter_of_a_whole_model():
    model = _built(**DEEP)
    (model.logits(_videos((3, 2, 4, 5))) * torch.randn(4, CLASSES)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_floats_are_as_good_as_the_bytes_they_came_from():
    model = _built(**DEEP).eval()
    torch.testing.assert_close(
        model.logits(_videos()), model.logits(_videos(dtype=torch.float32)), rtol=1e-4, atol=1e-5
    )


def test_the_joint_norm_divides_a_frame_of_all_features_by_its_length():
    model, batch = _built(joint_l2_norm=True), _videos((1, 1))
    rgb, audio = (dequantize(batch.streams[name][:, 0]) for name in ("rgb", "audio"))
    frame = torch.cat([rgb, audio], dim=1)
    expected = frame / frame.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(model.describe(batch.streams, batch.masks()), expected)


def test_parts_follow_one_another_and_know_their_widths():
    model = _built(**DEEP)
    assert isinstance(model.streams["rgb"].pool, NeXtVLAD)
    assert model.body[0].linear.in_features == 2 * RGB // 2 * 3 + AUDIO * 2
    assert [type(part) for part in model.body] == [Projection, MaskedBatchNorm, ContextGating]
    batch = _videos()
    model.eval()
    x = model.describe(batch.streams, batch.masks())
    expected = model.output[0](model.head(model.body[2](model.body[1](model.body[0](x)))))
    torch.testing.assert_close(model.logits(batch), expected)
    assert torch.equal(model.classify(x), expected)


def test_early_fusion_lays_features_side_by_side():
    fused = _built(streams={"all": Stream(inputs=("audio", "rgb"), pool=partial(Max))})
    batch = _videos()
    descriptor = fused.describe(batch.streams, batch.masks())
    for b, n in enumerate(batch.num_frames["rgb"]):
        frames = torch.cat([batch.streams["audio"][b, :n], batch.streams["rgb"][b, :n]], dim=1)
        torch.testing.assert_close(descriptor[b], dequantize(frames).amax(0))


class _Swapped(torch.nn.Module):
    """A join that lays the streams side by side the other way round."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.out_dim = sum(dims)

    def forward(self, descriptors):
        return torch.cat(descriptors[::-1], dim=1)


def test_a_join_makes_one_vector_of_what_the_streams_pool():
    plain, joined = _built(), _built(join=partial(_Swapped))
    batch = _videos()
    first, second = (branch.out_dim for branch in plain.streams.values())
    before, after = (m.describe(batch.streams, batch.masks()) for m in (plain, joined))
    assert torch.equal(torch.cat([before[:, first:], before[:, :first]], dim=1), after)
    assert after.shape == (3, first + second)


def test_late_parts_take_part_once_they_are_fired():
    model = _built(late=(partial(ContextGating),)).eval()
    late = model.logits(_videos())
    model.fire(False)
    early = model.logits(_videos())
    torch.testing.assert_close(model.late[0](early), late)
    assert not torch.allclose(early, late)


def test_early_fusion_keeps_frames_that_one_feature_lacks():
    # The second video has no audio, and the batch's audio ends before its pictures do.
    fused = _built(streams={"all": Stream(inputs=("rgb", "audio"), pool=partial(Mean))}, optional=("audio",))
    batch = _videos((2, 5), audio_lengths=(2, 0))
    descriptor = fused.describe(batch.streams, batch.masks())
    torch.testing.assert_close(descriptor[1, :RGB], dequantize(batch.streams["rgb"][1]).mean(0))
    assert not descriptor[1, RGB:].any()


def test_one_feature_may_feed_two_streams():
    model = _built(
        streams={
            "mean": Stream(inputs=("rgb",), pool=partial(Mean)),
            "max": Stream(inputs=("rgb",), pool=partial(Max)),
        }
    )
    batch = _videos()
    assert model.describe(batch.streams, batch.masks()).shape == (3, 2 * RGB)


@pytest.mark.parametrize("joint_l2_norm", [True, False])
def test_a_video_that_lacks_an_optional_feature_is_scored_alone_as_among_others(joint_l2_norm):
    model = _built(**(DEEP | {"joint_l2_norm": joint_l2_norm}), optional=("audio",)).eval()
    among = _videos((2, 5), audio_lengths=(2, 0))
    alone = {"rgb": among.streams["rgb"][1:]}
    torch.testing.assert_close(model.logits(among).sigmoid()[1:], model.scores(alone), rtol=1e-4, atol=1e-5)


def test_the_recipes_momentum_holds_for_every_batch_norm():
    model = _built(**DEEP, batch_norm_momentum=0.001)
    norms = [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
    assert len(norms) == 7
    assert {norm.momentum for norm in norms} == {0.001}


def test_a_streams_name_may_hold_no_dot():
    with pytest.raises(RecipeError, match=r"streams: the name 'rgb\.mean' holds a dot"):
        _recipe(streams={"rgb.mean": Stream(inputs=("rgb",), pool=partial(Mean))})


def test_the_same_seed_builds_the_same_model():
    first, second = _built(**DEEP).state_dict(), _built(**DEEP).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    torch.manual_seed(1)
    assert not torch.equal(build(_recipe()).head.linear.weight, _built().head.linear.weight)


# ------------------------------------------------------------------ widths


def test_what_the_recipe_leaves_open_the_data_say():
    recipe = _recipe(features={"rgb": None, "audio": AUDIO}, classes=None)
    model = build(recipe, features={"rgb": 9, "audio": AUDIO}, classes=2)
    assert model.features == {"rgb": 9, "audio": AUDIO}
    assert (model.head.linear.in_features, model.head.linear.out_features) == (9 + AUDIO, 2)
    assert count_parameters(recipe) is None


def test_a_width_that_nobody_knows_is_named():
    with pytest.raises(
        RecipeError, match=r"^features\.rgb is not known yet; set it with --set features\.rgb="
    ):
        build(_recipe(features={"rgb": None, "audio": AUDIO}))
    with pytest.raises(RecipeError, match=r"^classes is not known yet; set it with --set classes="):
        build(_recipe(classes=None))


def test_recipe_and_data_that_disagree_are_named():
    with pytest.raises(RecipeError, match=r"features\.rgb: the recipe says 4, the data 1,024; .*rgb=1024"):
        build(_recipe(), features={"rgb": 1024, "audio": AUDIO})
    with pytest.raises(RecipeError, match=r"classes: the recipe says 5, the data 6"):
        build(_recipe(), classes=6)
    assert build(_recipe(), features={"rgb": RGB}, classes=CLASSES).classes == CLASSES


def test_an_option_that_does_not_fit_the_width_is_a_recipe_error():
    with pytest.raises(RecipeError, match="expansion · dim = 8 is not a multiple of groups=3"):
        _built(streams={"rgb": Stream(pool=partial(NeXtVLAD, groups=3))})


def test_label_names_must_be_as_many_as_classes():
    with pytest.raises(RecipeError, match="there are 2 label names and 5 classes"):
        build(_recipe(), label_names=["a", "b"])


def test_parameters_are_counted_without_making_them():
    huge = _recipe(features={"rgb": 10**6, "audio": AUDIO}, classes=10**6)
    assert count_parameters(huge) == (10**6 + AUDIO) * 10**6 + 10**6
    assert count_parameters(_recipe(**DEEP)) == sum(p.numel() for p in _built(**DEEP).parameters())


# ------------------------------------------------------------------ scores and tags


def test_scores_are_the_probabilities_of_the_real_frames():
    model, batch = _built(**DEEP).eval(), _videos(padding=200)
    scores = model.scores(batch.streams, num_frames=[3, 1, 2])
    torch.testing.assert_close(scores, model.logits(batch).sigmoid())
    assert not scores.requires_grad


def test_scores_of_every_kind_of_array_are_the_same():
    model = _built().eval()
    arrays = {name: frames.numpy() for name, frames in _videos(dtype=torch.float32).streams.items()}
    expected = model.scores(arrays)
    read_only = {name: x.copy() for name, x in arrays.items()}
    for x in read_only.values():
        x.flags.writeable = False
    turned = {name: x[:, ::-1].copy()[:, ::-1] for name, x in arrays.items()}
    lists = {name: x.tolist() for name, x in arrays.items()}
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}
    doubles = {name: x.astype(np.float64) for name, x in arrays.items()}
    for same in (read_only, turned, lists, tensors, doubles):
        torch.testing.assert_close(model.scores(same), expected)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_evaluates_and_leaves_the_mode_as_it_was(training):
    model = _built(body=(partial(Dropout), partial(MaskedBatchNorm))).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = model.scores(_videos().streams), model.scores(_videos().streams)
    assert torch.equal(first, second)
    assert model.training is model.body[0].training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("rgb", "message"),
    [
        (None, "no 'rgb'; got: audio"),
        ((2, 3, 5), "'rgb' is 2 × 3 × 5; expected videos × frames × 4"),
        ((2, 4), "'rgb' is 2 × 4; expected videos × frames × 4"),
        ((2, 0, 4), "'rgb' is 2 × 0 × 4; expected videos × frames × 4"),
        ((1, 3, 4), "'rgb' is 1 × 3 × 4; expected videos × frames × 4, of 2 videos"),
    ],
)
def test_a_feature_that_is_missing_or_misshapen_is_named(rgb, message):
    given = {"audio": np.zeros((2, 3, AUDIO))} | ({} if rgb is None else {"rgb": np.zeros(rgb)})
    with pytest.raises(DataError) as caught:
        _built().scores(given)
    assert message in str(caught.value)


def test_the_tags_of_a_video_come_best_first():
    torch.manual_seed(0)
    model = build(_recipe(), label_names=["beach", "car", "dog", "fish", "tree"])
    frames = {name: x[0] for name, x in _videos().streams.items()}
    scores = model.scores({name: x[None] for name, x in frames.items()})[0]
    tags = model.predict({name: x.numpy() for name, x in frames.items()}, top_k=3)
    assert [tag.probability for tag in tags] == pytest.approx(
        scores.sort(descending=True).values[:3].tolist()
    )
    assert tags[0] == Tag(
        id=int(scores.argmax()), name=model.label_names[scores.argmax()], probability=tags[0].probability
    )
    assert len(model.predict(frames, top_k=20)) == CLASSES


def test_whole_numbers_that_are_no_bytes_are_refused():
    streams = {name: x.to(torch.int64) for name, x in _videos().streams.items()}
    with pytest.raises(DataError, match="'rgb' is int64; expected uint8 bytes or floats"):
        _built().scores(streams)


def test_classes_without_names_are_numbered():
    assert _built().label_names == [f"class {c}" for c in range(CLASSES)]


def test_somebody_elses_layer_fits_a_slot():
    class Middle(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.out_dim = dim

        def forward(self, frames, mask):
            return frames[:, 0]

    model = _built(streams={"rgb": Stream(pool=partial(Middle))})
    torch.testing.assert_close(
        model.logits(_videos()), model.head(dequantize(_videos().streams["rgb"][:, 0]))
    )


# ------------------------------------------------------------------ one path for files and arrays


def test_a_vector_beside_frames_stands_beside_each_of_them():
    model = _built(streams={"both": Stream(inputs=("rgb", "audio"), pool=partial(Mean))})
    for frames in (1, 2, 7):
        streams = {"rgb": torch.ones(2, frames, RGB), "audio": torch.full((2, 1, AUDIO), 3.0)}
        masks = {name: torch.ones(2, stream.shape[1], dtype=torch.bool) for name, stream in streams.items()}
        expected = torch.tensor([1.0] * RGB + [3.0] * AUDIO).expand(2, -1)
        torch.testing.assert_close(model.describe(streams, masks), expected)


def test_predict_sees_the_frames_that_the_recipe_takes():
    model = _built(evaluation_sampling=partial(AllFrames, max_frames=2))
    frames = {
        "rgb": np.arange(20, dtype=np.uint8).reshape(5, 4),
        "audio": np.arange(15, dtype=np.uint8).reshape(5, 3),
    }
    tags = model.predict(frames, top_k=CLASSES)
    found = [tag.probability for tag in sorted(tags, key=lambda tag: tag.id)]
    seen, unseen = (
        model.scores({name: x[None, :n] for name, x in frames.items()})[0].tolist() for n in (2, 5)
    )
    assert found == seen
    assert found != unseen


def test_predict_wants_one_video_of_finite_numbers():
    model = _built()
    with pytest.raises(DataError, match=r"'rgb' is 1 × 5 × 4; expected frames × width"):
        model.predict({"rgb": torch.zeros(1, 5, RGB), "audio": torch.zeros(1, 5, AUDIO)})
    with pytest.raises(DataError, match="'audio' holds numbers that are not finite"):
        model.predict({"rgb": torch.zeros(5, RGB), "audio": torch.full((5, AUDIO), torch.nan)})


def test_scores_are_computed_in_the_precision_of_the_recipe():
    streams = {"rgb": Stream(pool=partial(NetVLAD, clusters=2)), "audio": Stream(pool=partial(Max))}
    half = _built(
        streams=streams,
        training=Training(
            optimizer=partial(torch.optim.Adam), schedule=partial(Cosine), precision="bfloat16"
        ),
    )
    full = _built(streams=streams)
    videos = {"rgb": torch.rand(4, 3, RGB), "audio": torch.rand(4, 3, AUDIO)}
    assert not torch.equal(half.scores(videos), full.scores(videos))
    torch.testing.assert_close(half.scores(videos), full.scores(videos), atol=0.02, rtol=0.05)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 9])
def test_of_equal_scores_the_lower_class_comes_first(k):
    torch.manual_seed(0)
    scores = torch.randint(0, 3, (40, 7)).float()
    best, classes = top_classes(scores, k)
    for row, values, found in zip(scores.tolist(), best.tolist(), classes.tolist(), strict=True):
        expected = sorted(range(7), key=lambda c, row=row: (-row[c], c))[:k]
        assert found == expected
        assert values == [row[c] for c in expected]


@pytest.mark.parametrize("num_frames", [[1, 2], [0], [-1], [9]])
def test_frame_counts_have_to_fit_the_videos(num_frames):
    videos = {"rgb": torch.zeros(1, 5, RGB), "audio": torch.zeros(1, 5, AUDIO)}
    with pytest.raises(DataError, match=r"num_frames is .*; expected 1 numbers from 1 to 5"):
        _built().scores(videos, num_frames)
