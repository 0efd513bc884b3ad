"""Recurrent layers over videos: a cell carried from frame to frame, stacked, and read out.

Cells read packed frames in the order of their steps: the first frames of all videos, then the second ones of
those that have any, and so on, the longest video first. So a step is a run of rows without any padding, and a
video whose frames are over leaves with the state that it has then. A backward direction begins each video
with its last frame. A video without frames ends in the state it began with, zeros.

What frames add to the gates is one product for all of them. What the state adds is one at each step, which
`repeated` makes fast on a CPU; on a GPU plain cells run in cuDNN's kernel. Exported, cells are traced frame
by frame over padded videos, and a state stands still in a padded frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import scan as traced_scan

from tagreel.layers.ragged import Mask, Ragged, pack, pad, total
from tagreel.layers.repeated import Multiply, repeated
from tagreel.layers.softmax_over_frames import softmax_over_frames

Readout = Literal["last", "states", "thirds", "attention"]
States = tuple[Tensor, ...]


class Cell(Protocol):
    """What takes a state from one frame to the next; `units` wide, `num_states` tensors, h the last."""

    units: int
    num_states: int

    def inputs(self, frames: Tensor) -> States:
        """All that the steps need and no state enters, of all frames (..., D) at once: tensors (..., K)."""
        ...

    def matrices(self) -> States:
        """The matrices (K, H) that a step multiplies with."""
        ...

    def weights(self) -> States:
        """The other tensors that every step uses."""
        ...

    def step(self, state: States, inputs: States, recall: Sequence[Multiply], weights: States) -> States:
        """One frame of `inputs` (B, K); each of `recall`, called once, multiplies with a matrix."""
        ...


class FusedCell(Cell, Protocol):
    """A cell that cuDNN has a kernel for."""

    def fused(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input weights (gates, D), recurrent weights (gates, H) and the bias, in PyTorch's gate order."""
        ...


class Recurrence(nn.Module):
    """One layer: the first cell reads the frames forwards and the second, if there is one, backwards.

    Frames, padded (B, T, D) or packed (ΣT, D), in; outputs of the same form, W wide and zeros in padding, and
    final states, each (B, W), out, the directions side by side. `kernel` is `torch.lstm` or `torch.gru`,
    where cells are such as cuDNN has.
    """

    def __init__(
        self, cells: Sequence[Cell], kernel: Callable[..., tuple[Tensor, ...]] | None = None
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)  # type: ignore[arg-type]
        self.kernel = kernel
        self.out_dim = sum(cell.units for cell in cells)
        self.num_states = cells[0].num_states

    def forward(self, frames: Tensor, mask: Mask) -> tuple[Tensor, States]:
        """Read the real frames."""
        if isinstance(mask, Ragged):
            return self._read(frames, mask)
        if torch.compiler.is_exporting():
            if mask is None:
                mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
            runs = [_trace(cell, frames, mask, reverse=i == 1) for i, cell in enumerate(self.cells)]  # type: ignore[arg-type]
            return _side_by_side(runs)
        if mask is None or mask.is_meta:  # which says nothing
            ragged = Ragged([frames.shape[1]] * len(frames), frames.device)
            outputs, states = self._read(pack(frames, ragged), ragged)
            return pad(outputs, ragged), states
        outputs, states = self._read(frames[mask], Ragged(mask.sum(1).tolist(), frames.device))
        return outputs.new_zeros(*mask.shape, self.out_dim).index_put((mask,), outputs), states

    def _read(self, frames: Tensor, ragged: Ragged) -> tuple[Tensor, States]:
        if self.kernel is not None and frames.is_cuda and len(frames):
            return fused(self.kernel, list(self.cells), frames, ragged)  # type: ignore[arg-type]
        runs = [_run(cell, frames, ragged, reverse=i == 1) for i, cell in enumerate(self.cells)]  # type: ignore[arg-type]
        return _side_by_side(runs)


