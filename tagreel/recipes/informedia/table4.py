"""CMU Informedia's final ensemble on frame-level YouTube-8M (2017, 4,716 classes): 35 models, their weights.

    tagreel recipes show cmu-final
    tagreel train cmu-m34 --data 'train*.tfrecord' --validate 'validate*.tfrecord' \\
        --labels vocabulary.csv --out runs/cmu-m34

Huang, Yuan, Lan, Jiang, Hauptmann, "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408, table 4; first place of the 2017 challenge. The
weights are printed as whole numbers, 904 in all, of which the 19 video-level models have 487. Table 3 counts
34 models and table 4 lists 35; of the smaller ensembles the paper says how many members they have, not which.

The paper does not explain the names in the list. Read beside the rows of tables 1 and 2 with the same scores,
a NetVLAD has latent concepts where it is "deep", dropout of the representation where it is "dp", and a
representation as wide as the number above a thousand, of 2,400 without one; "ckpt" is a step of its training,
and its experts are always the eight residual ones. The video-level models that are in table 1, too, were
trained on segments with latent concepts, which we take all of them to be; the one with "concat" was scored by
segments as well. We guess that "l3" has a third hidden layer, and take rows that differ in "deep", "drop" or
"residual" and their number alone for runs of one model. All members read frames, so that one set of files
serves the whole; those at the video level have the same weights as in table 1, which reads stored means. Not
trained by us at this size.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch.optim import Adagrad

from tagreel.heads.hypercolumn_experts import HypercolumnExperts
from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts
from tagreel.inference import SegmentedInference
from tagreel.layers.dropout import Dropout
from tagreel.layers.l2_norm import L2Norm
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.layers.projection import Projection
from tagreel.layers.sparse_code import SparseCode
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.mean import Mean
from tagreel.pools.netvlad import NetVLAD
from tagreel.recipe import About, Ensemble, Recipe, Stream, Training
from tagreel.sampling import AllFrames, EvenlySpaced, RandomFraction, RandomSegment
from tagreel.schedule import Staircase

_PAPER = "CMU Informedia, arXiv 1707.01408"

_SCALED = partial(L2Norm, parts=(1024, 128))
_DROPPED = partial(Dropout, rate=0.2)


def _codes(clusters: int) -> Mapping[str, Stream]:
    transforms = (_SCALED, partial(SparseCode, width=4096))
    pool = partial(NetVLAD, clusters=clusters)
    return {"frames": Stream(inputs=("rgb", "audio"), transforms=transforms, pool=pool)}


def _about(summary: str, parameters: int) -> About:
    return About(summary=summary, paper=_PAPER, table="table 4", parameters=parameters)


def _row(model: Recipe, name: str, gap: float, mean_ap: float, perr: float) -> Recipe:
    """A model by its name in the paper, and what it reached."""
    published = {
        "GAP@20 (local validation)": gap,
        "mAP (local validation)": mean_ap,
        "PERR (local validation)": perr,
    }
    summary = f"{name}: {model.about.summary}"
    return replace(model, about=replace(model.about, summary=summary, published=published))


def _at(model: Recipe, steps: int) -> Recipe:
    return replace(model, training=replace(model.training, steps=steps))


_vlad8 = Recipe(
    about=_about("8 clusters, latent concepts", 416_094_224),
    features={"rgb": 1024, "audio": 128},
    classes=4716,
    streams=_codes(8),
    body=(partial(Projection, width=2400),),
    head=partial(MixtureOfResidualExperts, experts=8),
    late=(partial(LatentConcepts),),
    loss=partial(CrossEntropy),
    sampling=partial(RandomFraction, fraction=0.8, max_frames=180),
    evaluation_sampling=partial(EvenlySpaced, frames=180),
    training=Training(
        optimizer=partial(Adagrad, lr=2e-4, initial_accumulator_value=0.1),
        schedule=partial(Staircase, factor=0.8, every=8_000_000),
        batch_size=256,
        steps=360_000,
        clip_norm=0.8,
        late_epochs=10,
    ),
    batch_norm_momentum=0.001,
)

_vlad8_1600 = replace(
    _vlad8,
    about=_about("8 clusters, 1,600 wide, latent concepts", 356_419_824),
    body=(partial(Projection, width=1600),),
)

_vlad8_plain = replace(
    _vlad8,
    about=_about("8 clusters", 355_188_944),
    late=(),
    training=replace(_vlad8.training, late_epochs=0),
)

_vlad8_1200_plain = replace(
    _vlad8_plain,
    about=_about("8 clusters, 1,200 wide", 265_677_344),
    body=(partial(Projection, width=1200),),
)

_vlad4 = replace(_vlad8, about=_about("4 clusters, latent concepts", 376_739_848), streams=_codes(4))

_vlad4_dp = replace(
    _vlad4,
    about=_about("4 clusters, dropout, latent concepts", 376_739_848),
    body=(partial(Projection, width=2400), _DROPPED),
)

_vlad4_plain = replace(_vlad8_plain, about=_about("4 clusters", 315_834_568), streams=_codes(4))

_vlad2 = replace(_vlad8, about=_about("2 clusters, latent concepts", 357_062_660), streams=_codes(2))

_vlad2_dp = replace(
    _vlad4_dp,
    about=_about("2 clusters, dropout, latent concepts", 357_062_660),
    streams=_codes(2),
)

_vlad1_dp = replace(
    _vlad4_dp,
    about=_about("1 cluster, dropout, latent concepts", 347_224_066),
    streams=_codes(1),
)

_vlad1_4096 = replace(
    _vlad8,
    about=_about("1 cluster, 4,096 wide, latent concepts", 425_106_082),
    streams=_codes(1),
    body=(partial(Projection, width=4096),),
)

_vlad1_4096_dp = replace(
    _vlad1_4096,
    about=_about("1 cluster, 4,096 wide, dropout, latent concepts", 425_106_082),
    body=(partial(Projection, width=4096), _DROPPED),
)

_more30 = replace(
    _vlad8,
    about=_about("30 residual experts a class, latent concepts, trained on segments", 825_054_184),
    streams={"rgb": Stream(pool=partial(Mean)), "audio": Stream(pool=partial(Mean))},
    # After the mean, so that the whole video is scaled as its segments are.
    body=(_SCALED,),
    head=partial(MixtureOfResidualExperts, experts=30),
    sampling=partial(RandomSegment, segments=3),
    evaluation_sampling=partial(AllFrames),
    training=replace(_vlad8.training, batch_size=1024, steps=160_000),
)

_more30_l3 = replace(
    _more30,
    about=_about(
        "30 residual experts a class, 3 hidden layers, latent concepts, trained on segments", 841_843_688
    ),
    head=partial(MixtureOfResidualExperts, experts=30, blocks=2),
)

_more28 = replace(
    _more30,
    about=_about("28 residual experts a class, latent concepts, trained on segments", 775_545_616),
    head=partial(MixtureOfResidualExperts, experts=28),
)

_mohce16 = replace(
    _more30,
    about=_about("16 hypercolumn experts a class, latent concepts, trained on segments", 874_487_296),
    head=partial(HypercolumnExperts, experts=16),
)

_mohce12 = replace(
    _more30,
    about=_about(
        "12 hypercolumn experts a class, latent concepts, segments in training and inference", 676_471_888
    ),
    head=partial(HypercolumnExperts, experts=12),
    inference=partial(SegmentedInference),
)


cmu_m01 = _row(_at(_vlad8, 274_921), "NetVLAD8 180f MoRE8 2400 deep ckpt274921", 0.81294, 0.45541, 0.741)
cmu_m02 = _row(_at(_vlad8, 280_260), "NetVLAD8 180f MoRE8 2400 deep ckpt280260", 0.81194, 0.45564, 0.74)
cmu_m03 = _row(_at(_vlad8_1600, 265_814), "NetVLAD8 180f MoRE8 1600 deep ckpt265814", 0.81249, 0.46883, 0.741)
cmu_m04 = _row(_more30, "MoRE30 LC deep 1st", 0.82851, 0.50228, 0.756)
cmu_m05 = _row(_more30, "MoRE30 LC deep drop 1st", 0.82004, 0.49866, 0.751)
cmu_m06 = _row(_more28, "MoRE28 LC deep 1st", 0.80427, 0.48214, 0.737)
cmu_m07 = _row(_more30, "MoRE30 LC deep 2nd", 0.82868, 0.50522, 0.756)
cmu_m08 = _row(_vlad4, "NetVLAD4 180f MoRE8 2400 deep", 0.82164, 0.48077, 0.749)
cmu_m09 = _row(_more30, "MoRE30 LC deep drop 2nd", 0.82038, 0.50232, 0.752)
cmu_m10 = _row(_more30, "MoRE30 LC deep drop 3rd", 0.82786, 0.50744, 0.756)
cmu_m11 = _row(_mohce16, "MoHCE16 LC 1st", 0.82702, 0.48593, 0.753)
cmu_m12 = _row(_vlad2_dp, "NetVLAD2 180f MoRE8 2400 deep dp", 0.82066, 0.4838, 0.748)
cmu_m13 = _row(_more28, "MoRE28 LC deep 2nd", 0.81867, 0.48782, 0.748)
cmu_m14 = _row(_mohce16, "MoHCE16 LC 2nd", 0.81881, 0.47614, 0.746)
cmu_m15 = _row(_vlad8_plain, "NetVLAD8 180f MoRE8", 0.81827, 0.45308, 0.743)
cmu_m16 = _row(_more30, "MoRE30 LC deep 3rd", 0.81734, 0.49663, 0.748)
cmu_m17 = _row(_more30_l3, "MoRE30 LC deep l3 1st", 0.81104, 0.48789, 0.743)
cmu_m18 = _row(_more28, "MoRE28 LC deep 3rd", 0.82783, 0.50472, 0.755)
cmu_m19 = _row(_mohce12, "MoHCE12 concat deep LC", 0.83281, 0.50412, 0.76)
cmu_m20 = _row(_more28, "MoRE28 LC deep 4th", 0.82669, 0.50575, 0.755)
cmu_m21 = _row(_vlad8_1200_plain, "NetVLAD8 1200", 0.82005, 0.45612, 0.744)
cmu_m22 = _row(_at(_vlad4_dp, 304_488), "NetVLAD4 180f MoRE8 2400 deep dp ckpt304488", 0.8165, 0.47577, 0.745)
cmu_m23 = _row(_more28, "MoRE28 LC deep 5th", 0.81854, 0.5008, 0.749)
cmu_m24 = _row(_at(_vlad4_dp, 299_007), "NetVLAD4 180f MoRE8 2400 deep dp ckpt299007", 0.81604, 0.4761, 0.744)
cmu_m25 = _row(_vlad1_4096_dp, "NetVLAD1 180f MoRE8 4096 deep dp", 0.82318, 0.48627, 0.751)
cmu_m26 = _row(_vlad4_plain, "NetVLAD4 180f MoRE8 2400", 0.81971, 0.45607, 0.745)
cmu_m27 = _row(_more28, "MoRE28 LC deep 6th", 0.81669, 0.4951, 0.746)
cmu_m28 = _row(_vlad2, "NetVLAD2 180f MoRE8 2400 deep", 0.82102, 0.48281, 0.748)
cmu_m29 = _row(_more30_l3, "MoRE30 LC deep l3 2nd", 0.82476, 0.4981, 0.752)
cmu_m30 = _row(_vlad4_plain, "NetVLAD4 180f MoRE8", 0.81942, 0.4533, 0.744)
cmu_m31 = _row(_more28, "MoRE28 LC residual", 0.82753, 0.50314, 0.755)
cmu_m32 = _row(_vlad2_dp, "NetVLAD2 180f MoRE8 2400 deep dp (2nd)", 0.82108, 0.48327, 0.749)
cmu_m33 = _row(_vlad1_4096, "NetVLAD1 180f MoRE8 4096 deep", 0.82048, 0.48309, 0.747)
cmu_m34 = _row(_vlad1_dp, "NetVLAD1 180f MoRE8 2400 deep dp", 0.82472, 0.48387, 0.751)
cmu_m35 = _row(_more28, "MoRE28 LC deep 7th", 0.827, 0.50016, 0.754)

_MEMBERS = {
    "cmu-m01": (cmu_m01, 36),
    "cmu-m02": (cmu_m02, 35),
    "cmu-m03": (cmu_m03, 34),
    "cmu-m04": (cmu_m04, 31),
    "cmu-m05": (cmu_m05, 28),
    "cmu-m06": (cmu_m06, 28),
    "cmu-m07": (cmu_m07, 28),
    "cmu-m08": (cmu_m08, 27),
    "cmu-m09": (cmu_m09, 27),
    "cmu-m10": (cmu_m10, 27),
    "cmu-m11": (cmu_m11, 27),
    "cmu-m12": (cmu_m12, 26),
    "cmu-m13": (cmu_m13, 26),
    "cmu-m14": (cmu_m14, 26),
    "cmu-m15": (cmu_m15, 26),
    "cmu-m16": (cmu_m16, 25),
    "cmu-m17": (cmu_m17, 25),
    "cmu-m18": (cmu_m18, 25),
    "cmu-m19": (cmu_m19, 25),
    "cmu-m20": (cmu_m20, 25),
    "cmu-m21": (cmu_m21, 25),
    "cmu-m22": (cmu_m22, 24),
    "cmu-m23": (cmu_m23, 24),
    "cmu-m24": (cmu_m24, 24),
    "cmu-m25": (cmu_m25, 24),
    "cmu-m26": (cmu_m26, 24),
    "cmu-m27": (cmu_m27, 23),
    "cmu-m28": (cmu_m28, 23),
    "cmu-m29": (cmu_m29, 23),
    "cmu-m30": (cmu_m30, 23),
    "cmu-m31": (cmu_m31, 22),
    "cmu-m32": (cmu_m32, 22),
    "cmu-m33": (cmu_m33, 22),
    "cmu-m34": (cmu_m34, 22),
    "cmu-m35": (cmu_m35, 22),
}

cmu_final = Ensemble(
    about=About(
        summary="By the drop without each: first place of 2017",
        paper=_PAPER,
        table="table 4",
        published={
            "GAP@20 (test)": 0.84662,
            "GAP@20 (local validation)": 0.84675,
            "mAP (local validation)": 0.5401,
            "PERR (local validation)": 0.772,
        },
    ),
    members={name: member for name, (member, _) in _MEMBERS.items()},
    weights={name: weight for name, (_, weight) in _MEMBERS.items()},
)
