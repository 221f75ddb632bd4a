"""Where a visual token sits in its image.

A vision transformer cuts its square input into patches of 14 x 14 pixels and hands the language
model one visual token for each, in raster order: LLaVA-1.5 sees 336 x 336 pixels as 24 x 24
patches, so token 25 is the second patch of the second row. Everything the paper does to tokens is
said in terms of that grid: a 3 x 3 window around a patch, every third row and column, the pixels
behind one token.

    >>> grid = Grid(24, 24)
    >>> grid.index(1, 1), grid.row_col(25)
    (25, (1, 1))
    >>> grid.window(25).tolist()
    [0, 1, 2, 24, 25, 26, 48, 49, 50]
    >>> len(grid.stride(start=1, step=3))
    64

Rows, columns and indices count from 0 throughout.
"""

from dataclasses import dataclass

import numpy as np

from redlib.errors import RedlibError

WINDOW = 3
"""Side of the region around a patch, in patches (section 3.1.2)."""

RELEASE_TOKENS = 576
RELEASE_BLOCKS = (
    (0, 24), (36, 8), (72, 8), (144, 8), (216, 8), (288, 8), (360, 8), (432, 8), (504, 8), (568, 8),
)  # fmt: skip
"""(first rank, length) of the blocks of [cls]-similarity ranks that the released code probes."""


@dataclass(frozen=True)
class Sight:
    """How a vision tower sees an image: resized to `side` x `side` pixels, of which every full
    square of `patch` pixels becomes a token. `crop`: its centre square alone (LLaVA-1.5), else all
    of it, squeezed (the base tile of Next and OneVision)."""

    side: int = 336
    patch: int = 14
    crop: bool = True

    @property
    def cells(self) -> int:
        """Patches along a side."""
        return self.side // self.patch


@dataclass(frozen=True)
class Grid:
    """A grid of `height` x `width` patches, numbered in raster order.

    Raises RedlibError for a side below 1.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise RedlibError(f"a grid needs positive sides; got {self.height} x {self.width}")

    @property
    def size(self) -> int:
        """Number of patches L."""
        return self.height * self.width

    def index(self, row: int, col: int) -> int:
        """Raster index of the patch in `row` and `col`. Raises RedlibError if there is none."""
        if not (0 <= row < self.height and 0 <= col < self.width):
            raise RedlibError(
                f"row {row}, column {col} lies outside the {self.height} x {self.width} grid"
            )
        return row * self.width + col

    def row_col(self, index: int) -> tuple[int, int]:
        """Row and column of the patch with raster `index`. Raises RedlibError if there is none."""
        if not 0 <= index < self.size:
            raise RedlibError(f"patch {index} lies outside 0..{self.size - 1}")
        return divmod(int(index), self.width)

    def window(self, index: int) -> np.ndarray:
        """The (9,) raster indices of the 3 x 3 window around a patch, ascending.

        At the border the window is moved inside the grid instead of being cut, so it always holds
        nine patches and the target may lie off its centre; patches near the border then share
        windows (484 distinct ones among 576). Raises RedlibError if the grid is smaller than one.
        """
        if self.height < WINDOW or self.width < WINDOW:
            raise RedlibError(
                f"a 3 x 3 window does not fit into a {self.height} x {self.width} grid"
            )
        row, col = self.row_col(index)
        top = min(max(row - 1, 0), self.height - WINDOW)
        left = min(max(col - 1, 0), self.width - WINDOW)
        rows, cols = np.mgrid[top : top + WINDOW, left : left + WINDOW]
        return (rows * self.width + cols).ravel()  # (9,)

    def stride(self, *, start: int = 1, step: int = 3) -> np.ndarray:
        """(n,) raster indices of every `step`-th row and column from `start`: 64 of 24 x 24.

        Raises RedlibError for a negative start, or a step below 1.
        """
        if start < 0 or step < 1:
            raise RedlibError(f"start must be >= 0 and step >= 1; got {start} and {step}")
        rows = np.arange(start, self.height, step)
        cols = np.arange(start, self.width, step)
        return (rows[:, None] * self.width + cols[None, :]).ravel()

    def pixel_box(self, index: int, side: int | tuple[int, int]) -> tuple[int, int, int, int]:
        """Pixels of a patch as (left, top, right, bottom), right and bottom excluded.

        `side` is the side of the model's square input, or its (width, height).
        """
        width, height = (side, side) if isinstance(side, int) else side
        row, col = self.row_col(index)
        return (
            col * width // self.width,
            row * height // self.height,
            (col + 1) * width // self.width,
            (row + 1) * height // self.height,
        )


def release_ranks(tokens: int = RELEASE_TOKENS) -> np.ndarray:
    """The ranks, by falling similarity to [cls], that the released codebook code probes.

    The paper's Algorithm 1 reads every patch; the release reads ten blocks of ranks, 96 of 576,
    dense at the top and spread to the very end. For another number of tokens the blocks keep their
    lengths and their first ranks are stretched so that the last block still ends at the last rank.
    Below 576 tokens blocks may then overlap, which leaves fewer than 96 ranks.

    Returns 0-based ranks, ascending and distinct: (96,) for 576 tokens or more. Raises RedlibError
    if there is no token.
    """
    if tokens < 1:
        raise RedlibError(f"the number of tokens must be positive; got {tokens}")
    ranks = []
    for first, length in RELEASE_BLOCKS:
        room = max(tokens - length, 0)
        start = round(first * room / (RELEASE_TOKENS - length))
        ranks.extend(range(start, min(start + length, tokens)))
    return np.unique(np.asarray(ranks, dtype=np.int64))
