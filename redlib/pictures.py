"""Image files, opened as a model may see them: RGB, upright, transparency laid on white.

A photograph may lie on its side and say so in its metadata, have 16 bits per channel, or a
transparent ground. Pillow opens all of these; converted without a look they turn black, clip at
white, or show a kitchen from the side, and a probe would report what the model says of that.

    open_image("kitchen.jpg")              # of a path
    read_image(io.BytesIO(data), "row 3")  # of what a data set holds
    read_image(Image.new("I;16", (8, 6)), "mine")  # of what Pillow has opened
"""

import contextlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from redlib.errors import RedlibError, first_line
from redlib.params import local

MOST_OBLONG = 50
"""Times that one side may be as long as the other."""


def open_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, upright, with transparency laid on white.

    Raises:
        RedlibError: missing, a folder, not an image, truncated, without pixels, too oblong, or of
            32 bits per pixel.
    """
    path = local(path)
    if not path.is_file():
        raise RedlibError(f"image {str(path)!r} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise RedlibError(f"image {str(path)!r} is empty (0 bytes)")
    return read_image(path, str(path))


def read_image(source: Path | BinaryIO | Image.Image, name: str) -> Image.Image:
    """`open_image` of a file, of what a data set holds, or of an image of Pillow.

    name: how to call it in a complaint.

    Raises:
        RedlibError: as `open_image`.
    """
    given = isinstance(source, Image.Image)
    try:
        # An image that was given stays open: its owner may want it again.
        with contextlib.nullcontext(source) if given else Image.open(source) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
            # A grey PGM of more than 8 bits comes in mode I, its values stretched to 16.
            deep = image.mode.startswith("I;16") or (image.mode, file.format) == ("I", "PPM")
    except UnidentifiedImageError as error:
        raise RedlibError(f"{name!r} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise RedlibError(f"image {name!r} is too large: {first_line(error)}") from error
    except MemoryError:
        raise
    except Exception as error:  # damage may end in any error of the libraries that decode it
        raise RedlibError(f"image {name!r} is truncated or damaged: {first_line(error)}") from error
    if image.width == 0 or image.height == 0:
        raise RedlibError(f"image {name!r} has no pixels ({image.width} x {image.height})")
    if max(image.size) > MOST_OBLONG * min(image.size):
        raise RedlibError(
            f"image {name!r} is {image.width} x {image.height}: one side may be at most"
            f" {MOST_OBLONG} times the other, crop it"
        )
    # Pillow would clip what needs more than 8 bits at 255.
    if deep:
        values = np.asarray(image)
        clear = values == image.info.get("transparency")  # which no array of 8 bits would keep
        image = Image.fromarray(np.where(clear, 255, values >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise RedlibError(
            f"image {name!r} has 32 bits per pixel (mode {image.mode}); save it with 8 or 16"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
