"""Willow's comparison of early and late fusion of picture and sound (2017, 4,716 classes).

    tagreel train willow-netvlad-early --data 'train*.tfrecord' --data 'validate[!a]*.tfrecord' \\
        --validate 'validatea*.tfrecord' --labels vocabulary.csv --out runs/willow-early

Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification", 2017, arXiv
1706.06905, table 3. Early fusion pools frames of both streams side by side, late fusion each stream by
itself. Sizes are those of table 1, whose numbers the late clusters and the early LSTM share; those of the
late LSTM and GRU are the defaults in the authors' code, github.com/antoine77340/Youtube-8M-WILLOW, where the
paper gives none. Not trained by us at this size.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.gru import GRU
from tagreel.pools.lstm import LSTM
from tagreel.pools.netfv import NetFV
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import About, Part, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Staircase

_PAPER = "Willow, arXiv 1706.06905"


def _early(pool: Part, *transforms: Part) -> Mapping[str, Stream]:
    """One pool for the frames of both streams, side by side."""
    return {"frames": Stream(inputs=("rgb", "audio"), transforms=transforms, pool=pool)}


def _late(visual: Part, audio: Part, *transforms: Part) -> Mapping[str, Stream]:
    """A pool for each stream."""
    return {
        "rgb": Stream(transforms=transforms, pool=visual),
        "audio": Stream(transforms=transforms, pool=audio),
    }


def _projection(clusters: int) -> tuple[Part, ...]:
    return (partial(Projection, width=1024, std=1 / math.sqrt(clusters)),)


def _published(gap: float) -> Mapping[str, float]:
    return {"GAP@20 (local validation)": gap}


willow_netvlad_early = Recipe(
    about=About(
        summary="NetVLAD, 256 clusters of both streams together",
        paper=_PAPER,
        table="table 3",
        published=_published(0.819),
        parameters=326_738_904,
    ),
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    joint_l2_norm=True,
    streams=_early(partial(NetVLAD, clusters=256), partial(MaskedBatchNorm)),
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

willow_netvlad_late = replace(
    willow_netvlad_early,
    about=About(
        summary="NetVLAD, 256 clusters of the picture and 128 of the sound",
        paper=_PAPER,
        table="table 3",
        published=_published(0.824),
        parameters=309_929_176,
    ),
    streams=_late(partial(NetVLAD, clusters=256), partial(NetVLAD, clusters=128), partial(MaskedBatchNorm)),
)

willow_netfv_early = replace(
    willow_netvlad_early,
    about=About(
        summary="NetFV, 128 clusters of both streams together",
        paper=_PAPER,
        table="table 3",
        published=_published(0.812),
        parameters=326_591_192,
    ),
    streams=_early(
        partial(NetFV, clusters=128, intra_norm_second_order=False),
        partial(MaskedBatchNorm),
    ),
    body=_projection(128),
    training=replace(willow_netvlad_early.training, steps=600_000),
)

willow_netfv_late = replace(
    willow_netfv_early,
    about=About(
        summary="NetFV, 128 clusters of the picture and 64 of the sound",
        paper=_PAPER,
        table="table 3",
        published=_published(0.822),
        parameters=309_789_528,
    ),
    streams=_late(
        partial(NetFV, clusters=128, intra_norm_second_order=False),
        partial(NetFV, clusters=64, intra_norm_second_order=False),
        partial(MaskedBatchNorm),
    ),
)

willow_gru_early = replace(
    willow_netvlad_early,
    about=About(
        summary="GRU, 2 layers of 1,200, on both streams",
        paper=_PAPER,
        table="table 3",
        published=_published(0.822),
        parameters=73_715_832,
    ),
    streams=_early(partial(GRU, units=(1200, 1200), readout="states")),
    body=(),
    sampling=partial(AllFrames),
    training=replace(
        willow_netvlad_early.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        batch_size=128,
        steps=300_000,
    ),
)

willow_gru_late = replace(
    willow_gru_early,
    about=About(
        summary="GRUs, 2 layers of 1,024 for the picture and of 128 for the sound",
        paper=_PAPER,
        table="table 3",
        published=_published(0.821),
        parameters=67_124_184,
    ),
    streams=_late(
        partial(GRU, units=(1024, 1024), readout="states"),
        partial(GRU, units=(128, 128), readout="states"),
    ),
)

willow_lstm_early = replace(
    willow_netvlad_early,
    about=About(
        summary="LSTM, 2 layers of 1,024, on both streams",
        paper=_PAPER,
        table="table 3",
        published=_published(0.817),
        parameters=113_902_808,
    ),
    streams=_early(partial(LSTM, units=(1024, 1024), readout="states")),
    body=(),
    sampling=partial(RandomFrames, frames=150),
    # Trained on frames out of order and with repeats, it would meet the whole video as something new.
    evaluation_sampling=partial(RandomFrames, frames=150),
    training=replace(
        willow_netvlad_early.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        batch_size=128,
        steps=400_000,
        head_l2=1e-8,
    ),
)

willow_lstm_late = replace(
    willow_lstm_early,
    about=About(
        summary="LSTMs, 2 layers of 1,024 for the picture and of 128 for the sound",
        paper=_PAPER,
        table="table 3",
        published=_published(0.811),
        parameters=125_714_648,
    ),
    streams=_late(
        partial(LSTM, units=(1024, 1024), readout="states"),
        partial(LSTM, units=(128, 128), readout="states"),
    ),
)
