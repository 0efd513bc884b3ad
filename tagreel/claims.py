"""The papers' results tables: their rows, by the recipes' names, and what the papers conclude from them.

How far one row is ahead of another in the paper follows from the figures that their recipes hold; here is
which pairs the paper's argument rests on. Where a repetition is more than another seed, a row has a recipe
for each: `repeats` are what their names end in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """That one row scores higher than another, and what it means where it does."""

    better: str
    worse: str
    means: str


@dataclass(frozen=True)
class Table:
    """A table of a paper, or a figure that could have been one; `note` says what is not as in the paper."""

    title: str
    rows: tuple[str, ...]
    claims: tuple[Claim, ...]
    repeats: tuple[str, ...] = ()
    note: str = ""

    def recipes(self, row: str) -> tuple[str, ...]:
        """The names of the recipes of a row: its own, or one a repetition."""
        return tuple(row + end for end in self.repeats) or (row,)


_SIZES = ("70k", "150k", "380k", "1150k")
_LAST = "Members are the models after the last step; the paper's are averages of checkpoints."
_STUDIED = ("gated-netvlad", "netvlad", "lstm", "avg")

TABLES = {
    "willow-1": Table(
        title="Willow, table 1: ways of pooling",
        rows=(
            "willow-avg-lr",
            "willow-avg-moe-cg",
            "willow-lstm",
            "willow-gru",
            "willow-bow-4096",
            "willow-netfv-128",
            "willow-netrvlad-256",
            "willow-netvlad-256",
            "willow-gated-bow-4096",
            "willow-gated-netfv-128",
            "willow-gated-netrvlad-256",
            "willow-gated-netvlad-256",
        ),
        claims=(
            Claim("willow-avg-moe-cg", "willow-avg-lr", "experts and gating help on the mean frame"),
            Claim("willow-lstm", "willow-avg-moe-cg", "a recurrent layer is better than the mean"),
            Claim("willow-netvlad-256", "willow-lstm", "clusters are better than a recurrent layer"),
            Claim("willow-netvlad-256", "willow-gru", "clusters are better than a recurrent layer"),
            Claim("willow-netvlad-256", "willow-bow-4096", "residuals are better than counts"),
            Claim("willow-netvlad-256", "willow-netfv-128", "first order residuals do"),
            Claim("willow-netvlad-256", "willow-netrvlad-256", "centres help"),
            Claim("willow-gated-bow-4096", "willow-bow-4096", "gating helps a bag of words"),
            Claim("willow-gated-netfv-128", "willow-netfv-128", "Context Gating helps NetFV"),
            Claim("willow-gated-netrvlad-256", "willow-netrvlad-256", "Context Gating helps NetRVLAD"),
            Claim("willow-gated-netvlad-256", "willow-netvlad-256", "Context Gating helps NetVLAD"),
        ),
    ),
    "willow-2": Table(
        title="Willow, table 2: Context Gating",
        rows=(
            "willow-cg-none-none",
            "willow-glu-none",
            "willow-cg-none",
            "willow-glu-cg",
            "willow-cg-cg",
        ),
        claims=(
            Claim("willow-glu-none", "willow-cg-none-none", "a gated linear unit after pooling helps"),
            Claim("willow-cg-none", "willow-cg-none-none", "Context Gating after pooling helps"),
            Claim("willow-cg-none", "willow-glu-none", "Context Gating is the better gate"),
            Claim("willow-cg-cg", "willow-cg-none", "Context Gating after the experts helps, too"),
            Claim("willow-cg-cg", "willow-glu-cg", "Context Gating is the better gate before them"),
            Claim("willow-cg-cg", "willow-cg-none-none", "both gates together help"),
        ),
    ),
    "willow-3": Table(
        title="Willow, table 3: early and late concatenation of picture and sound",
        rows=(
            "willow-netvlad-early",
            "willow-netvlad-late",
            "willow-netfv-early",
            "willow-netfv-late",
            "willow-gru-early",
            "willow-gru-late",
            "willow-lstm-early",
            "willow-lstm-late",
        ),
        claims=(
            Claim("willow-netvlad-late", "willow-netvlad-early", "NetVLAD is better late"),
            Claim("willow-netfv-late", "willow-netfv-early", "NetFV is better late"),
            Claim("willow-gru-early", "willow-gru-late", "a GRU is better early"),
            Claim("willow-lstm-early", "willow-lstm-late", "an LSTM is better early"),
        ),
    ),
    "willow-4": Table(
        title="Willow, table 4: the ensemble and its members as released",
        rows=(
            "willow-rel-gated-netvlad-256",
            "willow-rel-gated-netfv-128",
            "willow-rel-gated-dbow-4096",
            "willow-rel-soft-dbow-8000",
            "willow-rel-gated-netrvlad-256",
            "willow-rel-gru-1200",
            "willow-rel-lstm-1024",
            "willow-ens7",
        ),
        claims=(Claim("willow-ens7", "willow-rel-gated-netvlad-256", "seven are better than the best one"),),
    ),
    "willow-datasize": Table(
        title="Willow, section 5.6: how much data a model needs",
        rows=tuple(f"willow-datasize-{model}-{size}" for model in _STUDIED for size in _SIZES),
        repeats=("-s1", "-s2", "-s3"),
        note="The paper shows a figure without numbers. Small models take as many steps whatever the size.",
        claims=(
            *(
                Claim(
                    f"willow-datasize-{model}-70k",
                    "willow-datasize-lstm-70k",
                    "clusters need less data than a recurrent layer",
                )
                for model in ("netvlad", "gated-netvlad")
            ),
            *(
                Claim(
                    f"willow-datasize-gated-netvlad-{size}",
                    f"willow-datasize-netvlad-{size}",
                    "Context Gating helps from 100,000 videos on",
                )
                for size in _SIZES[1:]
            ),
        ),
    ),
    "nextvlad-1": Table(
        title="NeXtVLAD, table 1: single models",
        rows=(
            "nextvlad-netvlad-k128",
            "nextvlad-netvlad-random-k256",
            "nextvlad-netvlad-small-k128",
            "nextvlad-g32-d02-k128",
            "nextvlad-g16-d02-k128",
            "nextvlad-g16-d05-k128",
            "nextvlad-g8-d05-k128",
        ),
        claims=(
            Claim("nextvlad-netvlad-small-k128", "nextvlad-netvlad-k128", "narrower frames help NetVLAD"),
            Claim(
                "nextvlad-g32-d02-k128", "nextvlad-netvlad-small-k128", "groups are better than narrow frames"
            ),
            Claim(
                "nextvlad-g8-d05-k128", "nextvlad-netvlad-small-k128", "NeXtVLAD beats NetVLAD of its size"
            ),
            Claim("nextvlad-g8-d05-k128", "nextvlad-netvlad-k128", "NeXtVLAD beats NetVLAD thrice its size"),
            Claim("nextvlad-g16-d05-k128", "nextvlad-g16-d02-k128", "more dropout helps"),
            Claim("nextvlad-g8-d05-k128", "nextvlad-g16-d05-k128", "fewer, wider groups help"),
        ),
    ),
    "nextvlad-2": Table(
        title="NeXtVLAD, table 2: submissions",
        rows=(
            "nextvlad-single-460k",
            "nextvlad-mix3-t3-250k",
            "nextvlad-mix3-t3-346k",
            "nextvlad-mix3-t3-460k",
            "nextvlad-mix3-t3-647k",
        ),
        claims=(
            Claim("nextvlad-mix3-t3-460k", "nextvlad-single-460k", "three branches are better than one"),
            Claim("nextvlad-mix3-t3-460k", "nextvlad-mix3-t3-250k", "longer training helps"),
        ),
        note="Small models all take as many steps, so that mixtures of other lengths are one. The single "
        "model is trained alone; the paper's is a branch of the mixture.",
    ),
    "nextvlad-3": Table(
        title="NeXtVLAD, table 3: distillation on the fly",
        rows=("nextvlad-mix3-t0-120k", "nextvlad-mix3-t3-120k"),
        claims=(
            Claim(
                "nextvlad-mix3-t0-120k",
                "nextvlad-mix3-t3-120k",
                "distillation costs a little early in training",
            ),
        ),
    ),
    "nonlocal-1": Table(
        title="Non-local NetVLAD, slides, table 1: single models",
        rows=(
            "nlvlad-lfnl-netvlad",
            "nlvlad-lfnl-netrvlad",
            "nlvlad-efnl-netvlad",
            "nlvlad-softbof-4k",
            "nlvlad-softbof-8k",
            "nlvlad-gru",
        ),
        claims=(
            Claim("nlvlad-lfnl-netvlad", "nlvlad-lfnl-netrvlad", "centres and more experts help"),
            Claim("nlvlad-lfnl-netvlad", "nlvlad-efnl-netvlad", "late fusion and more experts help"),
            Claim("nlvlad-efnl-netvlad", "nlvlad-gru", "clusters are better than a recurrent layer"),
            Claim("nlvlad-gru", "nlvlad-softbof-4k", "a recurrent layer is better than counts"),
            Claim("nlvlad-softbof-4k", "nlvlad-softbof-8k", "4,000 words are enough"),
        ),
    ),
    "nonlocal-3": Table(
        title="Non-local NetVLAD, slides, table 3: ensembles",
        rows=(
            "nlvlad-ens-14",
            "nlvlad-ens-12",
            "nlvlad-ens-16",
            "nlvlad-ens-146",
            "nlvlad-ens-1246",
            "nlvlad-ens-12346",
            "nlvlad-ens-123456",
        ),
        claims=(
            Claim("nlvlad-ens-16", "nlvlad-ens-12", "a model of another kind helps most"),
            Claim("nlvlad-ens-16", "nlvlad-ens-14", "a GRU helps more than a bag of words"),
            Claim("nlvlad-ens-146", "nlvlad-ens-16", "a third helps"),
            Claim("nlvlad-ens-1246", "nlvlad-ens-146", "a fourth helps"),
            Claim("nlvlad-ens-12346", "nlvlad-ens-1246", "a fifth helps"),
            Claim("nlvlad-ens-123456", "nlvlad-ens-12346", "a sixth helps"),
        ),
        note=_LAST,
    ),
    "nonlocal-4": Table(
        title="Non-local NetVLAD, slides, table 4: repeated sampling",
        rows=("nlvlad-final-r1", "nlvlad-final-r5", "nlvlad-final-r10"),
        claims=(
            Claim("nlvlad-final-r5", "nlvlad-final-r1", "five draws are better than one"),
            Claim("nlvlad-final-r10", "nlvlad-final-r5", "ten draws are better than five"),
        ),
        note=_LAST,
    ),
    "cmu-1": Table(
        title="CMU Informedia, table 1: video-level models",
        rows=(
            "cmu-moe2",
            "cmu-moe8",
            "cmu-deepmoe8",
            "cmu-more8",
            "cmu-more16",
            "cmu-more24",
            "cmu-mohce12",
            "cmu-more24-lc",
            "cmu-mohce12-lc",
            "cmu-more24-lc-si",
            "cmu-more28-lc-si",
            "cmu-mohce12-lc-si",
            "cmu-more28-lc-da",
            "cmu-more30-lc-da",
            "cmu-more28-lc-si-da",
            "cmu-mohce12-lc-si-da",
        ),
        claims=(
            Claim("cmu-moe8", "cmu-moe2", "more experts help"),
            Claim("cmu-deepmoe8", "cmu-moe8", "hidden layers help"),
            Claim("cmu-more8", "cmu-deepmoe8", "the way past them helps"),
            Claim("cmu-more16", "cmu-more8", "more residual experts help"),
            Claim("cmu-more24", "cmu-more16", "still more help"),
            Claim("cmu-mohce12", "cmu-more24", "hypercolumns are better than as many parameters in experts"),
            Claim("cmu-more24-lc", "cmu-more24", "latent concepts help residual experts"),
            Claim("cmu-mohce12-lc", "cmu-mohce12", "latent concepts help hypercolumns"),
            Claim("cmu-more24-lc-si", "cmu-more24-lc", "segmented inference helps residual experts"),
            Claim("cmu-mohce12-lc-si", "cmu-mohce12-lc", "segmented inference helps hypercolumns"),
            Claim("cmu-more28-lc-si-da", "cmu-more28-lc-si", "training on segments helps residual experts"),
            Claim("cmu-mohce12-lc-si-da", "cmu-mohce12-lc-si", "training on segments helps hypercolumns"),
            Claim("cmu-more28-lc-si-da", "cmu-more28-lc-da", "and so does inference on them after it"),
        ),
        note="Small models all take as many steps; the paper's take twice as many to learn from segments.",
    ),
    "cmu-2": Table(
        title="CMU Informedia, table 2: frame-level models",
        rows=(
            "cmu-lstm",
            "cmu-dbow",
            "cmu-bilstm",
            "cmu-lstm-zoneout",
            "cmu-lstm-bn",
            "cmu-lstm-attn",
            "cmu-dbow-attn",
            "cmu-vlad-more8",
            "cmu-netvlad-k1-lc",
            "cmu-netvlad-k2-lc",
            "cmu-netvlad-k4-lc",
            "cmu-netvlad-k8-lc",
        ),
        claims=(
            Claim("cmu-lstm", "cmu-dbow", "a recurrent layer is better than a mean of words"),
            Claim("cmu-bilstm", "cmu-lstm", "both directions help"),
            Claim("cmu-lstm-zoneout", "cmu-lstm", "zoneout helps"),
            Claim("cmu-lstm-bn", "cmu-lstm", "recurrent batch norm helps"),
            Claim("cmu-lstm-attn", "cmu-lstm", "attention over the outputs helps"),
            Claim("cmu-dbow-attn", "cmu-dbow", "attention over the words helps"),
            Claim("cmu-vlad-more8", "cmu-lstm-zoneout", "clusters are better than a recurrent layer"),
            Claim("cmu-netvlad-k1-lc", "cmu-netvlad-k2-lc", "one cluster is enough"),
            Claim("cmu-netvlad-k2-lc", "cmu-netvlad-k4-lc", "fewer clusters are better"),
            Claim("cmu-netvlad-k4-lc", "cmu-netvlad-k8-lc", "fewer clusters are better"),
        ),
    ),
    "cmu-4": Table(
        title="CMU Informedia, table 4: the final ensemble and its members",
        rows=(*(f"cmu-m{number:02}" for number in range(1, 36)), "cmu-final"),
        claims=(Claim("cmu-final", "cmu-m19", "35 are better than the best one"),),
    ),
    "tsinghua-2": Table(
        title="Tsinghua, table 2: recurrent models",
        rows=(
            "thu-baseline-mean-lr",
            "thu-prototype-full-visual",
            "thu-prototype-full",
            "thu-prototype-crop",
            "thu-bilstm-lr-ln",
            "thu-bilstm-moe",
            "thu-bilstm-moe-attn",
            "thu-bilstm-moe-full",
            "thu-ens16",
            "thu-ens36",
        ),
        claims=(
            Claim("thu-prototype-full-visual", "thu-baseline-mean-lr", "an LSTM is better than the mean"),
            Claim("thu-prototype-full", "thu-prototype-full-visual", "sound helps"),
            Claim("thu-prototype-full", "thu-prototype-crop", "one frame in five is hardly worse"),
            Claim("thu-bilstm-moe", "thu-prototype-crop", "both directions help"),
            Claim("thu-bilstm-moe", "thu-bilstm-lr-ln", "experts are better than layer norm"),
            Claim("thu-bilstm-moe-attn", "thu-bilstm-moe", "the outputs at each third help"),
            Claim("thu-bilstm-moe-full", "thu-bilstm-moe-attn", "all frames help more"),
            Claim("thu-ens16", "thu-bilstm-moe-full", "16 predictions are better than the best one"),
            Claim("thu-ens36", "thu-ens16", "36 are better than 16"),
        ),
    ),
}
