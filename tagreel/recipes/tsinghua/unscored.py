"""What the Tsinghua team tried on frame-level YouTube-8M (2017, 4,716 classes) and gave no score for.

Zou, Xu, Li, Zhu, "The YouTube-8M Kaggle Competition: Challenges and Methods", 2017, arXiv 1706.09274, tenth
place; code github.com/taufikxu/youtube. Not trained by us at this size, and by them not to the end.

Separated tasks: an encoder and a logistic head for each of the vocabulary's 25 verticals, the wider the more
classes it has. The numbers of classes are those of 2017; the file says which classes they are:

    tagreel train thu-separated-tasks-25 --data 'train*.tfrecord' --set head.vocabulary=vocabulary.csv \\
        --out runs/tasks

A loss without easy negatives, in the two variants of their code, on their prototype; the score got worse.

Unsupervised pretraining, to predict in every frame the sound, or picture and sound, from the picture; then a
tagger that reads the picture begins with those layers (the same with thu-ae-visual-to-both and
`--target rgb --target audio`):

    tagreel pretrain thu-ae-visual-to-audio --data 'train*.tfrecord' --target audio --out runs/pretrained \\
        --epochs 6 --set training.optimizer.lr=0.05 --set training.schedule.every=3000000 \\
        --set sampling.starts=5 --set sampling.frames=60
    tagreel train thu-ae-visual-to-audio --data 'train*.tfrecord' --start-from runs/pretrained \\
        --out runs/tagger

Their code ends in a layer as wide as the target, forwards plus backwards, or in a linear one; ours is linear.
It reads picture and sound where it predicts both; ours the picture alone, as in the paper. They describe no
tagger: ours has the prototype's experts on the last states. A frame is scaled to length one, picture and
sound together, so the tagger too wants both in its data.
"""

from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.heads.separated_tasks import SeparatedTasks
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.losses.ignore_easy_negatives import IgnoreEasyNegatives
from tagreel.pools.layer_norm_lstm import LayerNormLSTM
from tagreel.pools.lstm import LSTM
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import Crop
from tagreel.schedule import Staircase

_PAPER = "Tsinghua, arXiv 1706.09274"


_CLASSES = {
    "unknown": 204,
    "arts_entertainment": 711,
    "autos_vehicles": 500,
    "beauty_fitness": 100,
    "books_literature": 43,
    "business_industrial": 296,
    "computers_electronics": 340,
    "finance": 14,
    "food_drink": 325,
    "games": 896,
    "health": 16,
    "hobbies_leisure": 152,
    "home_garden": 135,
    "internet_telecom": 34,
    "jobs_education": 17,
    "law_government": 46,
    "news": 21,
    "people_society": 62,
    "pets_animals": 178,
    "real_estate": 8,
    "reference": 58,
    "science": 154,
    "shopping": 137,
    "sports": 207,
    "travel": 62,
}
# As in their code, where 0.7 · 340 is 237 for the rounding.
_UNITS = {vertical: max(80, int(0.7 * classes)) for vertical, classes in _CLASSES.items()}

_prototype = Recipe(
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    joint_l2_norm=True,
    streams={
        "frames": Stream(inputs=("rgb", "audio"), pool=partial(LSTM, units=(1024, 1024), readout="last"))
    },
    head=partial(MixtureOfExperts, experts=2),
    loss=partial(CrossEntropy, epsilon=1e-5),
    sampling=partial(Crop, starts=10, stride=5, frames=45),
    evaluation_sampling=partial(Crop, starts=5, stride=5, frames=45),
    training=Training(
        optimizer=partial(Adam, lr=1e-3),
        schedule=partial(Staircase, factor=0.95, every=4_000_000),
        batch_size=128,
        epochs=5,
        clip_norm=10.0,
        head_l2=1e-8,
    ),
)

thu_separated_tasks_25 = replace(
    _prototype,
    about=About(
        summary="Separated tasks: a bidirectional LSTM with layer norm for each of 25 verticals",
        paper=_PAPER,
        table="separated tasks",
        parameters=47_843_402,
    ),
    streams={
        vertical: Stream(
            inputs=("rgb", "audio"), pool=partial(LayerNormLSTM, units=(units,), bidirectional=True)
        )
        for vertical, units in _UNITS.items()
    },
    head=partial(
        SeparatedTasks,
        widths=tuple(2 * units for units in _UNITS.values()),
        classes_per_task=tuple(_CLASSES.values()),
    ),
    sampling=partial(Crop, starts=12, stride=12, frames=25),
    evaluation_sampling=partial(Crop, starts=12, stride=12, frames=25),
    training=replace(_prototype.training, optimizer=partial(Adam, lr=9e-4), batch_size=45),
)

thu_loss_ignore_easy_negatives = replace(
    _prototype,
    about=About(
        summary="LSTM prototype; negatives below 0.15 are left out of the loss",
        paper=_PAPER,
        table="loss manipulation",
        parameters=41_465_048,
    ),
    loss=partial(IgnoreEasyNegatives, threshold=0.15),
)

thu_loss_ignore_easy_negatives_02 = replace(
    thu_loss_ignore_easy_negatives,
    about=replace(
        thu_loss_ignore_easy_negatives.about,
        summary="LSTM prototype; negatives up to 0.2 are left out of the loss (the code's other variant)",
    ),
    loss=partial(IgnoreEasyNegatives, threshold=0.2),
)

thu_ae_visual_to_audio = replace(
    _prototype,
    about=About(
        summary="Bidirectional LSTM, 3 layers of 800, on the picture; pretrained to predict the sound",
        paper=_PAPER,
        table="unsupervised learning",
        parameters=80_150_232,
    ),
    streams={"rgb": Stream(pool=partial(LSTM, units=(800, 800, 800), bidirectional=True))},
)

thu_ae_visual_to_both = replace(
    thu_ae_visual_to_audio,
    about=About(
        summary="Bidirectional LSTM, 3 layers of 500, on the picture; pretrained to predict both",
        paper=_PAPER,
        table="unsupervised learning",
        parameters=41_697_432,
    ),
    streams={"rgb": Stream(pool=partial(LSTM, units=(500, 500, 500), bidirectional=True))},
)
