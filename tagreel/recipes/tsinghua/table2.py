"""Tsinghua's recurrent models, on both streams of frame-level YouTube-8M (2017, 4,716 classes).

    tagreel train thu-bilstm-moe --data 'train*.tfrecord' --validate 'validate*.tfrecord' \\
        --labels vocabulary.csv --out runs/thu

Zou, Xu, Li, Zhu, "The YouTube-8M Kaggle Competition: Challenges and Methods", 2017, arXiv 1706.09274, table
2; tenth place of the 2017 challenge. Rows without "full" read one frame in five from a random start, one of
ten in training and of five in prediction. The first four rows were trained on the train partition, the others
on validate too. What the paper leaves open follows the authors' code, github.com/taufikxu/youtube: two layers
of 1,024, or of 1,024 and 768 with layer norm, and gradients clipped at 10. Its crops of picture and sound
start apart (`--set sampling.aligned=false`), ours together; its readout at the thirds takes the last one
twice and the first never, and from the forward direction alone. An ensemble is the mean of predictions, one a
crop, each cut to its 20 best tags; the paper does not list the 36, but 5 cropped models × 7 starts and one on
all frames make as many. Not trained by us at this size.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.inference import MultiCrop
from tagreel.layers.l2_norm import L2Norm
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.late_fusion_lstm import LateFusionLSTM
from tagreel.pools.layer_norm_lstm import LayerNormLSTM
from tagreel.pools.lstm import LSTM
from tagreel.pools.mean import Mean
from tagreel.recipe import About, Ensemble, Part, Recipe, Stream, Training
from tagreel.sampling import AllFrames, Crop
from tagreel.schedule import Staircase

_PAPER = "Tsinghua, arXiv 1706.09274"


def _both(pool: Part) -> Mapping[str, Stream]:
    """One pool for the frames of both streams, side by side."""
    return {"frames": Stream(inputs=("rgb", "audio"), pool=pool)}


def _published(public: float, private: float) -> Mapping[str, float]:
    return {"GAP@20 (Kaggle public)": public, "GAP@20 (Kaggle private)": private}


thu_prototype_full = Recipe(
    about=About(
        summary="LSTM, 2 layers of 1,024, on all frames; two experts a class",
        paper=_PAPER,
        table="table 2",
        published=_published(0.80224, 0.80207),
        parameters=41_465_048,
    ),
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    joint_l2_norm=True,
    streams=_both(partial(LSTM, units=(1024, 1024))),
    head=partial(MixtureOfExperts, experts=2),
    loss=partial(CrossEntropy, epsilon=1e-5),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(Adam, lr=1e-3),
        schedule=partial(Staircase, factor=0.95, every=4_000_000),
        batch_size=128,
        epochs=5,
        clip_norm=10.0,
        head_l2=1e-8,
    ),
)

thu_baseline_mean_lr = replace(
    thu_prototype_full,
    about=About(
        summary="Logistic regression on the mean features: the competition's benchmark",
        paper=_PAPER,
        table="table 2",
        published=_published(0.74711, 0.74714),
        parameters=5_437_548,
    ),
    features={"mean_rgb": 1024, "mean_audio": 128},
    streams={"mean_rgb": Stream(pool=partial(Mean)), "mean_audio": Stream(pool=partial(Mean))},
    head=partial(Logistic),
    training=Training(
        optimizer=partial(Adam, lr=0.01),
        schedule=partial(Staircase, factor=0.95, every=4_000_000),
        batch_size=1024,
        epochs=5,
        head_l2=1e-8,
    ),
)

thu_prototype_full_visual = replace(
    thu_prototype_full,
    about=About(
        summary="LSTM, 2 layers of 1,024, on all frames of the picture alone; two experts a class",
        paper=_PAPER,
        table="table 2",
        published=_published(0.78105, 0.78143),
        parameters=40_940_760,
    ),
    features={"rgb": 1024},
    streams={"rgb": Stream(pool=partial(LSTM, units=(1024, 1024)))},
)

thu_prototype_crop = replace(
    thu_prototype_full,
    about=About(
        summary="LSTM, 2 layers of 1,024, on random crops; two experts a class",
        paper=_PAPER,
        table="table 2",
        published=_published(0.80204, 0.80190),
        parameters=41_465_048,
    ),
    sampling=partial(Crop, starts=10),
    evaluation_sampling=partial(Crop, starts=5),
)

thu_bilstm_lr_ln = replace(
    thu_prototype_crop,
    about=About(
        summary="Bidirectional LSTM with layer norm, 1,024 and 768; logistic regression",
        paper=_PAPER,
        table="table 2",
        published=_published(0.80761, 0.80736),
        parameters=42_411_628,
    ),
    streams=_both(partial(LayerNormLSTM, units=(1024, 768), bidirectional=True)),
    head=partial(Logistic),
    training=replace(thu_prototype_crop.training, epochs=2.7),
)

thu_bilstm_moe = replace(
    thu_prototype_crop,
    about=About(
        summary="Bidirectional LSTM, 2 layers of 1,024; two experts a class",
        paper=_PAPER,
        table="table 2",
        published=_published(0.81055, 0.81067),
        parameters=91_309_272,
    ),
    streams=_both(partial(LSTM, units=(1024, 1024), bidirectional=True)),
)

thu_bilstm_moe_attn = replace(
    thu_bilstm_moe,
    about=About(
        summary="Bidirectional LSTM read out at each third of the video; two experts a class",
        paper=_PAPER,
        table="table 2",
        published=_published(0.81232, 0.81227),
        parameters=91_309_272,
    ),
    streams=_both(partial(LSTM, units=(1024, 1024), bidirectional=True, readout="thirds")),
)

thu_bilstm_moe_full = replace(
    thu_bilstm_moe,
    about=About(
        summary="Bidirectional LSTM, 2 layers of 1,024, on all frames: the paper's best single model",
        paper=_PAPER,
        table="table 2",
        published=_published(0.81401, 0.81399),
        parameters=91_309_272,
    ),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
)

thu_lstm_lr_ln = replace(
    thu_prototype_crop,
    about=About(
        summary="LSTM with layer norm, 2 layers of 1,024; logistic regression: one of the ensemble",
        paper=_PAPER,
        table="section on the ensemble",
        parameters=22_155_884,
    ),
    streams=_both(partial(LayerNormLSTM, units=(1024, 1024))),
    head=partial(Logistic),
)

thu_lstm_late_lr = replace(
    thu_prototype_crop,
    about=About(
        summary="An LSTM for the picture and one for the sound, joined by a third; logistic regression",
        paper=_PAPER,
        table="section on the ensemble",
        parameters=24_429_412,
    ),
    joint_l2_norm=False,
    streams={
        "frames": Stream(
            inputs=("rgb", "audio"),
            transforms=(partial(L2Norm, parts=(1024, 128)),),
            pool=partial(LateFusionLSTM, parts=(1024, 128), units=(512, 150), fused_units=1200),
        )
    },
    head=partial(Logistic),
)


def _crops(model: Recipe, starts: int) -> Recipe:
    return replace(model, inference=partial(MultiCrop, starts=starts))


# One crop of all frames: cut to its best tags, as each of the others is.
_uncropped = replace(thu_bilstm_moe_full, inference=partial(MultiCrop, starts=1, stride=1, frames=300))

thu_ens16 = Ensemble(
    about=About(
        summary="16 predictions: 3 cropped models from 5 starts each, one on all frames",
        paper=_PAPER,
        table="table 2",
        published=_published(0.83477, 0.83470),
    ),
    members={
        "thu-bilstm-lr-ln": _crops(thu_bilstm_lr_ln, 5),
        "thu-bilstm-moe": _crops(thu_bilstm_moe, 5),
        "thu-bilstm-moe-attn": _crops(thu_bilstm_moe_attn, 5),
        "thu-bilstm-moe-full": _uncropped,
    },
    weights={
        "thu-bilstm-lr-ln": 5,
        "thu-bilstm-moe": 5,
        "thu-bilstm-moe-attn": 5,
        "thu-bilstm-moe-full": 1,
    },
)

thu_ens36 = Ensemble(
    about=About(
        summary="36 predictions: 5 cropped models from 7 starts each, one on all frames; tenth place of 2017",
        paper=_PAPER,
        table="table 2",
        published=_published(0.83670, 0.83662),
    ),
    members={
        "thu-bilstm-lr-ln": _crops(thu_bilstm_lr_ln, 7),
        "thu-bilstm-moe": _crops(thu_bilstm_moe, 7),
        "thu-bilstm-moe-attn": _crops(thu_bilstm_moe_attn, 7),
        "thu-lstm-lr-ln": _crops(thu_lstm_lr_ln, 7),
        "thu-lstm-late-lr": _crops(thu_lstm_late_lr, 7),
        "thu-bilstm-moe-full": _uncropped,
    },
    weights={
        "thu-bilstm-lr-ln": 7,
        "thu-bilstm-moe": 7,
        "thu-bilstm-moe-attn": 7,
        "thu-lstm-lr-ln": 7,
        "thu-lstm-late-lr": 7,
        "thu-bilstm-moe-full": 1,
    },
)
