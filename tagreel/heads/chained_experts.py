"""A chain of mixtures of experts, each of which sees what the ones before it predicted.

    p_l = MoE_l(x_{l-1}),   r_l = L2norm(ReLU(W_l p_l + b_l)),   x_l = [x_{l-1}, r_l],   x_0 = x
    z = MoE(x_L),   loss = (1 - s) loss(z) + s Σ_l loss(p_l)

Wang, Zhang, Wu, "The Monkeytyping Solution to the YouTube-8M Video Understanding Challenge", 2017, arXiv
1706.05150; second place of that challenge, DeepCombineChain in its code (github.com/wangheda/youtube-8m).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagreel.layers.gated_experts import GatedExperts
from tagreel.layers.product import Linear


class ChainedExperts(nn.Module):
    """(B, D) in, logits (B, C) out.

    `links` is the number L of supporting mixtures, `width` that of each r_l, `support` the share s of their
    loss. A training loop adds that by `total_loss`.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        links: int = 3,
        width: int = 128,
        experts: int = 2,
        null_expert: bool = True,
        support: float = 0.05,
    ) -> None:
        super().__init__()
        if links < 1 or width < 1 or not 0 <= support < 1:
            raise ValueError(
                f"links={links}, width={width}, support={support}; expected at least 1, at least 1, and 0 to "
                "less than 1"
            )
        self.support = support
        widths = [dim + link * width for link in range(links + 1)]
        self.mixtures = nn.ModuleList(
            GatedExperts(seen, classes, experts=experts, null_expert=null_expert) for seen in widths
        )
        self.summaries = nn.ModuleList(Linear(classes, width) for _ in range(links))
        with torch.no_grad():
            for linear in self.summaries:
                assert isinstance(linear, nn.Linear)
                nn.init.xavier_uniform_(linear.weight)
                linear.bias.zero_()
        self._supports: Sequence[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the last mixture."""
        supports = []
        *links, last = self.mixtures
        for mixture, summary in zip(links, self.summaries, strict=True):
            supports.append(mixture(x))
            summed = F.relu(summary(torch.sigmoid(supports[-1]).to(x.dtype)))
            x = torch.cat([x, F.normalize(summed, dim=1, eps=1e-6).to(x.dtype)], dim=1)
        self._supports = supports if self.training else None
        return last(x)  # type: ignore[no-any-return]

    def total_loss(self, loss: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss of the last mixture's logits together with that of the supporting ones.

        `loss_of` gives the loss of other logits of the same batch; to be called after `forward`.
        """
        assert self._supports is not None, "total_loss belongs after a forward in training"
        supports, self._supports = self._supports, None
        return (1 - self.support) * loss + self.support * sum(map(loss_of, supports))
