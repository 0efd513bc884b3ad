"""Hit@1, the fraction of videos whose best class is a true one.

Abu-El-Haija et al., YouTube-8M: A Large-Scale Video Classification Benchmark, 2016, arXiv:1609.08675; as in
the YouTube-8M starter code (`eval_util.calculate_hit_at_one`).
"""

from __future__ import annotations

from tagreel.metrics._scored import Array, Scored


class HitAt1:
    """Hit@1 over scores (B, C) and labels (B, C).

    Among equal scores the first class is the best; a video without labels is a miss.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets every video."""
        self._hits = 0
        self._videos = 0

    def update(self, scores: Array, labels: Array) -> None:
        """Counts B more videos: scores (B, C) and labels (B, C), positive where greater than 0."""
        self.add(Scored(scores, labels))

    def add(self, scored: Scored) -> None:
        """Counts B more videos that were checked already."""
        self._hits += int(scored.top(1).hits.sum())
        self._videos += len(scored)

    def merge(self, other: HitAt1) -> None:
        """Counts the videos of another one as well."""
        self._hits += other._hits
        self._videos += other._videos

    def compute(self) -> float:
        """Hit@1 of all videos so far; 0 before the first."""
        return self._hits / self._videos if self._videos else 0.0
