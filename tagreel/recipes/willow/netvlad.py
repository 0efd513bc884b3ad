"""NetVLAD with Context Gating, on both streams of frame-level YouTube-8M (2017, 4,716 classes).

    tagreel train willow-gated-netvlad-256 --data 'train*.tfrecord' --validate 'validatea*.tfrecord' \\
        --labels vocabulary.csv --out runs/willow

Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification", 2017, arXiv
1706.06905, tables 1 and 2; first place of the 2017 challenge, code github.com/antoine77340/Youtube-8M-WILLOW.
The audio stream has half the clusters, as in that code. Not trained by us at this size.
"""

import math
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.probability_gating import ProbabilityGating
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Staircase

willow_netvlad_256 = Recipe(
    about=About(
        summary="NetVLAD, 256 clusters, no gating",
        paper="arXiv 1706.06905, table 1",
        published={"GAP@20 (local validation)": 0.824},
        parameters=309_929_176,
        checked="parameter count",
    ),
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    joint_l2_norm=True,
    streams={
        "rgb": Stream(transforms=(partial(MaskedBatchNorm),), pool=partial(NetVLAD, clusters=256)),
        "audio": Stream(transforms=(partial(MaskedBatchNorm),), pool=partial(NetVLAD, clusters=128)),
    },
    body=(partial(Projection, width=1024, std=1 / math.sqrt(256)),),
    head=partial(MixtureOfExperts, experts=2),
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

willow_gated_netvlad_256 = replace(
    willow_netvlad_256,
    about=About(
        summary="NetVLAD, 256 clusters, Context Gating after pooling and after the experts",
        paper="arXiv 1706.06905, table 1, last row",
        published={"GAP@20 (local validation)": 0.832},
        parameters=333_229_888,
        checked="parameter count",
    ),
    body=(*willow_netvlad_256.body, partial(ContextGating)),
    output=(partial(ProbabilityGating),),
)
