"""Willow's ablation of Context Gating: NetVLAD, 128 clusters, with and without gates (2017, 4,716 classes).

    tagreel train willow-cg-cg --data 'train*.tfrecord' --data 'validate[!a]*.tfrecord' \\
        --validate 'validatea*.tfrecord' --labels vocabulary.csv --out runs/willow-cg

Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification", 2017, arXiv
1706.06905, table 2. The names say what follows the pooling and what follows the experts: nothing, a gated
linear unit or Context Gating. Not trained by us at this size.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.gated_linear_unit import GatedLinearUnit
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.probability_gating import ProbabilityGating
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Staircase

_PAPER = "Willow, arXiv 1706.06905"


def _published(gap: float) -> Mapping[str, float]:
    return {"GAP@20 (local validation)": gap}


willow_cg_none_none = Recipe(
    about=About(
        summary="NetVLAD, 128 clusters, no gating",
        paper=_PAPER,
        table="table 2",
        published=_published(0.822),
        parameters=167_043_928,
    ),
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    joint_l2_norm=True,
    streams={
        "rgb": Stream(transforms=(partial(MaskedBatchNorm),), pool=partial(NetVLAD, clusters=128)),
        "audio": Stream(transforms=(partial(MaskedBatchNorm),), pool=partial(NetVLAD, clusters=64)),
    },
    body=(partial(Projection, width=1024, std=1 / math.sqrt(128)),),
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

willow_glu_none = replace(
    willow_cg_none_none,
    about=About(
        summary="NetVLAD, 128 clusters, a gated linear unit after pooling",
        paper=_PAPER,
        table="table 2",
        published=_published(0.824),
        parameters=169_143_128,
    ),
    body=(*willow_cg_none_none.body, partial(GatedLinearUnit)),
)

willow_cg_none = replace(
    willow_cg_none_none,
    about=About(
        summary="NetVLAD, 128 clusters, Context Gating after pooling",
        paper=_PAPER,
        table="table 2",
        published=_published(0.827),
        parameters=168_094_552,
    ),
    body=(*willow_cg_none_none.body, partial(ContextGating)),
)

willow_glu_cg = replace(
    willow_cg_none_none,
    about=About(
        summary="NetVLAD, 128 clusters, a gated linear unit, and Context Gating after the experts",
        paper=_PAPER,
        table="table 2",
        published=_published(0.827),
        parameters=191_393_216,
    ),
    body=(*willow_cg_none_none.body, partial(GatedLinearUnit)),
    output=(partial(ProbabilityGating),),
)

willow_cg_cg = replace(
    willow_cg_none_none,
    about=About(
        summary="NetVLAD, 128 clusters, Context Gating after pooling and after the experts",
        paper=_PAPER,
        table="table 2",
        published=_published(0.83),
        parameters=190_344_640,
    ),
    body=(*willow_cg_none_none.body, partial(ContextGating)),
    output=(partial(ProbabilityGating),),
)
