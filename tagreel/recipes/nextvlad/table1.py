"""NeXtVLAD and NetVLAD on both streams of frame-level YouTube-8M (2018, 3,862 classes), trained 5 epochs.

    tagreel train nextvlad-g8-d05-k128 --data 'train*.tfrecord' --validate 'validate*.tfrecord' \\
        --labels vocabulary.csv --set streams.rgb.transforms.0.eigenvalues=eigenvals.npy --out runs/nextvlad

Lin, Xiao, Fan, "NeXtVLAD: An Efficient Neural Network to Aggregate Frame-level Features for Large-scale Video
Classification", 2018, arXiv 1811.05014, table 1; about ten hours a row on two GTX 1080 Ti. Names say groups
G, dropout and clusters K. The audio stream has half the clusters and half the groups, as in the authors'
code. The code of the NetVLAD rows is not published: their gate is the full Context Gating and the small
one's audio has all clusters, with which the published sizes come out. That of netvlad-random, 274 million,
is one without the audio stream. NeXtVLAD's 58 and 55 million do not come out of the authors' code at all,
which has the sizes here. Not trained by us at this size.
"""

import math
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.logistic import Logistic
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.dropout import Dropout
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.projection import Projection
from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.layers.se_gating import SEGating
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Staircase

_PAPER = "NeXtVLAD, arXiv 1811.05014"

_SCORE = "GAP@20 (local validation, 5 epochs on train)"
_SE_GATED = (
    partial(Projection, width=2048, bias=False),
    partial(MaskedBatchNorm),
    partial(SEGating, reduction=8),
)

nextvlad_g8_d05_k128 = Recipe(
    about=About(
        summary="NeXtVLAD, 8 groups, 128 clusters, dropout 0.5: the paper's best single model",
        paper=_PAPER,
        table="table 1",
        published={_SCORE: 0.8723},
        parameters=88_889_378,
    ),
    features={"rgb": 1024, "audio": 128},
    classes=3862,
    streams={
        "rgb": Stream(
            transforms=(partial(ReverseWhitening),),
            pool=partial(NeXtVLAD, clusters=128, groups=8, expansion=2),
        ),
        "audio": Stream(pool=partial(NeXtVLAD, clusters=64, groups=4, expansion=2)),
    },
    body=(partial(Dropout, rate=0.5), *_SE_GATED),
    head=partial(Logistic, init="he"),
    loss=partial(CrossEntropy, epsilon=1e-8),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(Adam, lr=2e-4),
        schedule=partial(Staircase, factor=0.8, every=2_000_000),
        batch_size=160,
        epochs=5,
        head_l2=1e-5,
    ),
    batch_norm_momentum=0.001,
)

_g16_streams = {
    "rgb": Stream(
        transforms=(partial(ReverseWhitening),),
        pool=partial(NeXtVLAD, clusters=128, groups=16, expansion=2),
    ),
    "audio": Stream(pool=partial(NeXtVLAD, clusters=64, groups=8, expansion=2)),
}

nextvlad_g16_d05_k128 = replace(
    nextvlad_g8_d05_k128,
    about=About(
        summary="NeXtVLAD, 16 groups, 128 clusters, dropout 0.5",
        paper=_PAPER,
        table="table 1",
        published={_SCORE: 0.8697},
        parameters=53_268_014,
    ),
    streams=_g16_streams,
)

nextvlad_g16_d02_k128 = replace(
    nextvlad_g8_d05_k128,
    about=About(
        summary="NeXtVLAD, 16 groups, 128 clusters, dropout 0.2",
        paper=_PAPER,
        table="table 1",
        published={_SCORE: 0.8685},
        parameters=53_268_014,
    ),
    streams=_g16_streams,
    body=(partial(Dropout, rate=0.2), *_SE_GATED),
)

nextvlad_g32_d02_k128 = replace(
    nextvlad_g8_d05_k128,
    about=About(
        summary="NeXtVLAD, 32 groups, 128 clusters, dropout 0.2",
        paper=_PAPER,
        table="table 1",
        published={_SCORE: 0.8681},
        parameters=38_731_334,
    ),
    streams={
        "rgb": Stream(
            transforms=(partial(ReverseWhitening),),
            pool=partial(NeXtVLAD, clusters=128, groups=32, expansion=2),
        ),
        "audio": Stream(pool=partial(NeXtVLAD, clusters=64, groups=16, expansion=2)),
    },
    body=(partial(Dropout, rate=0.2), *_SE_GATED),
)

nextvlad_netvlad_k128 = replace(
    nextvlad_g8_d05_k128,
    about=About(
        summary="NetVLAD, 128 clusters, that NeXtVLAD is measured by",
        paper=_PAPER,
        table="table 1",
        published={_SCORE: 0.8474},
        parameters=297_603_222,
    ),
    streams={
        "rgb": Stream(transforms=(partial(ReverseWhitening),), pool=partial(NetVLAD, clusters=128)),
        "audio": Stream(pool=partial(NetVLAD, clusters=64)),
    },
    body=(
        partial(Dropout, rate=0.5),
        partial(Projection, width=2048, bias=False, std=1 / math.sqrt(128)),
        partial(ContextGating),
    ),
)

nextvlad_netvlad_random_k256 = replace(
    nextvlad_g8_d05_k128,
    about=About(
        summary="NetVLAD, 256 clusters, trained on 300 random frames a video",
        paper=_PAPER,
        table="table 1",
        published={_SCORE: 0.8507},
        parameters=290_779_670,
    ),
    streams={
        "rgb": Stream(transforms=(partial(ReverseWhitening),), pool=partial(NetVLAD, clusters=256)),
        "audio": Stream(pool=partial(NetVLAD, clusters=128)),
    },
    body=(
        partial(Dropout, rate=0.5),
        partial(Projection, width=1024, bias=False, std=1 / math.sqrt(256)),
        partial(ContextGating),
    ),
    sampling=partial(RandomFrames, frames=300),
)

nextvlad_netvlad_small_k128 = replace(
    nextvlad_g8_d05_k128,
    about=About(
        summary="NetVLAD, 128 clusters, on frames brought to a quarter of their width",
        paper=_PAPER,
        table="table 1",
        published={_SCORE: 0.8582},
        parameters=87_949_878,
    ),
    streams={
        "rgb": Stream(
            transforms=(partial(ReverseWhitening), partial(Projection, width=256)),
            pool=partial(NetVLAD, clusters=128),
        ),
        "audio": Stream(
            transforms=(partial(Projection, width=32),),
            pool=partial(NetVLAD, clusters=128),
        ),
    },
    body=(
        partial(Dropout, rate=0.5),
        partial(Projection, width=2048, bias=False, std=1 / math.sqrt(128)),
        partial(ContextGating),
    ),
)
