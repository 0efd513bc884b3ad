"""CMU Informedia's video-level models on YouTube-8M (2017, 4,716 classes).

    tagreel segments 'train*.tfrecord' --out thirds/train
    tagreel segments 'validate*.tfrecord' --out thirds/validate
    tagreel train cmu-mohce12-lc-si-da --data 'thirds/train/*' --validate 'thirds/validate/*' \\
        --labels vocabulary.csv --out runs/informedia

Huang, Yuan, Lan, Jiang, Hauptmann, "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408, table 1. "lc" adds latent concepts after ten
epochs; "si" weighs the video and its three temporal segments in prediction; "da" draws the video or one of
its segments in training, for twice the steps. Models without these two read video-level records as well.
Their code was never published: ReLU, where the residual sum lies and TensorFlow's batch norm are our choice;
with it MoRE24 and MoHCE12 have about as many parameters as each other, as the paper says. Not trained by us
at this size.
"""

from dataclasses import replace
from functools import partial

from torch.optim import Adagrad

from tagreel.heads.deep_mixture_of_experts import DeepMixtureOfExperts
from tagreel.heads.hypercolumn_experts import HypercolumnExperts
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts
from tagreel.inference import SegmentedInference
from tagreel.layers.l2_norm import L2Norm
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.mean import Mean
from tagreel.recipe import About, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomSegment
from tagreel.schedule import Staircase

_PAPER = "CMU Informedia, arXiv 1707.01408"


def _row(summary: str, parameters: int, gap: float, mean_ap: float, perr: float) -> About:
    published = {
        "GAP@20 (local validation)": gap,
        "mAP (local validation)": mean_ap,
        "PERR (local validation)": perr,
    }
    return About(
        summary=summary,
        paper=_PAPER,
        table="table 1",
        published=published,
        parameters=parameters,
    )


cmu_moe2 = Recipe(
    about=_row("2 experts a class on the mean features", 21_740_760, 0.7841, 0.4158, 0.709),
    features={"mean_rgb": 1024, "mean_audio": 128},
    classes=4716,
    streams={"mean_rgb": Stream(pool=partial(Mean)), "mean_audio": Stream(pool=partial(Mean))},
    # After the mean, so that the whole video is scaled as its segments are.
    body=(partial(L2Norm, parts=(1024, 128)),),
    head=partial(MixtureOfExperts, experts=2, null_expert=False),
    loss=partial(CrossEntropy),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(Adagrad, lr=2e-4, initial_accumulator_value=0.1),
        schedule=partial(Staircase, factor=0.8, every=8_000_000),
        batch_size=1024,
        steps=80_000,
        clip_norm=0.8,
    ),
    batch_norm_momentum=0.001,
)

_with_latent_concepts = replace(cmu_moe2.training, late_epochs=10)
_with_segments = replace(_with_latent_concepts, steps=160_000)

cmu_moe8 = replace(
    cmu_moe2,
    about=_row("8 experts a class on the mean features", 86_963_040, 0.7930, 0.4220, 0.719),
    head=partial(MixtureOfExperts, experts=8, null_expert=False),
)

cmu_deepmoe8 = replace(
    cmu_moe2,
    about=_row("8 experts a class on two hidden layers", 219_554_656, 0.7967, 0.4320, 0.725),
    head=partial(DeepMixtureOfExperts, experts=8),
)

cmu_more8 = replace(
    cmu_moe2,
    about=_row("8 residual experts a class", 219_554_656, 0.8115, 0.4449, 0.736),
    head=partial(MixtureOfResidualExperts, experts=8),
)

cmu_more16 = replace(
    cmu_moe2,
    about=_row("16 residual experts a class", 417_588_928, 0.8132, 0.4471, 0.738),
    head=partial(MixtureOfResidualExperts, experts=16),
)

cmu_more24 = replace(
    cmu_moe2,
    about=_row("24 residual experts a class", 615_623_200, 0.8161, 0.4730, 0.743),
    head=partial(MixtureOfResidualExperts, experts=24),
)

cmu_mohce12 = replace(
    cmu_moe2,
    about=_row("12 hypercolumn experts a class", 615_566_608, 0.8215, 0.4876, 0.746),
    head=partial(HypercolumnExperts, experts=12),
)

cmu_more24_lc = replace(
    cmu_more24,
    about=_row("24 residual experts a class, latent concepts", 676_528_480, 0.8237, 0.4963, 0.751),
    late=(partial(LatentConcepts),),
    training=_with_latent_concepts,
)

cmu_mohce12_lc = replace(
    cmu_mohce12,
    about=_row("12 hypercolumn experts a class, latent concepts", 676_471_888, 0.8242, 0.4739, 0.749),
    late=(partial(LatentConcepts),),
    training=_with_latent_concepts,
)

cmu_more24_lc_si = replace(
    cmu_more24_lc,
    about=_row(
        "24 residual experts a class, latent concepts, segmented inference",
        676_528_480,
        0.8256,
        0.4968,
        0.751,
    ),
    inference=partial(SegmentedInference),
)

cmu_more28_lc_si = replace(
    cmu_more24_lc_si,
    about=_row(
        "28 residual experts a class, latent concepts, segmented inference",
        775_545_616,
        0.8267,
        0.5004,
        0.753,
    ),
    head=partial(MixtureOfResidualExperts, experts=28),
)

cmu_mohce12_lc_si = replace(
    cmu_mohce12_lc,
    about=_row(
        "12 hypercolumn experts a class, latent concepts, segmented inference",
        676_471_888,
        0.8262,
        0.4789,
        0.751,
    ),
    inference=partial(SegmentedInference),
)

cmu_more28_lc_da = replace(
    cmu_more24_lc,
    about=_row(
        "28 residual experts a class, latent concepts, trained on segments",
        775_545_616,
        0.8278,
        0.5047,
        0.755,
    ),
    head=partial(MixtureOfResidualExperts, experts=28),
    sampling=partial(RandomSegment, segments=3),
    training=_with_segments,
)

cmu_more30_lc_da = replace(
    cmu_more28_lc_da,
    about=_row(
        "30 residual experts a class, latent concepts, trained on segments",
        825_054_184,
        0.8279,
        0.5074,
        0.756,
    ),
    head=partial(MixtureOfResidualExperts, experts=30),
)

cmu_more28_lc_si_da = replace(
    cmu_more28_lc_da,
    about=_row(
        "28 residual experts a class, latent concepts, segments in training and inference",
        775_545_616,
        0.8297,
        0.5089,
        0.756,
    ),
    inference=partial(SegmentedInference),
)

cmu_mohce12_lc_si_da = replace(
    cmu_mohce12_lc_si,
    about=_row(
        "12 hypercolumn experts a class, latent concepts, segments in training and inference",
        676_471_888,
        0.8328,
        0.5041,
        0.760,
    ),
    sampling=partial(RandomSegment, segments=3),
    training=_with_segments,
)
