"""Two recurrent layers over videos of 120 to 300 frames: our scan, and PyTorch's ways with the same weights.

    python benchmarks/recurrent.py --models GRU --batch 32

1,152 features; GRU of 1,200 units, LSTM of 1,024, LSTM with layer norm (which PyTorch has not). "scan" is
ours, over packed frames; "padded" is `torch.nn.GRU` or `LSTM` over padded ones, which is also what a kernel
costs that holds the state in padding; "packed" is the same over a `PackedSequence`; "plain" is our scan
without oneDNN's products at each step. Videos a second of a training step and of a forward pass, medians, the
ways taking turns: by processor time for one thread, by the clock for more. "difference" is the largest
between a way's outputs and those of the scan in float32; a fresh LSTM with layer norm is chaotic, and two
hundred frames make any rounding as large as its outputs. A batch of 32 needs 2 GB, one of 128 needs 6.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tagreel.layers import repeated
from tagreel.layers.ragged import Ragged, pad
from tagreel.layers.recurrence import Stack
from tagreel.pools.gru import GRU
from tagreel.pools.layer_norm_lstm import LayerNormLSTM
from tagreel.pools.lstm import LSTM

WIDTH = 1152
MODELS: dict[str, Callable[[], Stack]] = {
    "GRU": lambda: GRU(WIDTH, units=(1200, 1200)),
    "LSTM": lambda: LSTM(WIDTH, units=(1024, 1024)),
    "LayerNormLSTM": lambda: LayerNormLSTM(WIDTH, units=(1024, 1024)),
}
PRECISIONS = {"float32": False, "bfloat16": True}
Read = Callable[[], Tensor]
"""Reads the videos: what the top layer puts out, packed (ΣT, W)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--batch", type=int, nargs="+", default=[32], help="videos in a batch")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=[*PRECISIONS])
    parser.add_argument("--ways", nargs="+", default=["scan", "padded", "packed", "plain"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3, help="runs of each way, after one that does not count")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"videos/s; {options.threads} thread(s), median of {options.runs}; in brackets the times of scan")
    columns = f"{'model':<14} {'batch':>5} {'precision':<9} {'way':<7}"
    print(f"{columns} {'training':>16} {'inference':>16} {'difference':>10}")
    for model in options.models:
        for batch in options.batch:
            for precision in options.precisions:
                compare(model, batch, precision, options.ways, options.runs)


def compare(model: str, batch: int, precision: str, wanted: list[str], runs: int) -> None:
    torch.manual_seed(0)
    stack = MODELS[model]()
    lengths = torch.randint(120, 301, (batch,))
    ragged = Ragged(lengths.tolist(), lengths.device)
    frames = torch.randn(len(ragged.videos), WIDTH) / WIDTH**0.5
    with torch.inference_mode():
        exact = stack.outputs(frames, ragged)
    reads = {way: read for way, read in ways(stack, frames, ragged).items() if way in wanted}
    training = measure({way: lambda read=read: train(read, precision) for way, read in reads.items()}, runs)
    inference = measure({way: lambda read=read: infer(read, precision) for way, read in reads.items()}, runs)
    for way, read in reads.items():
        cells = []
        for times in (training, inference):
            share = f"({times[way] / times['scan']:.2f})" if "scan" in times else ""
            cells.append(f"{batch / times[way]:>9.2f} {share:>6}")
        difference = (infer(read, precision) - exact).abs().max()
        print(
            f"{model:<14} {batch:>5} {precision:<9} {way:<7} {' '.join(cells)} {difference:>10.1e}",
            flush=True,
        )


def ways(stack: Stack, frames: Tensor, ragged: Ragged) -> dict[str, Read]:
    """The ways that there are to run such layers, with the same weights."""

    def plain() -> Tensor:
        fast, repeated._is_fast = repeated._is_fast, lambda x: False
        try:
            return stack.outputs(frames, ragged)
        finally:
            repeated._is_fast = fast

    ours: dict[str, Read] = {"scan": lambda: stack.outputs(frames, ragged), "plain": plain}
    if isinstance(stack, LayerNormLSTM):
        return ours
    twin = torchs(stack)
    padded_frames = pad(frames, ragged)
    lengths = ragged.counts

    def packed() -> Tensor:
        sequence = pack_padded_sequence(padded_frames, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(twin(sequence)[0], batch_first=True)[0][ragged.mask]

    return ours | {"padded": lambda: twin(padded_frames)[0][ragged.mask], "packed": packed}


def torchs(stack: Stack) -> nn.RNNBase:
    """`torch.nn.GRU` or `LSTM` with the weights of ours."""
    kind = nn.GRU if isinstance(stack, GRU) else nn.LSTM
    units = stack.layers[0].out_dim
    twin = kind(WIDTH, units, num_layers=len(stack.layers), batch_first=True)
    with torch.no_grad():
        for number, layer in enumerate(stack.layers):
            of_frames, of_state, bias = layer.cells[0].fused()
            getattr(twin, f"weight_ih_l{number}").copy_(of_frames)
            getattr(twin, f"weight_hh_l{number}").copy_(of_state)
            getattr(twin, f"bias_ih_l{number}").copy_(bias)
            getattr(twin, f"bias_hh_l{number}").zero_()
    return twin


def train(read: Read, precision: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[precision]):
        outputs = read()
    outputs.float().square().mean().backward()


@torch.inference_mode()
def infer(read: Read, precision: str) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[precision]):
        return read().float()


def measure(ways: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each, after one run that does not count."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {way: [] for way in ways}
    for run in range(runs + 1):
        for way, work in ways.items():
            start = clock()
            work()
            if run:
                times[way].append(clock() - start)
    return {way: median(seconds) for way, seconds in times.items()}


if __name__ == "__main__":
    main()
