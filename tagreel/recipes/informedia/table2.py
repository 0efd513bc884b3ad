"""CMU Informedia's frame-level models, on frame-level YouTube-8M (2017, 4,716 classes).

    tagreel train cmu-netvlad-k1-lc --data 'train*.tfrecord' --validate 'validate*.tfrecord' \\
        --labels vocabulary.csv --out runs/cmu

Huang, Yuan, Lan, Jiang, Hauptmann, "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408, table 2; first place of the 2017 challenge. Picture
and sound lie side by side in a frame, each of length one; a video gives 80 % of its frames, 180 at most; a
sparse code of a frame is 4,096 wide, a representation 2,400. Their code was never published; our choices are
two layers in a recurrent model, two experts a class behind all but NetVLAD, 180 frames evenly spaced in
evaluation, NetVLAD's usual normalisations, 8 clusters where the row does not say, latent concepts after ten
epochs as at the video level, and dropout of the representation, but not where the row's model in the list of
the final ensemble lacks the "dp". Not trained by us at this size.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch.optim import Adagrad

from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts
from tagreel.layers.dropout import Dropout
from tagreel.layers.l2_norm import L2Norm
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.layers.projection import Projection
from tagreel.layers.sparse_code import SparseCode
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.attention import Attention
from tagreel.pools.batch_norm_lstm import BatchNormLSTM
from tagreel.pools.lstm import LSTM
from tagreel.pools.mean import Mean
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.zoneout_lstm import ZoneoutLSTM
from tagreel.recipe import About, Part, Recipe, Stream, Training
from tagreel.sampling import EvenlySpaced, RandomFraction
from tagreel.schedule import Staircase

_PAPER = "CMU Informedia, arXiv 1707.01408"

_SCALED = partial(L2Norm, parts=(1024, 128))
_COMPRESSED = partial(Projection, width=2400)
_DROPPED = partial(Dropout, rate=0.2)


def _frames(pool: Part) -> Mapping[str, Stream]:
    return {"frames": Stream(inputs=("rgb", "audio"), transforms=(_SCALED,), pool=pool)}


def _codes(pool: Part) -> Mapping[str, Stream]:
    transforms = (_SCALED, partial(SparseCode, width=4096))
    return {"frames": Stream(inputs=("rgb", "audio"), transforms=transforms, pool=pool)}


def _row(summary: str, parameters: int, gap: float, mean_ap: float, perr: float) -> About:
    published = {
        "GAP@20 (local validation)": gap,
        "mAP (local validation)": mean_ap,
        "PERR (local validation)": perr,
    }
    return About(
        summary=summary,
        paper=_PAPER,
        table="table 2",
        published=published,
        parameters=parameters,
    )


cmu_lstm = Recipe(
    about=_row("LSTM, 2 layers of 2,400; two experts a class", 125_481_432, 0.7943, 0.3743, 0.722),
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    streams=_frames(partial(LSTM, units=(2400, 2400))),
    body=(_DROPPED,),
    head=partial(MixtureOfExperts, experts=2, null_expert=False),
    loss=partial(CrossEntropy),
    sampling=partial(RandomFraction, fraction=0.8, max_frames=180),
    evaluation_sampling=partial(EvenlySpaced, frames=180),
    training=Training(
        optimizer=partial(Adagrad, lr=2e-4, initial_accumulator_value=0.1),
        schedule=partial(Staircase, factor=0.8, every=8_000_000),
        batch_size=256,
        steps=360_000,
        clip_norm=0.8,
    ),
    batch_norm_momentum=0.001,
)

cmu_bilstm = replace(
    cmu_lstm,
    about=_row(
        "Bidirectional LSTM, 2 layers of 2,400; two experts a class", 297_033_432, 0.7998, 0.3851, 0.725
    ),
    streams=_frames(partial(LSTM, units=(2400, 2400), bidirectional=True)),
)

cmu_lstm_zoneout = replace(
    cmu_lstm,
    about=_row(
        "LSTM with zoneout, 2 layers of 2,400; two experts a class", 125_481_432, 0.8015, 0.4027, 0.724
    ),
    streams=_frames(partial(ZoneoutLSTM, units=(2400, 2400))),
)

cmu_lstm_bn = replace(
    cmu_lstm,
    about=_row(
        "LSTM with batch norm, 2 layers of 2,400; two experts a class", 125_529_432, 0.8003, 0.4021, 0.724
    ),
    streams=_frames(partial(BatchNormLSTM, units=(2400, 2400))),
)

cmu_lstm_attn = replace(
    cmu_lstm,
    about=_row(
        "LSTM, attention over the outputs of all frames; two experts a class",
        125_483_832,
        0.8010,
        0.4033,
        0.732,
    ),
    streams=_frames(partial(LSTM, units=(2400, 2400), readout="attention")),
)

cmu_dbow = replace(
    cmu_lstm,
    about=_row(
        "Deep bag of words: the mean of sparse codes; two experts a class", 59_842_616, 0.7834, 0.3697, 0.709
    ),
    streams=_codes(partial(Mean)),
    body=(_COMPRESSED, _DROPPED),
)

cmu_dbow_attn = replace(
    cmu_dbow,
    about=_row(
        "Deep bag of words with attention in place of the mean; two experts a class",
        59_846_712,
        0.7989,
        0.4094,
        0.725,
    ),
    streams=_codes(partial(Attention)),
)

cmu_vlad_more8 = replace(
    cmu_dbow,
    about=_row(
        "NetVLAD of sparse codes, 8 clusters; 8 residual experts a class", 355_188_944, 0.8171, 0.4618, 0.741
    ),
    streams=_codes(partial(NetVLAD, clusters=8)),
    body=(_COMPRESSED,),
    head=partial(MixtureOfResidualExperts, experts=8),
)

cmu_netvlad_k8_lc = replace(
    cmu_vlad_more8,
    about=_row(
        "NetVLAD of sparse codes, 8 clusters; 8 residual experts a class; latent concepts",
        416_094_224,
        0.8129,
        0.4554,
        0.741,
    ),
    late=(partial(LatentConcepts),),
    training=replace(cmu_vlad_more8.training, late_epochs=10),
)

cmu_netvlad_k4_lc = replace(
    cmu_netvlad_k8_lc,
    about=_row(
        "NetVLAD of sparse codes, 4 clusters; 8 residual experts a class; latent concepts",
        376_739_848,
        0.8165,
        0.4761,
        0.744,
    ),
    streams=_codes(partial(NetVLAD, clusters=4)),
    body=(_COMPRESSED, _DROPPED),
)

cmu_netvlad_k2_lc = replace(
    cmu_netvlad_k4_lc,
    about=_row(
        "NetVLAD of sparse codes, 2 clusters; 8 residual experts a class; latent concepts",
        357_062_660,
        0.8211,
        0.4833,
        0.749,
    ),
    streams=_codes(partial(NetVLAD, clusters=2)),
)

cmu_netvlad_k1_lc = replace(
    cmu_netvlad_k4_lc,
    about=_row(
        "The centred sum of sparse codes; 8 residual experts a class; latent concepts: the best row",
        347_224_066,
        0.8247,
        0.4837,
        0.751,
    ),
    streams=_codes(partial(NetVLAD, clusters=1)),
)
