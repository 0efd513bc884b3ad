"""The planted data set: what `tagreel demo` trains, and the tests."""

from functools import partial

from torch.optim import AdamW

from tagreel.heads.logistic import Logistic
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.dropout import Dropout
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine

smoke = Recipe(
    about=About(summary="NeXtVLAD on both streams of the planted set, small enough for any laptop"),
    features={"rgb": 64, "audio": 32},
    classes=120,
    streams={
        "rgb": Stream(pool=partial(NeXtVLAD, clusters=32, groups=4)),
        "audio": Stream(pool=partial(NeXtVLAD, clusters=32, groups=2)),
    },
    body=(
        partial(Dropout, rate=0.5),
        partial(Projection, width=128),
        partial(ContextGating),
    ),
    head=partial(Logistic),
    loss=partial(CrossEntropy),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(AdamW, lr=4e-3, weight_decay=0.3),
        schedule=partial(Cosine, warmup=500),
        batch_size=64,
        epochs=6,
        ema=0.99,
    ),
)
