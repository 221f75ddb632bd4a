"""An image with the patches that go covered, or greyed, for the figures that show what stays.

A method drops tokens, a reader sees patches; so a token that goes is shown as a veil over its
patch, in a colour that no ground and no object has, so that nobody takes it for a part of the
scene. It shows which tokens went and not what the model lost: the tower lets every token look at
the whole image, so that one that stays may hold what its neighbours showed.

    veiled(ax, view, kept_patches("0 17 575", grid), grid)     # as tables keep what stayed
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from PIL import Image

from redlib.figures import style
from redlib.geometry import Grid
from redlib.study.qualitative import mask

_VEIL = "#C7D0DA"  # no colour of a ground or an object


def kept_patches(numbers: str, grid: Grid) -> np.ndarray:
    """(L,) bool: the patches that stay, from their numbers as tables hold them, "0 17 575"."""
    return mask([int(number) for number in numbers.split()], grid.size)


def veiled(ax: Axes, image: Image.Image, stays: np.ndarray, grid: Grid) -> None:
    """The image with the patches that go covered."""
    style.image_panel(ax, image, grid)
    veil = np.tile(to_rgba(_VEIL), (grid.height, grid.width, 1))
    veil[..., 3] = 0.9 * ~stays.reshape(grid.height, grid.width)
    ax.imshow(veil, extent=(0, grid.width, grid.height, 0))
    grey = style.COLOURS["grey"]
    ax.add_patch(Rectangle((0, 0), grid.width, grid.height, fill=False, edgecolor=grey, lw=1))


def greyed(ax: Axes, image: Image.Image, stays: np.ndarray, grid: Grid) -> None:
    """The image with the patches that go in pale grey, still to be seen and ready for a tint;
    stays: (L,) bool."""
    style.image_panel(ax, image, grid)
    pale = style.faded(image)
    goes = Image.fromarray(~stays.reshape(grid.height, grid.width))
    alpha = np.asarray(goes.resize(image.size, Image.Resampling.NEAREST), dtype=float)
    ax.imshow(np.dstack([pale, pale, pale, alpha]), extent=(0, grid.width, grid.height, 0))
