"""How CMU Informedia's ensemble grew, on YouTube-8M (2017, 4,716 classes): rows that cannot be built.

    tagreel recipes show cmu-ens26

Huang, Yuan, Lan, Jiang, Hauptmann, "Video Representation Learning and Latent Concept Mining for Large-scale
Multi-label Video Classification", 2017, arXiv 1707.01408, table 3. It says of how many video-level and how
many frame-level models each ensemble was, not of which. The last one, of 34 by this table, has the figures of
the 35 models of table 4, `cmu-final`.
"""

from tagreel.recipe import About, Unpublished


def _row(video: int, frame: int, gap: float, mean_ap: float, perr: float) -> Unpublished:
    return Unpublished(
        reason=f"the paper says that {video} of its models are video-level and {frame} frame-level, not "
        "which they are; cmu-final is the ensemble whose members are listed",
        about=About(
            summary=f"{video + frame} models, {video} of them video-level, by the drop without each",
            paper="CMU Informedia, arXiv 1707.01408",
            table="table 3",
            published={
                "GAP@20 (local validation)": gap,
                "mAP (local validation)": mean_ap,
                "PERR (local validation)": perr,
            },
        ),
    )


cmu_ens10 = _row(10, 0, 0.8384, 0.5165, 0.762)
cmu_ens12 = _row(10, 2, 0.8407, 0.5200, 0.765)
cmu_ens14 = _row(12, 2, 0.8434, 0.5286, 0.768)
cmu_ens18a = _row(12, 6, 0.8442, 0.5328, 0.769)
cmu_ens18b = _row(11, 7, 0.8447, 0.5339, 0.769)
cmu_ens21 = _row(12, 9, 0.8452, 0.5364, 0.770)
cmu_ens26 = _row(17, 9, 0.8456, 0.5379, 0.770)
cmu_ens34 = _row(18, 16, 0.8468, 0.5401, 0.772)
