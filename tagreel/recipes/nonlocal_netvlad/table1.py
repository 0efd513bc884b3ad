"""Six models of frame-level YouTube-8M (2018, 3,862 classes), and the ensembles that were made of them.

    tagreel train nlvlad-lfnl-netvlad --data 'train*.tfrecord' --validate 'validate*.tfrecord' \\
        --labels vocabulary.csv --out runs/nlvlad

Tang, Zhang, Wang, Chen, Ma, Jiang, "Non-local NetVLAD Encoding for Video Classification", 2018, arXiv
1810.00207, tables 1 to 4 of its slides, and code github.com/17Skye17/2nd-YouTube8M; fourth place of the 2018
challenge with all six. "lf" fuses picture and sound late, "ef" early. What the slides leave open or say
otherwise is as in the code, with which the published sizes come out: the scales of the attention, φ in the
place of g in two models, a GRU of 1,200 units, 4,000 and 8,000 words. The authors' frames are random in
evaluation as well; ours are all, but in the final ensembles, which repeat the draw. The higher published
score of each model is that of its averaged checkpoints, as are the "avg" ones: average them with `tagreel
average`. Members of an ensemble weigh alike. Not trained by us at this size.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch.optim import Adam

from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.inference import RepeatedSampling
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.probability_gating import ProbabilityGating
from tagreel.layers.projection import Projection
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.gru import GRU
from tagreel.pools.non_local_netrvlad import NonLocalNetRVLAD
from tagreel.pools.non_local_netvlad import NonLocalNetVLAD
from tagreel.pools.soft_bag_of_words import SoftBagOfWords
from tagreel.recipe import About, Ensemble, Recipe, Stream, Training
from tagreel.sampling import AllFrames, RandomFrames
from tagreel.schedule import Staircase

_PAPER = "Non-local NetVLAD, arXiv 1810.00207"

_SINGLE = "GAP@20 (validation)"
_AVERAGED = "GAP@20 (validation, averaged checkpoints)"
_PUBLIC = "GAP@20 (Kaggle public)"
_PRIVATE = "GAP@20 (Kaggle private)"

nlvlad_lfnl_netvlad = Recipe(
    about=About(
        summary="Late-fusion non-local NetVLAD, 64 clusters, 8 experts",
        paper=_PAPER,
        table="slides, table 1",
        published={_SINGLE: 0.8703, _AVERAGED: 0.8716},
        parameters=154_958_464,
    ),
    features={"rgb": 1024, "audio": 128},
    classes=3862,
    joint_l2_norm=True,
    streams={
        "rgb": Stream(
            transforms=(partial(MaskedBatchNorm),),
            pool=partial(NonLocalNetVLAD, clusters=64, inner=64, scale=1 / 64),
        ),
        "audio": Stream(
            transforms=(partial(MaskedBatchNorm),),
            pool=partial(NonLocalNetVLAD, clusters=32, inner=32, scale=1 / 64),
        ),
    },
    body=(partial(Projection, width=1024, std=1 / math.sqrt(64)), partial(ContextGating)),
    head=partial(MixtureOfExperts, experts=8),
    output=(partial(ProbabilityGating),),
    loss=partial(CrossEntropy, epsilon=1e-5),
    sampling=partial(RandomFrames, frames=300),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(Adam, lr=2e-4),
        schedule=partial(Staircase, factor=0.8, every=4_000_000),
        batch_size=80,
        epochs=5,
        head_l2=1e-8,
    ),
    batch_norm_momentum=0.001,
)

nlvlad_lfnl_netrvlad = replace(
    nlvlad_lfnl_netvlad,
    about=About(
        summary="Late-fusion non-local NetRVLAD, 64 clusters, 4 experts",
        paper=_PAPER,
        table="slides, table 1",
        published={_SINGLE: 0.8687, _AVERAGED: 0.8704},
        parameters=125_087_272,
    ),
    streams={
        "rgb": Stream(
            transforms=(partial(MaskedBatchNorm),),
            pool=partial(NonLocalNetRVLAD, clusters=64, inner=512, reuse_phi=True),
        ),
        "audio": Stream(
            transforms=(partial(MaskedBatchNorm),),
            pool=partial(NonLocalNetRVLAD, clusters=32, inner=64, reuse_phi=True),
        ),
    },
    head=partial(MixtureOfExperts, experts=4),
)

nlvlad_efnl_netvlad = replace(
    nlvlad_lfnl_netvlad,
    about=About(
        summary="Early-fusion non-local NetVLAD, 64 clusters, 2 experts",
        paper=_PAPER,
        table="slides, table 1",
        published={_SINGLE: 0.8674, _AVERAGED: 0.8704},
        parameters=111_697_852,
    ),
    streams={
        "frames": Stream(
            inputs=("rgb", "audio"),
            transforms=(partial(MaskedBatchNorm),),
            pool=partial(NonLocalNetVLAD, clusters=64, inner=64, reuse_phi=True),
        )
    },
    head=partial(MixtureOfExperts, experts=2),
)

nlvlad_softbof_4k = replace(
    nlvlad_lfnl_netvlad,
    about=About(
        summary="Soft bag of 4,000 words, 2 experts, no gating",
        paper=_PAPER,
        table="slides, table 1",
        published={_SINGLE: 0.8525, _AVERAGED: 0.8574},
        parameters=28_561_492,
    ),
    streams={
        "rgb": Stream(transforms=(partial(MaskedBatchNorm),), pool=partial(SoftBagOfWords, clusters=4000)),
        "audio": Stream(transforms=(partial(MaskedBatchNorm),), pool=partial(SoftBagOfWords, clusters=500)),
    },
    body=(partial(Projection, width=1024, std=1 / math.sqrt(4000)),),
    head=partial(MixtureOfExperts, experts=2),
    output=(),
    training=replace(nlvlad_lfnl_netvlad.training, schedule=partial(Staircase, factor=0.9, every=4_000_000)),
)

nlvlad_softbof_8k = replace(
    nlvlad_softbof_4k,
    about=About(
        summary="Soft bag of 8,000 words, 2 experts, no gating",
        paper=_PAPER,
        table="slides, table 1",
        published={_SINGLE: 0.8512, _AVERAGED: 0.8563},
        parameters=37_338_492,
    ),
    streams={
        "rgb": Stream(transforms=(partial(MaskedBatchNorm),), pool=partial(SoftBagOfWords, clusters=8000)),
        "audio": Stream(transforms=(partial(MaskedBatchNorm),), pool=partial(SoftBagOfWords, clusters=1000)),
    },
    body=(partial(Projection, width=1024, std=1 / math.sqrt(8000)),),
)

nlvlad_gru = replace(
    nlvlad_lfnl_netvlad,
    about=About(
        summary="Two layers of GRU, 1,200 units each, their last states to 2 experts",
        paper=_PAPER,
        table="slides, table 1",
        published={_SINGLE: 0.8568, _AVERAGED: 0.8612},
        parameters=63_466_124,
    ),
    streams={
        "frames": Stream(inputs=("rgb", "audio"), pool=partial(GRU, units=(1200, 1200), readout="states"))
    },
    body=(),
    head=partial(MixtureOfExperts, experts=2),
    output=(),
    sampling=partial(AllFrames),
    training=replace(
        nlvlad_lfnl_netvlad.training,
        schedule=partial(Staircase, factor=0.9, every=4_000_000),
        batch_size=128,
    ),
)


def _averaged(model: Recipe) -> Recipe:
    about = replace(
        model.about,
        summary=f"{model.about.summary}; averaged checkpoints",
        table="slides, table 2",
        published={_AVERAGED: model.about.published[_AVERAGED]},
    )
    return replace(model, about=about)


nlvlad_lfnl_netvlad_avg = _averaged(nlvlad_lfnl_netvlad)
nlvlad_lfnl_netrvlad_avg = _averaged(nlvlad_lfnl_netrvlad)
nlvlad_efnl_netvlad_avg = _averaged(nlvlad_efnl_netvlad)
nlvlad_softbof_4k_avg = _averaged(nlvlad_softbof_4k)
nlvlad_softbof_8k_avg = _averaged(nlvlad_softbof_8k)
nlvlad_gru_avg = _averaged(nlvlad_gru)

_SIX = {
    "nlvlad-lfnl-netvlad-avg": nlvlad_lfnl_netvlad_avg,
    "nlvlad-lfnl-netrvlad-avg": nlvlad_lfnl_netrvlad_avg,
    "nlvlad-efnl-netvlad-avg": nlvlad_efnl_netvlad_avg,
    "nlvlad-softbof-4k-avg": nlvlad_softbof_4k_avg,
    "nlvlad-softbof-8k-avg": nlvlad_softbof_8k_avg,
    "nlvlad-gru-avg": nlvlad_gru_avg,
}


def _ensemble(summary: str, published: Mapping[str, float], *numbers: int) -> Ensemble:
    """Models by their numbers in the slides, as table 3 joins them."""
    numbered = list(_SIX.items())
    return Ensemble(
        about=About(summary=summary, paper=_PAPER, table="slides, table 3", published=published),
        members=dict(numbered[number - 1] for number in numbers),
    )


nlvlad_ens_14 = _ensemble("NetVLAD and 4,000 words", {_SINGLE: 0.8752}, 1, 4)
nlvlad_ens_12 = _ensemble("NetVLAD and NetRVLAD", {_SINGLE: 0.8778}, 1, 2)
nlvlad_ens_16 = _ensemble("NetVLAD and GRU", {_SINGLE: 0.8782, _PUBLIC: 0.8790}, 1, 6)
nlvlad_ens_146 = _ensemble("NetVLAD, 4,000 words and GRU", {_SINGLE: 0.8800}, 1, 4, 6)
nlvlad_ens_1246 = _ensemble("NetVLAD, NetRVLAD, 4,000 words and GRU", {_SINGLE: 0.8820}, 1, 2, 4, 6)
nlvlad_ens_12346 = _ensemble(
    "NetVLAD early and late, NetRVLAD, 4,000 words and GRU",
    {_SINGLE: 0.8839, _PUBLIC: 0.88678},
    1,
    2,
    3,
    4,
    6,
)
nlvlad_ens_123456 = _ensemble(
    "NetVLAD early and late, NetRVLAD, 4,000 and 8,000 words and GRU", {_SINGLE: 0.8842}, 1, 2, 3, 4, 5, 6
)


def _repeated(times: int) -> Mapping[str, Recipe]:
    """The six on as many draws of the frames; the GRU sees all of them in order, and once will do."""
    drawn = {
        name: replace(
            model,
            evaluation_sampling=partial(RandomFrames, frames=300),
            inference=partial(RepeatedSampling, times=times),
        )
        for name, model in _SIX.items()
    }
    return {**drawn, "nlvlad-gru-avg": nlvlad_gru_avg}


nlvlad_final_r1 = Ensemble(
    about=About(
        summary="All of the slides, on 300 random frames, in bfloat16",
        paper=_PAPER,
        table="slides, table 4",
        published={_SINGLE: 0.8842},
    ),
    members=_repeated(1),
    storage="bfloat16",
)

nlvlad_final_r5 = replace(
    nlvlad_final_r1,
    about=replace(
        nlvlad_final_r1.about,
        summary="All of the slides, on 5 draws of 300 frames, in bfloat16",
        published={_SINGLE: 0.8846, _PUBLIC: 0.88756},
    ),
    members=_repeated(5),
)

nlvlad_final_r10 = replace(
    nlvlad_final_r1,
    about=replace(
        nlvlad_final_r1.about,
        summary="All of the slides, on 10 draws of 300 frames, in bfloat16: fourth place of 2018",
        published={_SINGLE: 0.8847, _PUBLIC: 0.88763, _PRIVATE: 0.88704},
    ),
    members=_repeated(10),
)
