"""Your own catalogue: frames as `tagreel extract` makes them, of any width, any number of tags.

NetVLAD with few clusters, which was ahead both on real and on planted frames (docs/results/pooling.md),
between a batch norm that takes features of any scale and a residual layer. A video may lack a stream. The
length suits some hundred videos; train on a hundred thousand with --epochs 3. Without mixup, which left the
probabilities of a small set too low to show (docs/log.md).
"""

from dataclasses import replace
from functools import partial

from torch.optim import AdamW

from tagreel.heads.logistic import Logistic
from tagreel.layers.dropout import Dropout
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.residual_mlp import ResidualMLP
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine

_READ = Stream(
    transforms=(partial(MaskedBatchNorm), partial(Dropout, rate=0.1)), pool=partial(NetVLAD, clusters=16)
)

own = Recipe(
    about=About(summary="Your own videos, picture and sound; either may be missing in some"),
    features={"rgb": None, "audio": None},
    optional=("rgb", "audio"),
    streams={"rgb": _READ, "audio": _READ},
    body=(partial(Dropout, rate=0.5), partial(ResidualMLP, width=512, blocks=1, dropout=0.5)),
    head=partial(Logistic, prior=5e-3),
    loss=partial(CrossEntropy),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(AdamW, lr=1e-3, weight_decay=0.05),
        schedule=partial(Cosine, warmup=300),
        batch_size=16,
        epochs=40,
        ema=0.98,
    ),
)

own_rgb = replace(
    own,
    about=About(summary="Your own videos, pictures alone"),
    features={"rgb": None},
    optional=(),
    streams={"rgb": _READ},
)

own_audio = replace(
    own,
    about=About(summary="Your own recordings, sound alone"),
    features={"audio": None},
    optional=(),
    streams={"audio": _READ},
)
