from __future__ import annotations

import pytest

from tagreel.ensembles.weighted import Weighted

# CMU Informedia's table 4: the video-level models are those at these places.
TABLE_4 = (
    *(36, 35, 34, 31, 28, 28, 28, 27, 27, 27, 27, 26, 26, 26, 26, 25, 25, 25, 25, 25, 25, 24, 24, 24, 24, 24),
    *(23, 23, 23, 23, 22, 22, 22, 22, 22),
)
VIDEO_LEVEL = (4, 5, 6, 7, 9, 10, 11, 13, 14, 16, 17, 18, 19, 20, 23, 27, 29, 31, 35)


def test_weights_count_by_their_share(panel):
    assert Weighted(weights=(3, 0, 2, 4, 1))(panel).tolist() == [0.3, 0.0, 0.2, 0.4, 0.1]


def test_those_of_the_paper(panel):
    panel.names = [f"m{number:02d}" for number in range(1, 36)]
    weights = Weighted(weights=TABLE_4)(panel)
    assert weights[0].item() == pytest.approx(36 / 904)
    assert sum(weights[number - 1].item() for number in VIDEO_LEVEL) == pytest.approx(0.5387, abs=5e-5)


@pytest.mark.parametrize("weights", [(), (1, 2, 3, 4), (1,) * 6])
def test_one_a_model_is_expected(weights, panel):
    with pytest.raises(
        ValueError, match=rf"weights has {len(weights)} numbers for 5 models; .* model 0, model"
    ):
        Weighted(weights=weights)(panel)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [((1, -1), "holds -1"), ((float("nan"),), "nan"), ((0, 0), "has the sum 0"), ((float("inf"), 1), "inf")],
)
def test_what_is_no_weight_is_refused(weights, reason):
    with pytest.raises(ValueError, match=reason):
        Weighted(weights=weights)
