"""Every pool with the same body, head, training and number of parameters: which one reads frames best?

    python benchmarks/pooling.py --data 'bal_train*' --validate 'eval-0000[01]*' --out runs/pooling
    python benchmarks/pooling.py --data 'tagreel-demo/data/train*' --validate 'tagreel-demo/data/test*' \\
        --out runs/pooling-planted

The first is AudioSet (one stream of ten frames), the second the planted set of `tagreel demo` (two streams of
20 to 60 frames), where fusion can be compared too; which of them it is, the first record tells.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from comparison import Row, arguments, at_budget, compare
from torch.optim import AdamW

from tagreel.heads.logistic import Logistic
from tagreel.layers.compact_bilinear import CompactBilinear
from tagreel.layers.context_gating import ContextGating
from tagreel.layers.dropout import Dropout
from tagreel.layers.gated_linear_unit import GatedLinearUnit
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.layers.outer_product import OuterProduct
from tagreel.layers.probability_gating import ProbabilityGating
from tagreel.layers.residual_mlp import ResidualMLP
from tagreel.losses.cross_entropy import CrossEntropy
from tagreel.pools.attention import Attention
from tagreel.pools.batch_norm_lstm import BatchNormLSTM
from tagreel.pools.deep_bag_of_frames import DeepBagOfFrames
from tagreel.pools.gated_bag_of_words import GatedBagOfWords
from tagreel.pools.gem import GeM
from tagreel.pools.gru import GRU
from tagreel.pools.late_fusion_lstm import LateFusionLSTM
from tagreel.pools.layer_norm_lstm import LayerNormLSTM
from tagreel.pools.lstm import LSTM
from tagreel.pools.max import Max
from tagreel.pools.mean import Mean
from tagreel.pools.multi_head_attention import MultiHeadAttention
from tagreel.pools.netfv import NetFV
from tagreel.pools.netrvlad import NetRVLAD
from tagreel.pools.netvlad import NetVLAD
from tagreel.pools.netvlagd import NetVLAGD
from tagreel.pools.nextvlad import NeXtVLAD
from tagreel.pools.non_local_netrvlad import NonLocalNetRVLAD
from tagreel.pools.non_local_netvlad import NonLocalNetVLAD
from tagreel.pools.soft_bag_of_words import SoftBagOfWords
from tagreel.pools.std import Std
from tagreel.pools.transformer import Transformer
from tagreel.pools.zoneout_lstm import ZoneoutLSTM
from tagreel.recipe import Part, Recipe, Stream, Training
from tagreel.sampling import AllFrames, ShuffledFrames
from tagreel.schedule import Cosine
from tagreel.source import Source

POOLS: dict[str, tuple[str, Part]] = {
    "mean": ("statistics", partial(Mean)),
    "std": ("statistics", partial(Std)),
    "max": ("statistics", partial(Max)),
    "gem": ("statistics", partial(GeM)),
    "soft-bow-512": ("words", partial(SoftBagOfWords, clusters=512)),
    "gated-bow-512": ("words", partial(GatedBagOfWords, clusters=512)),
    "dbof-1024": ("words", partial(DeepBagOfFrames, clusters=1024)),
    "netvlad-16": ("clusters", partial(NetVLAD, clusters=16)),
    "netvlad-64": ("clusters", partial(NetVLAD, clusters=64)),
    "netvlad-128": ("clusters", partial(NetVLAD, clusters=128)),
    "netrvlad-64": ("clusters", partial(NetRVLAD, clusters=64)),
    "netvlagd-64": ("clusters", partial(NetVLAGD, clusters=64)),
    "netfv-32": ("clusters", partial(NetFV, clusters=32)),
    "nextvlad-64": ("clusters", partial(NeXtVLAD, clusters=64, groups=4, expansion=4)),
    "nl-netvlad-64": ("clusters", partial(NonLocalNetVLAD, clusters=64)),
    "nl-netrvlad-64": ("clusters", partial(NonLocalNetRVLAD, clusters=64)),
    "attention": ("attention", partial(Attention)),
    "multi-head-16": ("attention", partial(MultiHeadAttention, heads=16, width=1024)),
    "transformer": ("attention", partial(Transformer, dropout=0.1)),
    "transformer-positions": ("attention", partial(Transformer, dropout=0.1, positions=True)),
    "lstm-256": ("recurrent", partial(LSTM, units=(256, 256))),
    "gru-256": ("recurrent", partial(GRU, units=(256, 256))),
    "bilstm-192": ("recurrent", partial(LSTM, units=(192, 192), bidirectional=True)),
    "lstm-256-thirds": ("recurrent", partial(LSTM, units=(256, 256), readout="thirds")),
    "lstm-256-attention": ("recurrent", partial(LSTM, units=(256, 256), readout="attention")),
    "ln-lstm-256": ("recurrent", partial(LayerNormLSTM, units=(256, 256))),
    "bn-lstm-256": ("recurrent", partial(BatchNormLSTM, units=(256, 256))),
    "zoneout-lstm-256": ("recurrent", partial(ZoneoutLSTM, units=(256, 256))),
    "fusion-lstm-256": ("recurrent", partial(LateFusionLSTM, units=(192, 96), fused_units=256)),
}


def recipe(features: dict[str, int], classes: int, streams: dict[str, Stream], **changes: Any) -> Recipe:
    """What all rows share: body, head, loss and training."""
    settings: dict[str, Any] = {
        "features": features,
        "classes": classes,
        "streams": streams,
        "body": (partial(Dropout, rate=0.3), partial(ResidualMLP, width=512, blocks=1, dropout=0.4)),
        "head": partial(Logistic, prior=5e-3),
        "loss": partial(CrossEntropy),
        "sampling": partial(AllFrames),
        "evaluation_sampling": partial(AllFrames),
        "training": Training(
            optimizer=partial(AdamW, lr=2e-3, weight_decay=0.05),
            schedule=partial(Cosine, warmup=5_000),
            batch_size=512,
            epochs=6,
            mixup=1.0,
            ema=0.98,
            precision="bfloat16",
            best_by="map",
        ),
    }
    return Recipe(**(settings | changes))


def rows(features: dict[str, int], classes: int, *, parameters: int) -> dict[str, Row]:
    """The table: every pool on each feature by itself, then one thing changed at a time."""

    def late(pool: Part) -> dict[str, Stream]:
        return {name: Stream(transforms=(partial(MaskedBatchNorm),), pool=pool) for name in features}

    def early(pool: Part) -> dict[str, Stream]:
        stream = Stream(inputs=tuple(features), transforms=(partial(MaskedBatchNorm),), pool=pool)
        return {"all": stream}

    def made(group: str, streams: dict[str, Stream], **changes: Any) -> Row:
        return Row(group, recipe(features, classes, streams, **changes))

    found = {name: made(group, late(pool)) for name, (group, pool) in POOLS.items()}
    netvlad, gru = POOLS["netvlad-64"][1], POOLS["gru-256"][1]
    body = found["netvlad-64"].recipe.body
    found |= {
        "netvlad-64-glu": made("gating", late(netvlad), body=(*body, partial(GatedLinearUnit))),
        "netvlad-64-cg": made("gating", late(netvlad), body=(*body, partial(ContextGating))),
        "netvlad-64-cg-cg": made(
            "gating",
            late(netvlad),
            body=(*body, partial(ContextGating)),
            output=(partial(ProbabilityGating),),
        ),
    }
    shuffled = {"sampling": partial(ShuffledFrames), "evaluation_sampling": partial(ShuffledFrames)}
    found["gru-256-shuffled"] = made("recurrent", late(gru), **shuffled)
    if len(features) > 1:
        small = late(partial(MultiHeadAttention, heads=8, width=64))
        found |= {
            "netvlad-64-early": made("fusion", early(netvlad)),
            "gru-256-early": made("fusion", early(gru)),
            "multi-head-64": made("fusion", small),
            "multi-head-64-outer": made("fusion", small, join=partial(OuterProduct)),
            "multi-head-64-bilinear": made("fusion", small, join=partial(CompactBilinear, width=2048)),
        }
    return {name: replace(row, recipe=at_budget(row.recipe, parameters)) for name, row in found.items()}


def main() -> None:
    """Train, print, draw."""
    options = arguments(__doc__.splitlines()[0], out="pooling")
    source = Source(options.data)
    streams = {name: frames.shape[1] for name, frames in source.first().streams.items()}
    planted = len(streams) > 1
    chosen = rows(streams, 120 if planted else 527, parameters=2_000_000)
    compare(chosen, options)


if __name__ == "__main__":
    main()
