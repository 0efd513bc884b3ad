from __future__ import annotations

import numpy as np

from tagreel.encoders.mel import Mel
from tests.encoders.test_vggish import log_mel_by_hand


def example(folder, seed):
    return "audio", "mel", []


def test_mean_and_deviation_of_each_band():
    sound = np.random.default_rng(0).uniform(-1, 1, (2, 15600)).astype(np.float32)
    expected = [np.concatenate([bands.mean(0), bands.std(0)]) for bands in map(log_mel_by_hand, sound)]
    np.testing.assert_allclose(Mel()(sound), expected, rtol=1e-5, atol=1e-6)


def test_a_tone_stands_out_in_its_band_and_is_steady():
    seconds = np.arange(15600) / 16000
    found = Mel()(np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)[None])[0]
    mel = 1127 * np.log1p(np.array([125, 1000, 7500]) / 700)
    assert abs(found[:64].argmax() - ((mel[1] - mel[0]) / (mel[2] - mel[0]) * 65 - 1)) <= 1
    assert found[64 + found[:64].argmax()] < 0.05
