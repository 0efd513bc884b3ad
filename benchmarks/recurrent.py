"""One layer of LSTM or GRU over videos of 120 to 300 frames: packed, padded in one kernel, frame by frame.

    python benchmarks/recurrent.py

32 videos of 1,152 features, 512 units, one thread. "packed" is PyTorch's `pack_padded_sequence` and
`nn.LSTM`; "padded kernel" is ours, where a gate holds the state in padded frames; "frame by frame" is our
scan over the same cells, which models without a kernel need. The ways take turns; medians, in milliseconds
of processor time.
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

from tagreel.layers.gru_cell import GRULayer
from tagreel.layers.layer_norm_lstm_cell import LayerNormLSTMLayer
from tagreel.layers.lstm_cell import LSTMLayer
from tagreel.layers.recurrence import Recurrence

VIDEOS, WIDTH, UNITS = 32, 1152, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each way")
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lengths = torch.randint(120, 301, (VIDEOS,))
    frames = torch.randn(VIDEOS, int(lengths.max()), WIDTH) / WIDTH**0.5
    mask = torch.arange(frames.shape[1]) < lengths[:, None]
    print(f"{'layer':<20} {'way':<16} {'training':>10} {'of packed':>10} {'inference':>10} {'of packed':>10}")
    for name, ways in layers(lengths).items():
        training = measure(
            {way: lambda read=read: train(read, frames, mask) for way, read in ways.items()}, runs
        )
        inference = measure(
            {way: lambda read=read: infer(read, frames, mask) for way, read in ways.items()}, runs
        )
        for way in ways:
            cells = [f"{times[way] * 1e3:>10.0f} {share(times, way):>10}" for times in (training, inference)]
            print(f"{name:<20} {way:<16} {' '.join(cells)}")


def layers(lengths: Tensor) -> dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Each kind of layer, in the ways that there are to run it."""

    def packed(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        def read(frames: Tensor, mask: Tensor) -> Tensor:
            sequence = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(layer(sequence)[0], batch_first=True)[0]

        return read

    def ways(layer: Recurrence, torchs: nn.Module) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        return {
            "packed": packed(torchs),
            "padded kernel": lambda frames, mask: layer(frames, mask)[0],
            "frame by frame": lambda frames, mask: Recurrence.forward(layer, frames, mask)[0],
        }

    normed = LayerNormLSTMLayer(WIDTH, UNITS)
    return {
        "LSTM": ways(LSTMLayer(WIDTH, UNITS), nn.LSTM(WIDTH, UNITS, batch_first=True)),
        "GRU": ways(GRULayer(WIDTH, UNITS), nn.GRU(WIDTH, UNITS, batch_first=True)),
        "LSTM with layer norm": {"frame by frame": lambda frames, mask: normed(frames, mask)[0]},
    }


def train(read: Callable[[Tensor, Tensor], Tensor], frames: Tensor, mask: Tensor) -> None:
    read(frames, mask).sum().backward()


@torch.inference_mode()
def infer(read: Callable[[Tensor, Tensor], Tensor], frames: Tensor, mask: Tensor) -> None:
    read(frames, mask)


def measure(ways: dict[str, Callable[[], None]], runs: int) -> dict[str, float]:
    """Median processor seconds of each, after one run that does not count."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for run in range(runs + 1):
        for way, work in ways.items():
            start = time.process_time()
            work()
            if run:
                times[way].append(time.process_time() - start)
    return {way: median(seconds) for way, seconds in times.items()}


def share(times: dict[str, float], way: str) -> str:
    return f"{times[way] / times['packed']:.2f}" if "packed" in times else ""


if __name__ == "__main__":
    main()
