"""Recurrent layers over padded videos: a cell carried from frame to frame, stacked, and read out.

In a padded frame a state stands still, so that the final state of a video is that of its last real frame, and
a backward direction, which meets the padding first, reaches the last real frame with its initial state of
zeros. Outputs of padded frames are zeros. A video without frames ends in the state it began with, zeros.

Plain cells run in PyTorch's fused kernels, over the padded frames: with a column more in the input weights
that shuts the input gate of a padded frame and opens its forget gate, the kernel itself keeps the state,
exactly. On a CPU this is several times faster than packing (benchmarks/recurrent.py), and needs no lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan as traced_scan

from tagreel.layers.softmax_over_frames import softmax_over_frames

Readout = Literal["last", "states", "thirds", "attention"]
States = tuple[Tensor, ...]


class Cell(Protocol):
    """What takes a state from one frame to the next; `units` wide, `num_states` tensors, h the last."""

    units: int
    num_states: int

    def inputs(self, frames: Tensor, mask: Tensor | None) -> States:
        """All that the steps need and no state enters, computed at once: tensors (B, T, ...)."""
        ...

    def weights(self) -> States:
        """The tensors that every step uses."""
        ...

    def step(self, state: States, inputs: States, weights: States) -> States:
        """One frame of `inputs` (B, ...); touches no tensor but the given ones, so that it can be traced."""
        ...


class FusedCell(Cell, Protocol):
    """A cell that PyTorch has a kernel for; `hold` is what a padded frame adds to each gate."""

    hold: tuple[float, ...]

    def fused(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input weights (gates, D), recurrent weights (gates, H) and the bias, in PyTorch's gate order."""
        ...


def scan(
    step: Callable[[States, States], States],
    state: States,
    inputs: States,
    mask: Tensor | None,
    reverse: bool,
) -> tuple[States, Tensor]:
    """Take `step` through the frames of `inputs` (B, T, ...): the final state, and every h (B, T, H)."""
    real = () if mask is None else (mask[..., None],)

    def held(state: States, xs: States) -> tuple[States, Tensor]:
        new = step(state, xs[: len(inputs)])
        if real:
            new = tuple(torch.where(xs[-1], after, before) for after, before in zip(new, state, strict=True))
        return new, new[-1].clone()  # a traced scan may not return a tensor twice

    steps = tuple(x.transpose(0, 1) for x in (*inputs, *real))
    if torch.compiler.is_exporting():
        state, outputs = traced_scan(held, state, tuple(x.detach() for x in steps), reverse=reverse)
        return state, outputs.transpose(0, 1)
    rows = list(zip(*(x.unbind(0) for x in steps), strict=True))
    collected = []
    for xs in reversed(rows) if reverse else rows:
        state, h = held(state, xs)
        collected.append(h)
    return state, torch.stack(collected[::-1] if reverse else collected, dim=1)


class Recurrence(nn.Module):
    """One layer: the first cell reads the frames forwards and the second, if there is one, backwards.

    Frames (B, T, D) in; outputs (B, T, W) and final states, each (B, W), out, the directions side by side.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)  # type: ignore[arg-type]
        self.out_dim = sum(cell.units for cell in cells)
        self.num_states = cells[0].num_states

    def forward(self, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, States]:
        """Run the directions one after the other, frame by frame."""
        outputs, states = [], []
        for direction, cell in enumerate(self.cells):
            final, output = _run(cell, frames, mask, reverse=direction == 1)  # type: ignore[arg-type]
            outputs.append(output)
            states.append(final)
        side_by_side = tuple(torch.cat(parts, dim=-1) for parts in zip(*states, strict=True))
        return _zero_padding(torch.cat(outputs, dim=-1), mask), side_by_side


def _run(cell: Cell, frames: Tensor, mask: Tensor | None, *, reverse: bool) -> tuple[States, Tensor]:
    inputs, weights = cell.inputs(frames, mask), cell.weights()
    if torch.compiler.is_exporting():  # which traces no gradients through a scan
        weights = tuple(weight.detach() for weight in weights)
    zeros = tuple(frames.new_zeros(frames.shape[0], cell.units) for _ in range(cell.num_states))
    return scan(lambda state, xs: cell.step(state, xs, weights), zeros, inputs, mask, reverse)


def _zero_padding(outputs: Tensor, mask: Tensor | None) -> Tensor:
    return outputs if mask is None else outputs.masked_fill(~mask[..., None], 0.0)


def fused(
    kernel: Callable[..., tuple[Tensor, ...]], cells: Sequence[FusedCell], frames: Tensor, mask: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in `torch.lstm` or `torch.gru`: outputs (B, T, W), and the kernel's final states (B, W).

    The state behind the gates, c of an LSTM and h of a GRU, is that of the last real frame.
    """
    weights: list[Tensor] = []
    for cell in cells:
        of_frames, of_state, bias = cell.fused()
        if mask is not None:
            hold = bias.new_tensor(cell.hold).repeat_interleave(cell.units)
            of_frames = torch.cat([of_frames, hold[:, None]], dim=1)
        # PyTorch's second bias, which TensorFlow's cells do not have.
        weights += [of_frames, of_state.contiguous(), bias, torch.zeros_like(bias)]
    if frames.is_cuda:
        weights = _in_one_chunk(weights)
    if mask is not None:
        padded = ~mask[..., None]
        frames = torch.cat([frames.masked_fill(padded, 0.0), padded.to(frames.dtype)], dim=-1)
    zeros = frames.new_zeros(len(cells), frames.shape[0], cells[0].units)
    state = (zeros, zeros) if kernel is torch.lstm else zeros
    # cuDNN has a backward pass in its training mode alone, whatever ours.
    training = torch.is_grad_enabled()
    outputs, *finals = kernel(frames, state, weights, True, 1, 0.0, training, len(cells) == 2, True)
    return _zero_padding(outputs, mask), tuple(final.transpose(0, 1).flatten(1) for final in finals)


