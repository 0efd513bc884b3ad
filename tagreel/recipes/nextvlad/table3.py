"""NeXtVLAD with and without distillation among its branches, frame-level YouTube-8M (2018, 3,862 classes).

    tagreel train nextvlad-mix3-t0-120k --data 'train*.tfrecord' --validate 'validate*.tfrecord' \\
        --labels vocabulary.csv --set streams.rgb.transforms.0.eigenvalues=eigenvals.npy --out runs/mixture

Lin, Xiao, Fan, "NeXtVLAD: An Efficient Neural Network to Aggregate Frame-level Features for Large-scale Video
Classification", 2018, arXiv 1811.05014, table 3, on the authors' local validation set. Their gate read the
mean over features instead of over frames until a year later; ours the mean of the real frames. Not trained by
us at this size.
"""

from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.logistic import Logistic
from tagreel.layers.dropout import Dropout
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.mixture import Mixture
from tagreel.layers.projection import Projection
from tagreel.layers.reverse_whitening import ReverseWhitening
from tagreel.layers.se_gating import SEGating
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Staircase

_PAPER = "NeXtVLAD, arXiv 1811.05014"

nextvlad_mix3_t0_120k = Recipe(
    about=About(
        summary="Three NeXtVLAD branches under a gate, not distilled",
        paper=_PAPER,
        table="table 3",
        published={"GAP@20 (local validation, 120K steps)": 0.8798},
        parameters=235_935_273,
    ),
    features={"rgb": 1024, "audio": 128},
    classes=3862,
    streams={
        "rgb": Stream(
            transforms=(partial(ReverseWhitening),),
            pool=partial(NeXtVLAD, clusters=112, groups=8, expansion=2),
        ),
        "audio": Stream(pool=partial(NeXtVLAD, clusters=56, groups=4, expansion=2)),
    },
    body=(
        partial(Dropout, rate=0.5),
        partial(Projection, width=2048, bias=False),
        partial(MaskedBatchNorm),
        partial(SEGating, reduction=16),
    ),
    head=partial(Logistic, init="he"),
    loss=partial(CrossEntropy, epsilon=1e-8),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(Adam, lr=2e-4),
        schedule=partial(Staircase, factor=0.8, every=2_000_000),
        batch_size=160,
        steps=120_000,
        head_l2=1e-5,
    ),
    mixture=partial(Mixture, branches=3, temperature=0.0),
    batch_norm_momentum=0.001,
)

nextvlad_mix3_t3_120k = replace(
    nextvlad_mix3_t0_120k,
    about=replace(
        nextvlad_mix3_t0_120k.about,
        summary="Three NeXtVLAD branches under a gate, distilled at temperature 3",
        published={"GAP@20 (local validation, 120K steps)": 0.8788},
    ),
    mixture=partial(Mixture, branches=3, temperature=3.0),
)
