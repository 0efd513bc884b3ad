"""Willow's released ensemble and its seven models, as the commands train them (2017, 4,716 classes).

    tagreel train willow-rel-gated-netvlad-256 --data 'train*.tfrecord' \\
        --data 'validate[!a]*.tfrecord' --validate 'validatea*.tfrecord' --labels vocabulary.csv \\
        --out runs/willow-rel

Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification", 2017, arXiv
1706.06905, table 4, and github.com/antoine77340/Youtube-8M-WILLOW, whose README gives the commands. No member
has a published score of its own. They were trained on the training videos and all validation videos but 21
thousand. The ensemble is the mean of each model's 50 best tags; the authors' script stops at the best 25 by a
slip. In their code the cluster models see random frames when they predict, too; here all frames. The
25 models and the weights of their best submission are not published. Not trained by us at this size.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.probability_gating import ProbabilityGating
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.gated_bag_of_words import GatedBagOfWords
from tagreel.pools.gru import GRU
from tagreel.pools.lstm import LSTM
from tagreel.pools.netfv import NetFV
from tagreel.pools.netrvlad import NetRVLAD
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.soft_bag_of_words import SoftBagOfWords
from tagreel.recipe import About, Ensemble, Part, Recipe, Stream, Training, Unpublished
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


def _projection(clusters: int) -> Part:
    return partial(Projection, width=1024, std=1 / math.sqrt(clusters))


willow_rel_gated_netvlad_256 = Recipe(
    about=About(
        summary="Gated NetVLAD, 256 clusters, 700,000 steps",
        paper=_PAPER,
        table="table 4",
        parameters=333_229_888,
    ),
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    joint_l2_norm=True,
    streams=_late(partial(NetVLAD, clusters=256), partial(NetVLAD, clusters=128)),
    body=(_projection(256), partial(ContextGating)),
    head=partial(MixtureOfExperts, experts=2),
    output=(partial(ProbabilityGating),),
    loss=partial(CrossEntropy, epsilon=1e-5),
    sampling=partial(RandomFrames, frames=300),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(Adam, lr=2e-4),
        schedule=partial(Staircase, factor=0.8, every=4_000_000),
        batch_size=80,
        steps=700_000,
        head_l2=1e-6,
    ),
    batch_norm_momentum=0.001,
)

willow_rel_gated_netfv_128 = replace(
    willow_rel_gated_netvlad_256,
    about=About(
        summary="Gated NetFV, 128 clusters, 600,000 steps",
        paper=_PAPER,
        table="table 4",
        parameters=333_090_240,
    ),
    streams=_late(
        partial(NetFV, clusters=128, intra_norm_second_order=False),
        partial(NetFV, clusters=64, intra_norm_second_order=False),
    ),
    body=(_projection(128), partial(ContextGating)),
    training=replace(willow_rel_gated_netvlad_256.training, steps=600_000),
)

willow_rel_gated_dbow_4096 = replace(
    willow_rel_gated_netvlad_256,
    about=About(
        summary="Gated bag of words, 4,096 clusters, 1,000,000 steps",
        paper=_PAPER,
        table="table 4",
        parameters=41_543_128,
    ),
    streams=_late(partial(GatedBagOfWords, clusters=4096), partial(SoftBagOfWords, clusters=512)),
    body=(_projection(4096),),
    output=(),
    training=replace(
        willow_rel_gated_netvlad_256.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        steps=1_000_000,
    ),
)

willow_rel_soft_dbow_8000 = replace(
    willow_rel_gated_dbow_4096,
    about=About(
        summary="Soft bag of words, 8,000 clusters, 800,000 steps",
        paper=_PAPER,
        table="table 4",
        parameters=41_712_680,
    ),
    streams=_late(partial(SoftBagOfWords, clusters=8000), partial(SoftBagOfWords, clusters=1000)),
    body=(_projection(8000),),
    training=replace(willow_rel_gated_dbow_4096.training, steps=800_000, head_l2=1e-8),
)

willow_rel_gated_netrvlad_256 = replace(
    willow_rel_gated_netvlad_256,
    about=About(
        summary="Gated NetRVLAD, 256 clusters, 600,000 steps",
        paper=_PAPER,
        table="table 4",
        parameters=332_951_360,
    ),
    streams=_late(partial(NetRVLAD, clusters=256), partial(NetRVLAD, clusters=128)),
    training=replace(willow_rel_gated_netvlad_256.training, steps=600_000),
)

willow_rel_gru_1200 = replace(
    willow_rel_gated_netvlad_256,
    about=About(
        summary="GRU, 2 layers of 1,200, 300,000 steps",
        paper=_PAPER,
        table="table 4",
        parameters=73_715_832,
    ),
    streams=_early(partial(GRU, units=(1200, 1200), readout="states")),
    body=(),
    output=(),
    sampling=partial(AllFrames),
    training=replace(
        willow_rel_gated_netvlad_256.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        batch_size=128,
        steps=300_000,
    ),
)

willow_rel_lstm_1024 = replace(
    willow_rel_gated_netvlad_256,
    about=About(
        summary="LSTM, 2 layers of 1,024, on 150 random frames, 400,000 steps",
        paper=_PAPER,
        table="table 4",
        parameters=113_902_808,
    ),
    streams=_early(partial(LSTM, units=(1024, 1024), readout="states")),
    body=(),
    output=(),
    sampling=partial(RandomFrames, frames=150),
    # Trained on frames out of order and with repeats, it would meet the whole video as something new.
    evaluation_sampling=partial(RandomFrames, frames=150),
    training=replace(
        willow_rel_gated_netvlad_256.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        batch_size=128,
        steps=400_000,
        head_l2=1e-8,
    ),
)

willow_ens7 = Ensemble(
    about=About(
        summary="All released, alike in weight",
        paper=_PAPER,
        table="table 4",
        published={"GAP@20 (Kaggle private)": 0.84688},
    ),
    members={
        "willow-rel-gated-netvlad-256": willow_rel_gated_netvlad_256,
        "willow-rel-gated-netfv-128": willow_rel_gated_netfv_128,
        "willow-rel-gated-dbow-4096": willow_rel_gated_dbow_4096,
        "willow-rel-soft-dbow-8000": willow_rel_soft_dbow_8000,
        "willow-rel-gated-netrvlad-256": willow_rel_gated_netrvlad_256,
        "willow-rel-gru-1200": willow_rel_gru_1200,
        "willow-rel-lstm-1024": willow_rel_lstm_1024,
    },
    top_k=50,
)

willow_ens25 = Unpublished(
    reason="the paper says that it has the seven released models and versions of them without gates, of "
    "other numbers of clusters and other widths, 25 in all, not which; willow-ens7 is the released one",
    about=About(
        summary="25 models, greedily chosen: first place of 2017",
        paper=_PAPER,
        table="table 4",
        published={"GAP@20 (Kaggle private)": 0.84967},
    ),
)
