"""One look for all figures.

A figure is read at 800 pixels on a page, in print, by someone who may not tell red from green. So:
one font size that survives shrinking, the colours of Okabe and Ito for kinds, perceptually even
colour maps for amounts, and a name and a unit on every axis. Figures are made as

    figure = style.figure(9, 4)
    left, right = figure.subplots(1, 2)

that is, without pyplot's list of open figures: nothing to close, nothing shared between notebooks.

A map over an image is drawn in units of patches: patch (row, col) is the square from (col, row) to
(col + 1, row + 1), y downwards, so that a rectangle around a window needs no pixel arithmetic.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from io import BytesIO

import numpy as np
from matplotlib import colors, rc_context
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageFilter

from redlib.geometry import Grid

COLOURS: dict[str, str] = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "red": "#D55E00",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "grey": "#6B6F76",
    "black": "#1B1F24",
}
"""The colours of Okabe and Ito, which stay apart under every common colour blindness."""

CYCLE = ("blue", "orange", "green", "purple", "red", "sky")
"""The order in which series take them."""

AMOUNT = "viridis"
"""Colour map of an amount: even, and still ordered in grey print."""

DIFFERENCE = "PuOr"
"""Colour map of a signed difference, white at zero."""

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.edgecolor": "#454C55",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": "cycler('color', " + repr([COLOURS[name] for name in CYCLE]) + ")",
    "grid.color": "#DDE1E6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "errorbar.capsize": 3,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "image.interpolation": "nearest",
    "mathtext.fontset": "dejavusans",
}


@contextmanager
def apply() -> Iterator[None]:
    """Draw in this style inside a `with` block; the reader's own settings come back after it."""
    with rc_context(RC):
        yield


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator of a figure function: it draws in this style."""

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with apply():
            return draw(*args, **kwargs)

    return drawn


def figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches that lays out its panels by itself.

    Keep the width at 10 or below: at 800 pixels on a page its text is then still 9 pixels high.
    """
    return Figure(figsize=(width, height), layout="constrained")


def faded(image: Image.Image, *, towards_white: float = 0.35) -> np.ndarray:
    """The image in grey, paler and without grain, (H, W) float 0..1, as a ground that colours can
    lie on: noise under a map would read as data."""
    smooth = image.convert("L").filter(ImageFilter.MedianFilter(5))
    grey = np.asarray(smooth, dtype=float) / 255
    return towards_white + (1 - towards_white) * grey


def image_panel(ax: Axes, image: Image.Image | np.ndarray, grid: Grid) -> None:
    """Show an image in units of patches, without axes."""
    values = np.asarray(image)
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if values.ndim == 2 else {}
    ax.imshow(values, extent=(0, grid.width, grid.height, 0), **grey)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def patch_map(
    ax: Axes,
    image: Image.Image | None,
    values: Sequence[float],
    grid: Grid,
    *,
    label: str = "",
    cmap: str = AMOUNT,
    norm: colors.Normalize | None = None,
    log: bool = False,
    alpha: float = 0.8,
    bar: bool = True,
) -> Colorbar | None:
    """Lay one value per patch over a faded image.

    Args:
        image: the model's view of the image (`vlm.view`), or None for the bare map.
        values: (L,) in raster order; NaN leaves a patch uncovered.
        label: name and unit, at the colour bar.
        norm: colour scale; by default from the smallest to the largest value.
        log: logarithmic colour scale.
        alpha: opacity of the map; the colour bar shows the same.
        bar: draw a colour bar below the panel.
    """
    table = np.ma.masked_invalid(np.asarray(values, dtype=float).reshape(grid.height, grid.width))
    if log and norm is None:
        positive = table[table > 0]
        norm = colors.LogNorm(positive.min(), positive.max()) if positive.count() else None
    ground = Image.new("L", (8, 8), 255) if image is None else image
    image_panel(ax, faded(ground), grid)
    drawn = ax.imshow(
        table, extent=(0, grid.width, grid.height, 0), cmap=cmap, norm=norm, alpha=alpha
    )
    if not bar:
        return None
    # In the panel's own coordinates, so that panels with and without a bar stay aligned.
    place = ax.inset_axes((0.02, -0.085, 0.96, 0.045))
    made = ax.figure.colorbar(drawn, cax=place, orientation="horizontal", label=label)
    if isinstance(drawn.norm, colors.LogNorm):
        _log_ticks(made, drawn.norm)
    return made


def _log_ticks(bar: Colorbar, norm: colors.LogNorm) -> None:
    """Whole decades where there are at least two, else the ends and the middle, as numbers."""
    first, last = np.ceil(np.log10(norm.vmin)), np.floor(np.log10(norm.vmax))
    decades = np.arange(first, last + 1)
    bar.minorticks_off()
    if len(decades) >= 2:
        chosen = decades[:: -(-len(decades) // 4)]
        bar.set_ticks(10.0**chosen, labels=[f"$10^{{{power:.0f}}}$" for power in chosen])
        return
    ticks = [norm.vmin, np.sqrt(norm.vmin * norm.vmax), norm.vmax]
    bar.set_ticks(ticks, labels=[f"{tick:.1e}" for tick in ticks])


def over_windows(values: Sequence[float], patches: Sequence[int], grid: Grid) -> np.ndarray:
    """(L,) map in which each patch's 3 x 3 window holds its value, NaN elsewhere.

    The windows of `grid.stride()` tile a 24 x 24 grid, so the 64 sampled patches fill the map.
    """
    filled = np.full(grid.size, np.nan)
    for value, patch in zip(values, patches, strict=True):
        filled[grid.window(int(patch))] = value
    return filled


def outline(
    ax: Axes,
    grid: Grid,
    patch: int,
    *,
    colour: str,
    span: int = 1,
    text: str = "",
    width: float = 2,
) -> None:
    """A frame around one patch, or around its 3 x 3 window (span 3), with a white rim, and a text
    in its middle: beside it, the text may stand in the frame of a neighbour."""
    row, col = grid.row_col(int(patch)) if span == 1 else grid.row_col(int(grid.window(patch)[0]))
    for line, tint in ((width + 2, "white"), (width, colour)):
        ax.add_patch(
            Rectangle((col, row), span, span, fill=False, edgecolor=tint, linewidth=line, zorder=5)
        )
    if text:
        ax.text(
            col + span / 2,
            row + span / 2,
            text,
            ha="center",
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=colour,
            zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2},
        )


def ink(background: str | tuple[float, ...]) -> str:
    """Black or white, whichever is read more easily on `background`."""
    red, green, blue = colors.to_rgb(background)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def layer_name(layer: int, depth: int) -> str:
    """A decoder layer, counted from 1 as a reader counts: "layer 4 of 6"."""
    return f"layer {layer + 1} of {depth}"


def png(image: Image.Image) -> bytes:
    """The image as PNG, for `IPython.display.Image`, which unlike Pillow takes an alternative
    text."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
