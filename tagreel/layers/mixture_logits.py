"""The logit of a mixture of yes and no votes, exact and finite however sure they are, and in little memory.

    p = Σ_e g_e σ(v_e),   z = log p - log (1 - p),   g = softmax(a)

The softmax's sum cancels in z. With u_e = a_e + min(v_e, 0), n_e = a_e + min(-v_e, 0) and w_e = 1 / (1 +
exp(-|v_e|)), which lies between a half and one and is a factor of both σ(v_e) and σ(-v_e),

    z = log Σ_e w_e exp(u_e) - log (Σ_e w_e exp(n_e) + exp(a_null))

and each sum is taken after subtracting its largest exponent. With r_e and q_e the shares of expert e in the
two sums the gradients are dz / dv_e = r_e σ(-v_e) + q_e σ(v_e) and dz / da_e = r_e - q_e, so that nothing but
the gates and the votes need be kept: thirty experts for each of thousands of classes are more numbers than
all else in a batch. Both directions go through some classes at a time, experts first, so that a slice stays
in the processor's cache and sums run over long rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_VOTES_AT_ONCE = 2048  # of one video


def mixture_logits(gates: Tensor, votes: Tensor, classes: int) -> Tensor:
    """Gates (B, C·E) or, with a null expert that always says no, (B, C·(E + 1)); votes (B, C·E).

    Class by class in both; a vote is the logit of an expert. Returns logits (B, C), in float32 at least.
    """
    B, units = votes.shape
    gates = gates.view(B, classes, gates.shape[1] // classes)
    votes = votes.view(B, classes, units // classes)
    return _Mixture.apply(gates, votes)  # type: ignore[no-any-return, no-untyped-call]


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(gates: Tensor, votes: Tensor) -> Tensor:
        parts = [_Slice(gates[:, some], votes[:, some]).logits() for some in _slices(votes)]
        return torch.cat(parts, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gates, votes = ctx.saved_tensors
        to_gates, to_votes = torch.empty_like(gates), torch.empty_like(votes)
        for some in _slices(votes):
            of_gates, of_votes = _Slice(gates[:, some], votes[:, some]).gradients(grad[:, some])
            to_gates[:, some] = of_gates.movedim(0, -1)
            to_votes[:, some] = of_votes.movedim(0, -1)
        return to_gates, to_votes


class _Slice:
    """Some classes' sums, (E, B, C') throughout; `yes` and `no` are the terms of the two."""

    def __init__(self, gates: Tensor, votes: Tensor) -> None:
        dtype = torch.promote_types(gates.dtype, torch.float32)
        gates, self.votes = (_experts_first(x, dtype) for x in (gates, votes))
        E = len(self.votes)
        weight = torch.sigmoid(self.votes.abs())
        yes = gates[:E] + self.votes.clamp_max(0)
        no = gates
        no[:E] -= self.votes.clamp_min(0)
        self.most_yes, self.most_no = yes.amax(0), no.amax(0)  # (B, C')
        self.yes = yes.sub_(self.most_yes).exp_().mul_(weight)
        self.no = no.sub_(self.most_no).exp_()
        self.no[:E] *= weight
        self.all_yes, self.all_no = self.yes.sum(0), self.no.sum(0)

    def logits(self) -> Tensor:
        return self.most_yes - self.most_no + (self.all_yes / self.all_no).log_()

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        E = len(self.votes)
        of_yes = self.yes.mul_(grad / self.all_yes)
        of_no = self.no.mul_(grad / self.all_no)
        to_votes = torch.sigmoid(-self.votes).mul_(of_yes).addcmul_(of_no[:E], self.votes.sigmoid_())
        to_gates = of_no.neg_()
        to_gates[:E] += of_yes
        return to_gates, to_votes


def _experts_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.movedim(-1, 0).to(dtype, memory_format=torch.contiguous_format, copy=True)


def _slices(votes: Tensor) -> Iterator[slice]:
    classes, experts = votes.shape[1:]
    # A traced program has no cache to keep to, and would repeat itself slice by slice.
    step = classes if torch.compiler.is_exporting() else max(_VOTES_AT_ONCE // experts, 1)
    for first in range(0, classes, step):
        yield slice(first, min(first + step, classes))