def _side_by_side(runs: Sequence[tuple[Tensor, States]]) -> tuple[Tensor, States]:
    outputs, states = zip(*runs, strict=True)
    joined = (torch.cat(parts, dim=-1) for parts in zip(*states, strict=True))
    return torch.cat(outputs, dim=-1), tuple(joined)


class _Steps:
    """In which order packed frames are read: `sizes[t]` videos have a frame in step t, each in its place.

    `rows` (ΣT,) are the frames one step after another, `back` (ΣT,) leads from there to the packed order, and
    `places` (B,) from the videos' places, longest first, to their own order.
    """

    def __init__(self, ragged: Ragged, *, reverse: bool) -> None:
        lengths = ragged.sizes
        order = sorted(range(len(lengths)), key=lambda video: -lengths[video])
        ends = list(accumulate(lengths))
        first = [ends[video] - 1 if reverse else ends[video] - lengths[video] for video in order]
        counts = [sum(length > t for length in lengths) for t in range(max(lengths, default=0))]
        rows = [row - t if reverse else row + t for t, count in enumerate(counts) for row in first[:count]]
        # A step of no video at all where there are no frames: so every parameter has a gradient.
        self.sizes = counts or [0]
        self.rows = torch.tensor(rows, dtype=torch.int64).to(ragged.device, non_blocking=True)
        self.back = self.rows.argsort()
        self.places = torch.tensor(order, dtype=torch.int64).to(ragged.device, non_blocking=True).argsort()


def _run(cell: Cell, frames: Tensor, ragged: Ragged, *, reverse: bool) -> tuple[Tensor, States]:
    """Packed frames (ΣT, D) through one cell: every h (ΣT, H), and the final states (B, H)."""
    steps = _Steps(ragged, reverse=reverse)
    rows = frames.index_select(0, steps.rows)
    inputs = zip(*(torch.split(x, steps.sizes) for x in cell.inputs(rows)), strict=True)
    recalls = zip(*(repeated(matrix, steps.sizes) for matrix in cell.matrices()), strict=True)
    weights = cell.weights()
    state: States = tuple(frames.new_zeros(len(ragged), cell.units) for _ in range(cell.num_states))
    outputs, ended = [], []
    for size, xs, recall in zip(steps.sizes, inputs, recalls, strict=True):
        if size < len(state[0]):
            parts = (torch.split(part, [size, len(part) - size]) for part in state)
            state, over = zip(*parts, strict=True)
            ended.append(over)
        state = cell.step(state, xs, recall, weights)
        outputs.append(state[-1])
    ended.append(state)
    finals = (torch.cat(parts[::-1]) for parts in zip(*ended, strict=True))
    return (
        torch.cat(outputs).index_select(0, steps.back),
        tuple(final.index_select(0, steps.places) for final in finals),
    )


def _trace(cell: Cell, frames: Tensor, mask: Tensor, *, reverse: bool) -> tuple[Tensor, States]:
    """Padded frames (B, T, D) through one cell: every h (B, T, H), and the final states (B, H)."""
    # No gradients are traced through a scan.
    weights = tuple(weight.detach() for weight in cell.weights())
    recall = [partial(F.linear, weight=matrix.detach()) for matrix in cell.matrices()]

    def held(state: States, xs: States) -> tuple[States, Tensor]:
        *inputs, real = xs
        new = cell.step(state, tuple(inputs), recall, weights)
        new = tuple(torch.where(real, after, before) for after, before in zip(new, state, strict=True))
        return new, new[-1].clone()  # a traced scan may not return a tensor twice

    zeros = tuple(frames.new_zeros(frames.shape[0], cell.units) for _ in range(cell.num_states))
    steps = tuple(x.detach().transpose(0, 1) for x in (*cell.inputs(frames), mask[..., None]))
    state, outputs = traced_scan(held, zeros, steps, reverse=reverse)
    return outputs.transpose(0, 1).masked_fill(~mask[..., None], 0.0), state


