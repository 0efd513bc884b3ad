"""NeXtVLAD as a single model, on both streams of frame-level YouTube-8M (2018, 3,862 classes).

    tagreel train nextvlad --data 'train*.tfrecord' --validate 'validate*.tfrecord' --labels vocabulary.csv \\
        --set streams.rgb.transforms.0.eigenvalues=eigenvals.npy --out runs/nextvlad

Lin, Xiao, Fan, "NeXtVLAD: An Efficient Neural Network to Aggregate Frame-level Features for Large-scale Video
Classification", 2018, arXiv 1811.05014, tables 1 and 2; published in three days on two GTX 1080 Ti. The audio
stream has half the clusters and half the groups, as in the authors' code. Not trained by us at this size.
"""

from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.logistic import Logistic
from tagreel.layers.dropout import Dropout
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.projection import Projection
from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.layers.se_gating import SEGating
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Staircase

nextvlad = Recipe(
    about=About(
        summary="NeXtVLAD, 8 groups, 128 clusters: the paper's best single model",
        paper="arXiv 1811.05014, table 1, last row",
        published={"GAP@20 (local validation, 5 epochs on train)": 0.8723},
        parameters=88_889_378,
        checked="parameter count",
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
    body=(
        partial(Dropout, rate=0.5),
        partial(Projection, width=2048, bias=False),
        partial(MaskedBatchNorm),
        partial(SEGating, reduction=8),
    ),
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

nextvlad_k112 = replace(
    nextvlad,
    about=About(
        summary="NeXtVLAD, 8 groups, 112 clusters: one branch of the submission",
        paper="arXiv 1811.05014, table 2, first row",
        published={
            "GAP@20 (private, after distillation, 460K steps)": 0.87846,
            "GAP@20 (public, after distillation, 460K steps)": 0.87910,
        },
        parameters=78_643_170,
        checked="parameter count",
    ),
    streams={
        "rgb": Stream(
            transforms=(partial(ReverseWhitening),),
            pool=partial(NeXtVLAD, clusters=112, groups=8, expansion=2),
        ),
        "audio": Stream(pool=partial(NeXtVLAD, clusters=56, groups=4, expansion=2)),
    },
    body=(*nextvlad.body[:-1], partial(SEGating, reduction=16)),
    training=replace(nextvlad.training, schedule=partial(Staircase, factor=0.8, every=2_500_000), epochs=15),
)
