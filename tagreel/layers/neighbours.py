"""A memory of training videos: those nearest to a new one vote on its tags beside the classifier.

    k_i = (h_i - μ) / |h_i - μ|,   q = (h - μ) / |h - μ|,   μ = mean of h over the N training videos
    w = softmax over the nearest videos of β q·k_i,   v = Σ_i w_i y_i
    p' = p^(1 - s) · ((v + ε) / (1 + ε))^s,   ε = 1e-4

h is what the head reads and p is the classifier's probability. Khandelwal et al., "Generalization through
Memorization", 2020, arXiv 1911.00172, mix such votes into a language model: by distances, and with p in
the arithmetic mean, which did less for tags. The division by 1 + ε keeps p' a probability and changes no
order. In and out are logits here, as everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KEYS_AT_ONCE = 2048
_EPSILON = 1e-4


class Neighbours(nn.Module):
    """What the head reads (B, D) and its logits (B, C) in, logits (B, C) out.

    `videos` N and `labels`, those of all videos together, are the sizes of what `remember` fills in; without
    videos the logits stay as they are. `neighbours` of them vote, `sharpness` is β and `share` is s.

    A video that is itself in the memory finds itself first and its own labels with it, so scores on the
    videos remembered say nothing.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        videos: int = 0,
        labels: int = 0,
        neighbours: int = 100,
        sharpness: float = 20.0,
        share: float = 0.5,
    ) -> None:
        super().__init__()
        if neighbours < 1 or not 0 < sharpness < float("inf") or not 0 <= share <= 1:
            raise ValueError(
                f"neighbours={neighbours}, sharpness={sharpness}, share={share}; expected 1 or more, more "
                "than 0, and 0 to 1"
            )
        self.out_dim = classes
        self.neighbours, self.sharpness, self.share = neighbours, sharpness, share
        # Half the bytes of float32, and a cosine off by less than 0.004.
        self.register_buffer("keys", torch.zeros(videos, dim, dtype=torch.bfloat16))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("label_ids", torch.zeros(labels, dtype=torch.int32))
        self.register_buffer("label_offsets", torch.zeros(videos + 1, dtype=torch.int64))
        self.keys: Tensor
        self.mean: Tensor
        self.label_ids: Tensor
        self.label_offsets: Tensor

    @torch.no_grad()
    def remember(self, hidden: Tensor, label_ids: Tensor, label_counts: Tensor) -> None:
        """Fill in what the head reads of every video (N, D), and their labels as a `Batch` holds them."""
        self.mean.copy_(hidden.mean(0, dtype=torch.float64))
        for first in range(0, len(hidden), _KEYS_AT_ONCE):
            some = slice(first, first + _KEYS_AT_ONCE)
            self.keys[some] = self._direction(hidden[some]).to(self.keys.dtype)
        self.label_ids.copy_(label_ids)
        self.label_offsets[1:] = label_counts.cumsum(0)

    def forward(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """The classifier's logits and the neighbours' votes, mixed."""
        if not len(self.keys):
            return logits
        votes = self.votes(hidden)
        log_p = (1 - self.share) * F.logsigmoid(logits.float())
        log_p = log_p + self.share * torch.log((votes + _EPSILON) / (1 + _EPSILON))
        # Below 0, or whoever is sure beyond the last digit would have an infinite logit.
        log_p = log_p.clamp_max(-torch.finfo(log_p.dtype).tiny)
        return log_p - torch.log(-torch.expm1(log_p))

    def votes(self, hidden: Tensor) -> Tensor:
        """The share of each class (B, C) among the nearest videos, each weighted by how near it is."""
        B, C = len(hidden), self.out_dim
        cosines, videos = self._nearest(self._direction(hidden))
        weights = torch.softmax(self.sharpness * cosines, dim=1).flatten()  # (B·k,)
        first, last = self.label_offsets[videos.flatten()], self.label_offsets[videos.flatten() + 1]
        counts = last - first
        voters = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)  # (ΣL,)
        nth = torch.arange(len(voters), device=counts.device) - (counts.cumsum(0) - counts)[voters]
        classes = self.label_ids[first[voters] + nth]
        votes = torch.zeros(B, C, device=hidden.device)
        rows = voters // videos.shape[1]
        return votes.index_put_((rows, classes.long()), weights[voters], accumulate=True)

    def _nearest(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines (B, k) and numbers (B, k) of the nearest videos, some keys at a time."""
        cosines, videos = query.new_empty(len(query), 0), self.label_offsets.new_empty(len(query), 0)
        for first in range(0, len(self.keys), _KEYS_AT_ONCE):
            keys = self.keys[first : first + _KEYS_AT_ONCE].float()
            best, found = torch.topk(query @ keys.T, min(self.neighbours, len(keys)))
            cosines, videos = torch.cat([cosines, best], 1), torch.cat([videos, found + first], 1)
            cosines, kept = torch.topk(cosines, min(self.neighbours, cosines.shape[1]))
            videos = videos.gather(1, kept)
        return cosines, videos

    def _direction(self, hidden: Tensor) -> Tensor:
        return F.normalize(hidden.float() - self.mean)
