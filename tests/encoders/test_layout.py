from __future__ import annotations

import math

import numpy as np
import pytest

from tagreel.encoders.layout import Layout
from tagreel.encoding import find
from tagreel.errors import RecipeError


def example(folder, seed):
    return "rgb", "layout", ["rgb.grid=3"]


def by_hand(picture, grid):
    """The definition in loops."""
    found = []
    light = [[sum(map(int, pixel)) / 3 / 255 for pixel in row] for row in picture]
    size = len(light)

    def slope(before, at, after, first, last):
        return after - at if first else at - before if last else (after - before) / 2

    for top in range(0, size, 16):
        for left in range(0, size, 16):
            cell = picture[top : top + 16, left : left + 16].reshape(-1, 3) / 255
            edges = [0.0] * 8
            for y in range(top, top + 16):
                for x in range(left, left + 16):
                    above, below = light[max(y - 1, 0)][x], light[min(y + 1, size - 1)][x]
                    before, after = light[y][max(x - 1, 0)], light[y][min(x + 1, size - 1)]
                    down = slope(above, light[y][x], below, y == 0, y == size - 1)
                    across = slope(before, light[y][x], after, x == 0, x == size - 1)
                    angle = math.atan2(down, across) % math.pi
                    edges[round(angle / (math.pi / 8)) % 8] += math.hypot(down, across) / 256
            found += [*cell.mean(0), *cell.std(0), *edges]
    return found


def test_it_is_the_definition_in_loops():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = [by_hand(picture, 2) for picture in pictures]
    np.testing.assert_allclose(Layout(grid=2)(pictures), expected, rtol=1e-5, atol=1e-6)


def test_red_above_and_a_fence_below():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :, 0] = 255
    picture[32:, ::4] = 255
    cells = Layout()(picture[None]).reshape(4, 4, 14)
    assert (cells[0, :, :6] == [1, 0, 0, 0, 0, 0]).all()
    assert (cells[3, :, 6] > 0.1).all()
    assert (cells[3, :, 7:] == 0).all()


def test_the_grid_is_part_of_its_identity():
    fine, coarse = (find("layout", [f"rgb.grid={grid}"], slot="rgb") for grid in (4, 2))
    assert (fine.out_dim, coarse.out_dim) == (224, 56)
    assert fine.identity()["options"] == {"grid": 4}
    assert fine.identity()["preparation"] != coarse.identity()["preparation"]


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(RecipeError, match=r"rgb: layout: grid=0: expected 1 cell or more"):
        find("layout", ["rgb.grid=0"], slot="rgb")
