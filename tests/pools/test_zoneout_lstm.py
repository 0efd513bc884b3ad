from __future__ import annotations

import pytest
import torch

from tagreel.pools.lstm import LSTM
from tagreel.pools.zoneout_lstm import ZoneoutLSTM


def _naive(pool, videos):
    """One layer; in training with the same draws, taken step after step, for the longest video first."""
    [layer] = pool.layers
    [cell] = layer.cells
    H, frames = cell.units, sum(map(len, videos))
    torch.manual_seed(5)
    kept_c = torch.empty(frames, H, dtype=torch.bool).bernoulli_(0.5)
    kept_h = torch.empty(frames, H, dtype=torch.bool).bernoulli_(0.25)
    steps = sorted((t, -len(video), b) for b, video in enumerate(videos) for t in range(len(video)))
    rows = []
    for b, video in enumerate(videos):
        c = h = torch.zeros(H, dtype=torch.float64)
        for t, x in enumerate(video):
            at = steps.index((t, -len(video), b))
            i, f, j, o = (cell.kernel @ torch.cat([x, h]) + cell.bias).view(4, H)
            new_c, new_h = [], []
            for n in range(H):
                plain = c[n] / (1 + torch.exp(-f[n])) + torch.tanh(j[n]) / (1 + torch.exp(-i[n]))
                output = torch.tanh(plain) / (1 + torch.exp(-o[n]))
                if pool.training:
                    new_c.append(c[n] if kept_c[at, n] else plain)
                    new_h.append(h[n] if kept_h[at, n] else output)
                else:
                    new_c.append(0.5 * c[n] + 0.5 * plain)
                    new_h.append(0.25 * h[n] + 0.75 * output)
            c, h = torch.stack(new_c), torch.stack(new_h)
        rows.append(torch.cat([c, h]))
    return torch.stack(rows)


class _Seeded(torch.nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool, self.out_dim = pool, pool.out_dim

    def forward(self, frames, mask):
        torch.manual_seed(5)
        return self.pool(frames, mask)


def test_follows_the_equations(assert_follows):
    torch.manual_seed(0)
    pool = ZoneoutLSTM(5, units=(3,), readout="states", memory_rate=0.5, output_rate=0.25)
    assert_follows(_Seeded(pool), lambda seeded, videos: _naive(seeded.pool, videos), 5)


def test_without_zoneout_it_is_an_lstm():
    torch.manual_seed(0)
    plain = LSTM(5, units=(3, 4), bidirectional=True)
    pool = ZoneoutLSTM(5, units=(3, 4), bidirectional=True, memory_rate=0.0, output_rate=0.0)
    pool.load_state_dict(plain.state_dict())
    frames, mask = torch.randn(3, 6, 5), torch.arange(6) < torch.tensor([[6], [2], [4]])
    torch.testing.assert_close(pool(frames, mask), plain(frames, mask))


def test_evaluation_is_the_expectation_of_one_step_of_training():
    torch.manual_seed(0)
    pool = ZoneoutLSTM(5, units=(3,), readout="states", memory_rate=0.6, output_rate=0.3)
    frame = torch.randn(1, 1, 5)
    drawn = pool(frame.expand(40_000, -1, -1)).mean(0)
    torch.testing.assert_close(drawn, pool.eval()(frame)[0], rtol=0.05, atol=1e-3)


def test_every_draw_is_another_one():
    pool = ZoneoutLSTM(5, units=(30,))
    frames = torch.randn(2, 4, 5)
    assert not torch.equal(pool(frames), pool(frames))


@pytest.mark.parametrize("rates", [{"memory_rate": 1.0}, {"output_rate": -0.1}])
def test_rates_that_are_none_are_named(rates):
    [(name, value)] = rates.items()
    with pytest.raises(ValueError, match=f"{name}={value}.*; expected 0 to less than 1"):
        ZoneoutLSTM(5, **rates)