def fused(
    kernel: Callable[..., tuple[Tensor, ...]], cells: Sequence[FusedCell], frames: Tensor, ragged: Ragged
) -> tuple[Tensor, States]:
    """Run one layer over packed frames (ΣT, D), one at least, in `torch.lstm` or `torch.gru`."""
    weights: list[Tensor] = []
    for cell in cells:
        of_frames, of_state, bias = cell.fused()
        # PyTorch's second bias, which TensorFlow's cells do not have.
        weights += [of_frames.contiguous(), of_state.contiguous(), bias, torch.zeros_like(bias)]
    if frames.is_cuda:
        weights = _in_one_chunk(weights)
    steps = _Steps(ragged, reverse=False)
    sizes = torch.tensor(steps.sizes, device="cpu")
    zeros = frames.new_zeros(len(cells), steps.sizes[0], cells[0].units)
    state = (zeros, zeros) if kernel is torch.lstm else zeros
    # cuDNN has a backward pass in its training mode alone, whatever ours.
    training, both_ways = torch.is_grad_enabled(), len(cells) == 2
    rows = frames.index_select(0, steps.rows)
    outputs, *finals = kernel(rows, sizes, state, weights, True, 1, 0.0, training, both_ways)
    without_frames = len(ragged) - steps.sizes[0]
    placed = (F.pad(final, (0, 0, 0, without_frames)).index_select(1, steps.places) for final in finals)
    states = tuple(final.transpose(0, 1).flatten(1) for final in placed)
    return outputs.index_select(0, steps.back), states[::-1]  # PyTorch has h first


def _in_one_chunk(weights: list[Tensor]) -> list[Tensor]:
    """The same tensors in one piece of memory, laid out as cuDNN wants them: matrices first, then biases."""
    order = sorted(range(len(weights)), key=lambda i: weights[i].ndim == 1)
    chunk = torch.cat([weights[i].flatten() for i in order])
    pieces = torch.split(chunk, [weights[i].numel() for i in order])
    placed = {i: piece.view_as(weights[i]) for i, piece in zip(order, pieces, strict=True)}
    return [placed[i] for i in range(len(weights))]


def last_real(outputs: Tensor, mask: Mask, *, numerator: int = 1, denominator: int = 1) -> Tensor:
    """Each video's output (B, W) at the given share of its F real frames, the ceil(share · F)-th of them."""
    if mask is None:
        T = outputs.shape[1]
        return outputs[:, (T * numerator + denominator - 1) // denominator - 1]
    counts = mask.counts if isinstance(mask, Ragged) else mask.sum(1)
    step = (counts * numerator + denominator - 1) // denominator - 1
    if isinstance(mask, Ragged):
        row = torch.where(counts > 0, counts.cumsum(0) - counts + step, len(outputs))
        return F.pad(outputs, (0, 0, 0, 1))[row]  # zeros for a video without frames
    return outputs[torch.arange(outputs.shape[0], device=outputs.device), step.clamp_min(0)]


class Stack(nn.Module):
    """Layers on top of each other, which every recurrent pool is: frames and their mask to a vector a video.

    `units` are the widths from the bottom, and `layer` makes one from the width it reads and its own.
    `readout` is "last" for the final h of the top layer; "states" for every final state of every layer (the
    classifier's input in Willow's code); "thirds" for the mean of the top outputs at a third, two thirds and
    the end of the video; "attention" for their sum under softmax_t(v·h_t).
    """

    ordered = True
    packs = True

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

    def outputs(self, frames: Tensor, mask: Mask = None) -> Tensor:
        """What the top layer puts out in each frame, (..., W) for frames (..., D); zeros in padded ones."""
        for layer in self.layers:
            frames, _ = layer(frames, mask)
        return frames

    def forward(self, frames: Tensor, mask: Mask = None) -> Tensor:
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
        return total(softmax_over_frames(self.attention(outputs), mask) * outputs, mask)
