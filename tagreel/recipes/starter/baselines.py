"""The YouTube-8M starter code's baselines (github.com/google/youtube-8m, Apache-2.0; 3,862 classes).

    tagreel train starter-moe-video --data 'train*.tfrecord' --validate 'validate*.tfrecord' --out runs/moe

Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark", 2016, arXiv 1609.08675. The
first two read video-level features, the others frames. The deep bag of frames has the ReLU6 of the code of
2017 and 2018, which became a sigmoid in 2019.
"""

import math
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.projection import Projection
from tagreel.layers.rectifier import Rectifier
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.deep_bag_of_frames import DeepBagOfFrames
from tagreel.pools.lstm import LSTM
from tagreel.pools.mean import Mean
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames, EvenlySpaced, RandomFrames
from tagreel.schedule import Staircase

_PAPER = "YouTube-8M starter code, arXiv 1609.08675"

starter_logistic_video = Recipe(
    about=About(
        summary="Logistic regression on the mean features",
        paper=_PAPER,
        table="starter code",
        parameters=4_452_886,
    ),
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
    about=About(
        summary="Two experts a class on the mean features",
        paper=_PAPER,
        table="starter code",
        parameters=22_252_844,
    ),
    head=partial(MixtureOfExperts, experts=2),
)

starter_frame_logistic = replace(
    starter_logistic_video,
    about=About(
        summary="Logistic regression on the mean of the frames",
        paper=_PAPER,
        table="section 5.1.1",
        parameters=4_452_886,
    ),
    features={"rgb": 1024, "audio": 128},
    streams={"rgb": Stream(pool=partial(Mean)), "audio": Stream(pool=partial(Mean))},
)

starter_dbof = replace(
    starter_frame_logistic,
    about=About(
        summary="Deep bag of frames, 8,192 clusters, maximum over 30 random frames",
        paper=_PAPER,
        table="section 5.1.2",
        parameters=37_627_692,
    ),
    streams={
        "frames": Stream(
            inputs=("rgb", "audio"),
            transforms=(partial(MaskedBatchNorm),),
            pool=partial(DeepBagOfFrames, clusters=8192, pooling="max"),
        )
    },
    body=(
        partial(Projection, width=1024, bias=False, std=1 / math.sqrt(8192)),
        partial(MaskedBatchNorm),
        partial(Rectifier, ceiling=6.0),
    ),
    head=partial(MixtureOfExperts, experts=2),
    sampling=partial(RandomFrames, frames=30),
    # As many as in training, for the maximum grows with the number of frames.
    evaluation_sampling=partial(EvenlySpaced, frames=30),
)

starter_lstm = replace(
    starter_frame_logistic,
    about=About(
        summary="LSTM, 2 layers of 1,024, two experts a class on its last output",
        paper=_PAPER,
        table="section 5.1.3",
        parameters=37_090_860,
    ),
    streams={
        "frames": Stream(inputs=("rgb", "audio"), pool=partial(LSTM, units=(1024, 1024), readout="last"))
    },
    head=partial(MixtureOfExperts, experts=2),
    training=replace(starter_logistic_video.training, optimizer=partial(Adam, lr=0.001)),
)
