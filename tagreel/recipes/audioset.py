"""AudioSet's balanced training set, 22,160 clips of ten VGGish frames, 527 classes: our own settings.

Chosen on the first half of the evaluation set; results and commands in docs/results.md, what did not help in
docs/log.md.
"""

from dataclasses import replace
from functools import partial

from torch.optim import AdamW

from tagreel.heads.logistic import Logistic
from tagreel.layers.dropout import Dropout
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.neighbours import Neighbours
from tagreel.layers.residual_mlp import ResidualMLP
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.gem import GeM
from tagreel.pools.mean import Mean
from tagreel.pools.multi_head_attention import MultiHeadAttention
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.pools.std import Std
from tagreel.pools.transformer import Transformer
from tagreel.recipe import About, Ensemble, Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine

_FRAMES = ("audio_embedding",)

audioset_mean_std = Recipe(
    about=About(summary="Mean and deviation of the frames, then a residual MLP"),
    features={"audio_embedding": 128},
    classes=527,
    streams={
        "mean": Stream(inputs=_FRAMES, pool=partial(Mean)),
        "std": Stream(inputs=_FRAMES, pool=partial(Std)),
    },
    body=(partial(ResidualMLP, width=1024, blocks=1, dropout=0.4),),
    head=partial(Logistic, prior=5e-3),
    loss=partial(CrossEntropy),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(AdamW, lr=1e-3, weight_decay=0.05),
        schedule=partial(Cosine, warmup=5_000),
        batch_size=256,
        epochs=12,
        mixup=1.0,
        ema=0.995,
        precision="bfloat16",
        best_by="map",
    ),
)

audioset_netvlad = replace(
    audioset_mean_std,
    about=About(summary="NetVLAD, 64 clusters, then a residual MLP"),
    streams={"netvlad": Stream(inputs=_FRAMES, pool=partial(NetVLAD, clusters=64))},
    body=(
        partial(Dropout, rate=0.5),
        partial(ResidualMLP, width=1024, blocks=1, dropout=0.5),
        partial(Dropout, rate=0.3),
    ),
)

audioset_nextvlad = replace(
    audioset_netvlad,
    about=About(summary="NeXtVLAD beside mean and deviation, then a residual MLP"),
    streams={
        **audioset_mean_std.streams,
        "nextvlad": Stream(
            inputs=_FRAMES,
            transforms=(partial(MaskedBatchNorm), partial(Dropout, rate=0.1)),
            pool=partial(NeXtVLAD, clusters=64, groups=4, expansion=4),
        ),
    },
)

# Pools that none of the five papers has.

audioset_attention = replace(
    audioset_netvlad,
    about=About(summary="Attention with 16 learned queries beside mean and deviation: light and fast"),
    streams={
        **audioset_mean_std.streams,
        "attention": Stream(
            inputs=_FRAMES,
            transforms=(partial(MaskedBatchNorm), partial(Dropout, rate=0.1)),
            pool=partial(MultiHeadAttention, heads=16, width=2048),
        ),
    },
)

audioset_transformer = replace(
    audioset_netvlad,
    about=About(summary="One transformer layer over the frames, its mean beside the deviation"),
    streams={
        "transformer": Stream(
            inputs=_FRAMES,
            transforms=(partial(MaskedBatchNorm),),
            pool=partial(Transformer, dropout=0.1, positions=True),
        ),
        "std": audioset_mean_std.streams["std"],
    },
)

audioset_gem = replace(
    audioset_netvlad,
    about=About(summary="Generalised means of the frames with learned powers, beside the deviation"),
    streams={
        "gem": Stream(inputs=_FRAMES, pool=partial(GeM)),
        "std": audioset_mean_std.streams["std"],
    },
)

# What greedy selection took of a pool of eight: benchmarks/systems.py.
audioset_system = Ensemble(
    about=About(summary="Attention that asks its nearest training clips, and NeXtVLAD"),
    members={
        "attention": replace(audioset_attention, memory=partial(Neighbours)),
        "nextvlad": audioset_nextvlad,
    },
    storage="bfloat16",
)
