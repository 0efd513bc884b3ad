"""CMU Informedia's table 1 made small: flat, deep and residual experts, with and without latent concepts.

    python benchmarks/heads.py --data yt8m2_validate_train_u8.npz --validate yt8m2_validate_dev_u8.npz \\
        --out runs/heads --by gap@20

Video-level YouTube-8M, its 1,000 most frequent classes alone. Hidden layers and latent concepts are 512 wide
instead of 4,096, and AdamW trains for six epochs where the paper has 80,000 steps of Adagrad, so that a row
takes minutes on one core.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from comparison import Row, arguments, compare
from torch.optim import AdamW

from tagreel.heads.deep_mixture_of_experts import DeepMixtureOfExperts
from tagreel.heads.hypercolumn_experts import HypercolumnExperts
from tagreel.heads.logistic import Logistic
from tagreel.heads.mixture_of_experts import MixtureOfExperts
from tagreel.heads.mixture_of_residual_experts import MixtureOfResidualExperts
from tagreel.layers.l2_norm import L2Norm
from tagreel.layers.latent_concepts import LatentConcepts
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.mean import Mean
from tagreel.recipe import Part, Recipe, Stream, Training
from tagreel.sampling import AllFrames
from tagreel.schedule import Cosine

CLASSES = 1000
PRIOR = 3e-3
EPOCHS = 6
LATE_EPOCHS = 3

HEADS: dict[str, tuple[str, Part]] = {
    "logistic": ("flat", partial(Logistic, prior=PRIOR)),
    "moe2": ("flat", partial(MixtureOfExperts, experts=2, null_expert=False, prior=PRIOR)),
    "moe4": ("flat", partial(MixtureOfExperts, experts=4, null_expert=False, prior=PRIOR)),
    "deepmoe4": ("deep", partial(DeepMixtureOfExperts, experts=4, hidden=512, prior=PRIOR)),
    "more4": ("residual", partial(MixtureOfResidualExperts, experts=4, hidden=512, prior=PRIOR)),
    "mohce2": ("hypercolumn", partial(HypercolumnExperts, experts=2, hidden=512, prior=PRIOR)),
}

CONCEPTS = partial(LatentConcepts, concepts=512, output="classwise")

PLAIN = Recipe(
    features={"mean_rgb": 1024, "mean_audio": 128},
    classes=CLASSES,
    streams={"mean_rgb": Stream(pool=partial(Mean)), "mean_audio": Stream(pool=partial(Mean))},
    body=(partial(L2Norm, parts=(1024, 128)),),
    head=HEADS["logistic"][1],
    loss=partial(CrossEntropy),
    sampling=partial(AllFrames),
    evaluation_sampling=partial(AllFrames),
    training=Training(
        optimizer=partial(AdamW, lr=2e-3, weight_decay=0.02),
        schedule=partial(Cosine, warmup=3_000),
        batch_size=256,
        epochs=EPOCHS,
        precision="bfloat16",
    ),
)


def rows() -> dict[str, Row]:
    """Each head alone and with latent concepts joining late, two with them from the start as well."""
    found = {}
    late = replace(PLAIN.training, late_epochs=LATE_EPOCHS)
    for name, (group, head) in HEADS.items():
        found[name] = Row(group, replace(PLAIN, head=head))
        found[f"{name}-lc"] = Row(group, replace(PLAIN, head=head, late=(CONCEPTS,), training=late))
    for name in ("more4", "mohce2"):
        group, head = HEADS[name]
        found[f"{name}-lc-start"] = Row(group, replace(PLAIN, head=head, late=(CONCEPTS,)))
    eight = partial(MixtureOfExperts, experts=8, null_expert=False, prior=PRIOR)
    found["moe8"] = Row("flat", replace(PLAIN, head=eight))
    return found


def frequent(path: str, ranking: np.ndarray, out: Path) -> str:
    """A copy of an archive with the labels of the given classes alone, renumbered by their rank."""
    target = out / Path(path).name
    if target.exists():
        return str(target)
    out.mkdir(parents=True, exist_ok=True)
    arrays = dict(np.load(path))
    rank = np.full(1 << 16, -1)
    rank[ranking] = np.arange(len(ranking))
    video = np.repeat(np.arange(len(arrays["id"])), np.diff(arrays["label_offsets"]))
    labels = rank[arrays["labels"]]
    kept = labels >= 0
    counts = np.bincount(video[kept], minlength=len(arrays["id"]))
    arrays |= {"labels": labels[kept], "label_offsets": np.concatenate([[0], np.cumsum(counts)])}
    np.savez(target, **arrays)
    return str(target)


def main() -> None:
    """Train, print, draw."""
    options = arguments(__doc__.splitlines()[0], out="heads")
    (data,), (validation,) = options.data, options.validate
    ranking = np.argsort(-np.bincount(np.load(data)["labels"]), kind="stable")[:CLASSES]
    options.data = [frequent(data, ranking, options.out / "data")]
    options.validate = [frequent(validation, ranking, options.out / "data")]
    compare(rows(), options)


if __name__ == "__main__":
    main()
