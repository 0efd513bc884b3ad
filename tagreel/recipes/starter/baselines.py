"""The YouTube-8M starter code's video-level baselines (github.com/google/youtube-8m, Apache-2.0).

    tagreel train starter-moe-video --data 'train*.tfrecord' --validate 'validate*.tfrecord' --out runs/moe

Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark", 2016, arXiv 1609.08675.
"""

from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.mean import Mean
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Staircase

starter_logistic_video = Recipe(
    about=About(summary="Logistic regression on the mean features", paper="arXiv 1609.08675, starter code"),
    features={"mean_rgb": 1024, "mean_audio": 128},
    classes=3862,
    streams={"mean_rgb": Stream(pool=partial(Mean)), "mean_audio": Stream(pool=partial(Mean))},
    joint_l2_norm=True,
    head=partial(Logistic),
    loss=partial(CrossEntropy, epsilon=1e-5),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(Adam, lr=0.01),
        schedule=partial(Staircase, factor=0.95, every=4_000_000),
        batch_size=1024,
        epochs=5,
        head_l2=1e-8,
    ),
    batch_norm_momentum=0.001,
)

starter_moe_video = replace(
    starter_logistic_video,
    about=About(summary="Two experts a class on the mean features", paper="arXiv 1609.08675, starter code"),
    head=partial(MixtureOfExperts, experts=2),
)
