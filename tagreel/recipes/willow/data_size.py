"""Willow's study of how much data a model needs (2017, 4,716 classes).

    tagreel reproduce willow-datasize --data 'train*.tfrecord' --validate 'validatea*.tfrecord' \\
        --labels vocabulary.csv --out runs/willow-datasize --scale paper

Miech, Laptev, Sivic, "Learnable pooling with Context Gating for video classification", 2017, arXiv
1706.06905, section 5.6 and figure 4, which shows the scores and has no numbers: four models, each trained on
three disjoint random sets of 70,000, 150,000, 380,000 and 1,150,000 videos. The paper says how large the
models are, about 40 million parameters the LSTM, 160 NetVLAD and 180 with gates: 128 clusters, and an LSTM
of whose states the experts read the last output alone. It does not say how long they were trained; 20 epochs
of the largest set are as many steps as a model of table 1 takes. Not trained by us at this size.
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
from tagreel.pools.lstm import LSTM
from tagreel.pools.mean import Mean
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Staircase

_PAPER = "Willow, arXiv 1706.06905"


def _about(summary: str, parameters: int) -> About:
    return About(summary=summary, paper=_PAPER, table="section 5.6", parameters=parameters)


_netvlad = Recipe(
    about=_about("NetVLAD, 128 clusters", 167_043_928),
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
        epochs=20,
        head_l2=1e-6,
    ),
    batch_norm_momentum=0.001,
)

_gated_netvlad = replace(
    _netvlad,
    about=_about("NetVLAD, 128 clusters, Context Gating after pooling and after the experts", 190_344_640),
    body=(*_netvlad.body, partial(ContextGating)),
    output=(partial(ProbabilityGating),),
)

_lstm = replace(
    _netvlad,
    about=_about("LSTM, 2 layers of 1,024, on 150 random frames", 41_465_048),
    streams={
        "frames": Stream(inputs=("rgb", "audio"), pool=partial(LSTM, units=(1024, 1024), readout="last"))
    },
    body=(),
    sampling=partial(RandomFrames, frames=150),
    evaluation_sampling=partial(RandomFrames, frames=150),
    training=replace(
        _netvlad.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        batch_size=128,
        head_l2=1e-8,
    ),
)

_avg = replace(
    _netvlad,
    about=_about("The mean frame, two experts a class, Context Gating after them", 49_423_680),
    streams={"rgb": Stream(pool=partial(Mean)), "audio": Stream(pool=partial(Mean))},
    body=(),
    output=(partial(ProbabilityGating),),
    sampling=partial(AllFrames),
)


def _on(model: Recipe, size: int, number: int) -> Recipe:
    """The model, trained on that one of the disjoint sets of so many videos."""
    summary = f"{model.about.summary}; on set {number} of {size:,} videos"
    return replace(
        model,
        about=replace(model.about, summary=summary),
        training=replace(model.training, subset=(size, number)),
    )


willow_datasize_gated_netvlad_70k_s1 = _on(_gated_netvlad, 70_000, 1)
willow_datasize_gated_netvlad_70k_s2 = _on(_gated_netvlad, 70_000, 2)
willow_datasize_gated_netvlad_70k_s3 = _on(_gated_netvlad, 70_000, 3)
willow_datasize_gated_netvlad_150k_s1 = _on(_gated_netvlad, 150_000, 1)
willow_datasize_gated_netvlad_150k_s2 = _on(_gated_netvlad, 150_000, 2)
willow_datasize_gated_netvlad_150k_s3 = _on(_gated_netvlad, 150_000, 3)
willow_datasize_gated_netvlad_380k_s1 = _on(_gated_netvlad, 380_000, 1)
willow_datasize_gated_netvlad_380k_s2 = _on(_gated_netvlad, 380_000, 2)
willow_datasize_gated_netvlad_380k_s3 = _on(_gated_netvlad, 380_000, 3)
willow_datasize_gated_netvlad_1150k_s1 = _on(_gated_netvlad, 1_150_000, 1)
willow_datasize_gated_netvlad_1150k_s2 = _on(_gated_netvlad, 1_150_000, 2)
willow_datasize_gated_netvlad_1150k_s3 = _on(_gated_netvlad, 1_150_000, 3)

willow_datasize_netvlad_70k_s1 = _on(_netvlad, 70_000, 1)
willow_datasize_netvlad_70k_s2 = _on(_netvlad, 70_000, 2)
willow_datasize_netvlad_70k_s3 = _on(_netvlad, 70_000, 3)
willow_datasize_netvlad_150k_s1 = _on(_netvlad, 150_000, 1)
willow_datasize_netvlad_150k_s2 = _on(_netvlad, 150_000, 2)
willow_datasize_netvlad_150k_s3 = _on(_netvlad, 150_000, 3)
willow_datasize_netvlad_380k_s1 = _on(_netvlad, 380_000, 1)
willow_datasize_netvlad_380k_s2 = _on(_netvlad, 380_000, 2)
willow_datasize_netvlad_380k_s3 = _on(_netvlad, 380_000, 3)
willow_datasize_netvlad_1150k_s1 = _on(_netvlad, 1_150_000, 1)
willow_datasize_netvlad_1150k_s2 = _on(_netvlad, 1_150_000, 2)
willow_datasize_netvlad_1150k_s3 = _on(_netvlad, 1_150_000, 3)

willow_datasize_lstm_70k_s1 = _on(_lstm, 70_000, 1)
willow_datasize_lstm_70k_s2 = _on(_lstm, 70_000, 2)
willow_datasize_lstm_70k_s3 = _on(_lstm, 70_000, 3)
willow_datasize_lstm_150k_s1 = _on(_lstm, 150_000, 1)
willow_datasize_lstm_150k_s2 = _on(_lstm, 150_000, 2)
willow_datasize_lstm_150k_s3 = _on(_lstm, 150_000, 3)
willow_datasize_lstm_380k_s1 = _on(_lstm, 380_000, 1)
willow_datasize_lstm_380k_s2 = _on(_lstm, 380_000, 2)
willow_datasize_lstm_380k_s3 = _on(_lstm, 380_000, 3)
willow_datasize_lstm_1150k_s1 = _on(_lstm, 1_150_000, 1)
willow_datasize_lstm_1150k_s2 = _on(_lstm, 1_150_000, 2)
willow_datasize_lstm_1150k_s3 = _on(_lstm, 1_150_000, 3)

willow_datasize_avg_70k_s1 = _on(_avg, 70_000, 1)
willow_datasize_avg_70k_s2 = _on(_avg, 70_000, 2)
willow_datasize_avg_70k_s3 = _on(_avg, 70_000, 3)
willow_datasize_avg_150k_s1 = _on(_avg, 150_000, 1)
willow_datasize_avg_150k_s2 = _on(_avg, 150_000, 2)
willow_datasize_avg_150k_s3 = _on(_avg, 150_000, 3)
willow_datasize_avg_380k_s1 = _on(_avg, 380_000, 1)
willow_datasize_avg_380k_s2 = _on(_avg, 380_000, 2)
willow_datasize_avg_380k_s3 = _on(_avg, 380_000, 3)
willow_datasize_avg_1150k_s1 = _on(_avg, 1_150_000, 1)
willow_datasize_avg_1150k_s2 = _on(_avg, 1_150_000, 2)
willow_datasize_avg_1150k_s3 = _on(_avg, 1_150_000, 3)
