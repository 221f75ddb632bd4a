import numpy as np
import pytest

from redlib.errors import RedlibError
from redlib.geometry import Grid, release_ranks


def test_index_and_row_col_are_inverse():
    grid = Grid(3, 5)
    places = [grid.row_col(i) for i in range(grid.size)]
    assert places == [(r, c) for r in range(3) for c in range(5)]
    assert [grid.index(*place) for place in places] == list(range(15))


def test_window_holds_nine_neighbours_and_is_moved_inside_at_the_border():
    grid = Grid(24, 24)
    for patch in range(grid.size):
        window = grid.window(patch)
        rows, cols = window // 24, window % 24
        assert window.shape == (9,) and patch in window
        assert (np.diff(window) > 0).all()
        assert np.ptp(rows) == np.ptp(cols) == 2
        row, col = grid.row_col(patch)
        if 0 < row < 23 and 0 < col < 23:
            assert window[4] == patch


@pytest.mark.parametrize(("side", "distinct"), [(24, 484), (27, 625)])
def test_border_patches_share_windows(side: int, distinct: int):
    grid = Grid(side, side)
    assert len({tuple(grid.window(patch)) for patch in range(grid.size)}) == distinct


def test_stride_is_the_release_sample_of_64_patches():
    places = [Grid(24, 24).row_col(i) for i in Grid(24, 24).stride(start=1, step=3)]
    assert places == [(r, c) for r in range(1, 24, 3) for c in range(1, 24, 3)]
    assert len(places) == 64


def test_release_ranks_are_the_released_blocks():
    one_based = [
        *range(1, 25), *range(37, 45), *range(73, 81), *range(145, 153), *range(217, 225),
        *range(289, 297), *range(361, 369), *range(433, 441), *range(505, 513), *range(569, 577),
    ]  # fmt: skip
    assert (release_ranks(576) + 1).tolist() == one_based
    assert len(one_based) == 96


@pytest.mark.parametrize("tokens", [1, 20, 25, 144, 576, 729, 2880])
def test_release_ranks_fit_any_number_of_tokens(tokens: int):
    ranks = release_ranks(tokens)
    assert ranks[0] == 0 and ranks[-1] == tokens - 1
    assert (np.diff(ranks) > 0).all()
    if tokens >= 576:
        assert len(ranks) == 96


def test_pixel_boxes_tile_the_image():
    grid = Grid(24, 24)
    assert grid.pixel_box(25, 336) == (14, 14, 28, 28)
    covered = np.zeros((50, 61), int)
    for patch in range(grid.size):
        left, top, right, bottom = grid.pixel_box(patch, (61, 50))
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Grid(0, 4), "0 x 4"),
        (lambda: Grid(2, 2).index(2, 0), "row 2, column 0"),
        (lambda: Grid(2, 2).row_col(4), "patch 4 lies outside 0..3"),
        (lambda: Grid(2, 4).window(0), "3 x 3 window"),
        (lambda: Grid(4, 4).stride(step=0), "step >= 1"),
        (lambda: release_ranks(0), "positive"),
    ],
)
def test_mistakes_are_named(call, words: str):
    with pytest.raises(RedlibError, match=words):
        call()
