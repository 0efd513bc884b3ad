"""Willow's aggregation schemes, on both streams of frame-level YouTube-8M (2017, 4,716 classes).

    tagreel train willow-gated-netvlad-256 --data 'train*.tfrecord' --data 'validate[!a]*.tfrecord' \\
        --validate 'validatea*.tfrecord' --labels vocabulary.csv --out runs/willow

Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification", 2017, arXiv
1706.06905, table 1; first place of the 2017 challenge. What the paper leaves open follows the authors' code,
github.com/antoine77340/Youtube-8M-WILLOW: the audio stream has half the clusters (bags of words: an eighth);
the LSTM and the GRU hand the states of both layers to the experts; the LSTM reads 150 frames out of order;
the gate of the gated bag of words works among the visual clusters; the second order of NetFV lacks its
intra-normalisation. The paper does not say how long the models without gating were trained. Not trained by us
at this size.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.probability_gating import ProbabilityGating
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.gated_bag_of_words import GatedBagOfWords
from tagreel.pools.gru import GRU
from tagreel.pools.lstm import LSTM
from tagreel.pools.mean import Mean
from tagreel.pools.netfv import NetFV
from tagreel.pools.netrvlad import NetRVLAD
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.soft_bag_of_words import SoftBagOfWords
from tagreel.recipe import About, Part, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Staircase

_PAPER = "Willow, arXiv 1706.06905"


def _late(visual: Part, audio: Part) -> Mapping[str, Stream]:
    """A pool for each stream, on frames of normalised features."""
    norm = (partial(MaskedBatchNorm),)
    return {"rgb": Stream(transforms=norm, pool=visual), "audio": Stream(transforms=norm, pool=audio)}


def _early(pool: Part) -> Mapping[str, Stream]:
    """One pool for the frames of both streams, side by side."""
    return {"frames": Stream(inputs=("rgb", "audio"), pool=pool)}


def _projection(clusters: int) -> tuple[Part, ...]:
    return (partial(Projection, width=1024, std=1 / math.sqrt(clusters)),)


def _published(gap: float) -> Mapping[str, float]:
    return {"GAP@20 (local validation)": gap}


willow_netvlad_256 = Recipe(
    about=About(
        summary="NetVLAD, 256 clusters, no gating",
        paper=_PAPER,
        table="table 1",
        published=_published(0.824),
        parameters=309_929_176,
    ),
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    joint_l2_norm=True,
    streams=_late(partial(NetVLAD, clusters=256), partial(NetVLAD, clusters=128)),
    body=_projection(256),
    head=partial(MixtureOfExperts, experts=2),
    loss=partial(CrossEntropy, epsilon=1e-5),
    sampling=partial(RandomFrames, frames=300),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(Adam, lr=2e-4),
        schedule=partial(Staircase, factor=0.8, every=4_000_000),
        batch_size=80,
        steps=300_000,
        head_l2=1e-6,
    ),
    batch_norm_momentum=0.001,
)

willow_avg_lr = replace(
    willow_netvlad_256,
    about=About(
        summary="Logistic regression on the mean frame",
        paper=_PAPER,
        table="table 1",
        published=_published(0.714),
        parameters=5_437_548,
    ),
    streams={"rgb": Stream(pool=partial(Mean)), "audio": Stream(pool=partial(Mean))},
    body=(),
    head=partial(Logistic),
    sampling=partial(AllFrames),
    training=replace(willow_netvlad_256.training, head_l2=1e-8),
)

willow_avg_moe_cg = replace(
    willow_avg_lr,
    about=About(
        summary="Two experts a class on the mean frame, Context Gating after them",
        paper=_PAPER,
        table="table 1",
        published=_published(0.741),
        parameters=49_423_680,
    ),
    head=partial(MixtureOfExperts, experts=2),
    output=(partial(ProbabilityGating),),
    training=willow_netvlad_256.training,
)

willow_lstm = replace(
    willow_netvlad_256,
    about=About(
        summary="LSTM, 2 layers of 1,024, on 150 random frames of both streams",
        paper=_PAPER,
        table="table 1",
        published=_published(0.817),
        parameters=113_902_808,
    ),
    streams=_early(partial(LSTM, units=(1024, 1024), readout="states")),
    body=(),
    sampling=partial(RandomFrames, frames=150),
    # Trained on frames out of order and with repeats, it would meet the whole video as something new.
    evaluation_sampling=partial(RandomFrames, frames=150),
    training=replace(
        willow_netvlad_256.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        batch_size=128,
        steps=400_000,
        head_l2=1e-8,
    ),
)

willow_gru = replace(
    willow_netvlad_256,
    about=About(
        summary="GRU, 2 layers of 1,200, on all frames of both streams in order",
        paper=_PAPER,
        table="table 1",
        published=_published(0.82),
        parameters=73_715_832,
    ),
    streams=_early(partial(GRU, units=(1200, 1200), readout="states")),
    body=(),
    sampling=partial(AllFrames),
    training=replace(
        willow_netvlad_256.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        batch_size=128,
        steps=300_000,
    ),
)

willow_bow_4096 = replace(
    willow_netvlad_256,
    about=About(
        summary="Soft bag of words, 4,096 clusters",
        paper=_PAPER,
        table="table 1",
        published=_published(0.816),
        parameters=33_146_328,
    ),
    streams=_late(partial(SoftBagOfWords, clusters=4096), partial(SoftBagOfWords, clusters=512)),
    body=_projection(4096),
    training=replace(
        willow_netvlad_256.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        steps=800_000,
        head_l2=1e-8,
    ),
)

willow_netfv_128 = replace(
    willow_netvlad_256,
    about=About(
        summary="NetFV, 128 clusters, no gating",
        paper=_PAPER,
        table="table 1",
        published=_published(0.822),
        parameters=309_789_528,
    ),
    streams=_late(
        partial(NetFV, clusters=128, intra_norm_second_order=False),
        partial(NetFV, clusters=64, intra_norm_second_order=False),
    ),
    body=_projection(128),
    training=replace(willow_netvlad_256.training, steps=600_000),
)

willow_netrvlad_256 = replace(
    willow_netvlad_256,
    about=About(
        summary="NetRVLAD, 256 clusters, no gating",
        paper=_PAPER,
        table="table 1",
        published=_published(0.823),
        parameters=309_650_648,
    ),
    streams=_late(partial(NetRVLAD, clusters=256), partial(NetRVLAD, clusters=128)),
    training=replace(willow_netvlad_256.training, steps=600_000),
)

willow_gated_bow_4096 = replace(
    willow_bow_4096,
    about=About(
        summary="Soft bag of words, 4,096 clusters, gated among the visual ones",
        paper=_PAPER,
        table="table 1",
        published=_published(0.82),
        parameters=41_543_128,
    ),
    streams=_late(partial(GatedBagOfWords, clusters=4096), partial(SoftBagOfWords, clusters=512)),
    training=replace(willow_bow_4096.training, steps=1_000_000, head_l2=1e-6),
)

willow_gated_netfv_128 = replace(
    willow_netfv_128,
    about=About(
        summary="NetFV, 128 clusters, Context Gating after pooling and after the experts",
        paper=_PAPER,
        table="table 1",
        published=_published(0.83),
        parameters=333_090_240,
    ),
    body=(*willow_netfv_128.body, partial(ContextGating)),
    output=(partial(ProbabilityGating),),
)

willow_gated_netrvlad_256 = replace(
    willow_netrvlad_256,
    about=About(
        summary="NetRVLAD, 256 clusters, Context Gating after pooling and after the experts",
        paper=_PAPER,
        table="table 1",
        published=_published(0.831),
        parameters=332_951_360,
    ),
    body=(*willow_netrvlad_256.body, partial(ContextGating)),
    output=(partial(ProbabilityGating),),
)

willow_gated_netvlad_256 = replace(
    willow_netvlad_256,
    about=About(
        summary="NetVLAD, 256 clusters, Context Gating after pooling and after the experts",
        paper=_PAPER,
        table="table 1",
        published=_published(0.832),
        parameters=333_229_888,
    ),
    body=(*willow_netvlad_256.body, partial(ContextGating)),
    output=(partial(ProbabilityGating),),
)
