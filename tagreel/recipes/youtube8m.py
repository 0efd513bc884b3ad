"""Video-level YouTube-8M (2018, 3,862 classes) on a fraction of the data: our own settings.

Chosen on 28,792 training and 11,757 other videos of the official validate partition, results and commands in
docs/results.md, what did not help in docs/log.md. Not comparable with published figures.
"""

from dataclasses import replace
from functools import partial

from torch.optim import AdamW

from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts
from tagreel.layers.dropout import Dropout
from tagreel.layers.l2_norm import L2Norm
from tagreel.layers.neighbours import Neighbours
from tagreel.layers.residual_mlp import ResidualMLP
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.mean import Mean
from tagreel.recipe import About, Ensemble, Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine

youtube8m_video_mlp = Recipe(
    about=About(summary="Residual MLP on the mean features, each modality scaled to length one"),
    features={"mean_rgb": 1024, "mean_audio": 128},
    classes=3862,
    streams={
        "mean_rgb": Stream(transforms=(partial(L2Norm),), pool=partial(Mean)),
        "mean_audio": Stream(transforms=(partial(L2Norm),), pool=partial(Mean)),
    },
    body=(
        partial(Dropout, rate=0.4),
        partial(ResidualMLP, width=2048, blocks=1, dropout=0.5),
        partial(Dropout, rate=0.6),
    ),
    head=partial(Logistic, prior=1e-3),
    loss=partial(CrossEntropy),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(AdamW, lr=1e-3, weight_decay=0.05),
        schedule=partial(Cosine, warmup=5_000),
        batch_size=256,
        epochs=14,
        ema=0.995,
        precision="bfloat16",
    ),
)

_remembering = replace(
    youtube8m_video_mlp,
    about=About(summary="The residual MLP, asking its nearest training videos"),
    memory=partial(Neighbours),
)

# What greedy selection took of a pool of eight: benchmarks/systems.py.
youtube8m_system = Ensemble(
    about=About(summary="Two residual MLPs that ask their nearest training videos, and residual experts"),
    members={
        "mlp-1": _remembering,
        "mlp-2": _remembering,
        "experts": replace(
            youtube8m_video_mlp,
            about=About(summary="Four residual experts a class on the mean features"),
            body=(partial(Dropout, rate=0.3),),
            head=partial(MixtureOfResidualExperts, experts=4, hidden=512, prior=1e-3),
            training=replace(youtube8m_video_mlp.training, epochs=8),
        ),
    },
    storage="bfloat16",
)