def _in_one_chunk(weights: list[Tensor]) -> list[Tensor]:
    """The same tensors in one piece of memory, laid out as cuDNN wants them: matrices first, then biases."""
    order = sorted(range(len(weights)), key=lambda i: weights[i].ndim == 1)
    chunk = torch.cat([weights[i].flatten() for i in order])
    pieces = torch.split(chunk, [weights[i].numel() for i in order])
    placed = {i: piece.view_as(weights[i]) for i, piece in zip(order, pieces, strict=True)}
    return [placed[i] for i in range(len(weights))]


def last_real(outputs: Tensor, mask: Tensor | None, *, numerator: int = 1, denominator: int = 1) -> Tensor:
    """Each video's output (B, W) at the given share of its F real frames, the ceil(share · F)-th of them."""
    B, T, _ = outputs.shape
    if mask is None:
        return outputs[:, (T * numerator + denominator - 1) // denominator - 1]
    step = (mask.sum(1) * numerator + denominator - 1) // denominator - 1
    return outputs[torch.arange(B, device=outputs.device), step.clamp_min(0)]


class Stack(nn.Module):
    """Layers on top of each other, which every recurrent pool is: (B, T, D) and a mask (B, T) to a vector.

    `units` are the widths from the bottom, and `layer` makes one from the width it reads and its own.
    `readout` is "last" for the final h of the top layer; "states" for every final state of every layer (the
    classifier's input in Willow's code); "thirds" for the mean of the top outputs at a third, two thirds and
    the end of the video; "attention" for their sum under softmax_t(v·h_t).
    """

    ordered = True

    def __init__(
        self,
        dim: int,
        *,
        units: Sequence[int],
        layer: Callable[[int, int], Recurrence],
        readout: Readout = "last",
    ) -> None:
        super().__init__()
        if not units or min(units) < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: units={units}; expected the width of each layer, such as (1024, 1024)")
        layers = []
        for width in units:
            layers.append(layer(dim, width))
            dim = layers[-1].out_dim
        if readout not in ("last", "states", "thirds", "attention"):
            raise ValueError(f"readout={readout!r}; expected last, states, thirds or attention")
        self.layers = nn.ModuleList(layers)
        self.readout = readout
        self.out_dim = layers[-1].out_dim
        if readout == "states":
            self.out_dim = sum(made.out_dim * made.num_states for made in layers)
        if readout == "attention":
            self.attention = nn.Linear(self.out_dim, 1, bias=False)  # a softmax would not notice a bias
            nn.init.xavier_uniform_(self.attention.weight)

    def outputs(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the top layer puts out in each frame, (B, T, W); zeros in padded ones."""
        for layer in self.layers:
            frames, _ = layer(frames, mask)
        return frames

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read the real frames; a video without any gives zeros."""
        outputs = frames
        every_state: list[Tensor] = []
        for layer in self.layers:
            outputs, states = layer(outputs, mask)
            every_state += states
        if self.readout == "last":
            return every_state[-1]
        if self.readout == "states":
            return torch.cat(every_state, dim=-1)
        if self.readout == "thirds":
            taps = [last_real(outputs, mask, numerator=third, denominator=3) for third in (1, 2, 3)]
            return torch.stack(taps).mean(0)
        return (softmax_over_frames(self.attention(outputs), mask) * outputs).sum(1)
