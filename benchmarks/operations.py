"""How many multiplications a video takes, counted from the layers' shapes: the base of docs/scale.md.

    python benchmarks/operations.py [RECIPE ...] [--frames 210]

Matrix products of one forward pass as the papers write the models, of 3,862 classes; softmax, norms and what
else goes element by element is left out. A training step is taken as three forward passes. No weights are
made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tagreel.layers import product
from tagreel.recipe import find
from tagreel.tagger import Tagger, build

RECIPES = (
    "nextvlad-g8-d05-k128",
    "willow-rel-gated-netvlad-256",
    "willow-rel-soft-dbow-8000",
    "willow-rel-gru-1200",
    "cmu-more28-lc-si",
)
WIDTHS = {"rgb": 1024, "mean_rgb": 1024, "audio": 128, "mean_audio": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument(
        "--frames", type=int, default=210, help="frames of a video; one of video-level models"
    )
    options = parser.parse_args()
    print(f"{'':30}{'parameters':>14}{'a frame':>13}{'a video':>14}{'GFLOP, forward':>16}{'step':>7}")
    for name in options.recipes:
        with torch.device("meta"):
            recipe = replace(find(name), classes=3862)
            model = build(recipe, features={name: WIDTHS[name] for name in recipe.features}).eval()
        parameters = sum(p.numel() for p in model.parameters())
        a_frame, a_video = count(model)
        frames = 1 if all(name.startswith("mean_") for name in model.features) else options.frames
        forward = 2 * (a_frame * frames + a_video) / 1e9
        print(f"{name:30}{parameters:>14,}{a_frame:>13,}{a_video:>14,}{forward:>16.2f}{3 * forward:>7.2f}")


def count(model: Tagger) -> tuple[int, int]:
    """Multiplications of every further frame, and of the video besides."""
    of_video = multiplications(lambda: model.classify(torch.zeros(1, model.descriptor_dim, device="meta")))
    # Recurrent pools look at the lengths; in evaluation some prepare their weights once a batch.
    model.streams.to_empty(device="cpu").train()

    def pool(frames: int) -> Tensor:
        streams = {name: torch.zeros(1, frames, width) for name, width in model.features.items()}
        masks = {name: torch.ones(1, frames, dtype=torch.bool) for name in streams}
        return model.pool(streams, masks)

    few, more = multiplications(lambda: pool(8)), multiplications(lambda: pool(16))
    a_frame = (more - few) // 8
    return a_frame, of_video + few - 8 * a_frame


def multiplications(run: Callable[[], Tensor]) -> int:
    # The counter knows PyTorch's own products only.
    own = mock.patch.object(product, "_has_wide_units", return_value=False)
    with torch.no_grad(), own, FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


if __name__ == "__main__":
    main()
