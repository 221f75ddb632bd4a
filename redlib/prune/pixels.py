"""The tiles of every image and the frames of every film, from what the processor made.

    LLaVA-1.5               pixel_values (B, 3, side, side)
    LLaVA-Next, OneVision   pixel_values (B, n, 3, side, side), padded to the image with most tiles,
                            or (N, 3, side, side), one image's tiles behind another's; and
                            image_sizes (B, 2), (height, width) in pixels before they were cut
    OneVision's films       pixel_values_videos (B, n, 3, side, side)

What is of another shape would end in an error from deep within the tower, so it is refused here.
"""

import reprlib
from collections.abc import Mapping

from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from redlib.errors import RedlibError


def tiles_of(given: Mapping[str, object], config: object) -> list[tuple[Tensor, tuple | None]]:
    """Tiles (n, 3, side, side) of each image, and its (height, width) where it was cut.

    Args:
        given: what the processor made, with `pixel_values`.
        config: of the model.

    Raises:
        RedlibError: pixels or sizes of another type or shape, or that do not belong together.
    """
    if config.model_type == "llava":
        return [(tile[None], None) for tile in _pixels(given, "pixel_values", config, "B")]
    pixels = _pixels(given, "pixel_values", config, "B, n", "N")
    if given.get("image_sizes") is None:
        raise RedlibError("image_sizes is missing beside pixel_values: pass all the processor made")
    sizes = _sizes(given["image_sizes"])
    cut = [True] * len(sizes)
    if config.model_type == "llava_onevision" and given.get("batch_num_images") is not None:
        counts = [int(n) for n in given["batch_num_images"]]
        cut = [n == 1 for n in counts for _ in range(n)]
    counts = [
        image_size_to_num_patches(
            size, config.image_grid_pinpoints, config.vision_config.image_size
        )
        if tiled
        else 1
        for size, tiled in zip(sizes, cut, strict=False)
    ]
    padded = pixels.ndim == 5  # to the image with most tiles
    held, named = len(pixels), len(counts) if padded else sum(counts)
    short = padded and pixels.shape[1] < max(counts, default=0)
    if len(sizes) != len(cut) or held != named or short:
        raise RedlibError(
            f"image_sizes (of {len(sizes)} images) and pixel_values {tuple(pixels.shape)} do not "
            "belong together: pass all that the processor made"
        )
    if padded:
        parts = [tiles[:n] for tiles, n in zip(pixels, counts, strict=True)]
    else:
        parts = list(pixels.split(counts))
    return [
        (part, size if tiled else None) for part, size, tiled in zip(parts, sizes, cut, strict=True)
    ]


def films_of(given: Mapping[str, object], config: object) -> Tensor:
    """(B, n, 3, side, side) frames of each film.

    Args:
        given: what the processor made, with `pixel_values_videos`.
        config: of the model.

    Raises:
        RedlibError: frames of another type or shape, or a model that takes no films.
    """
    if getattr(config, "video_token_id", None) is None:
        raise RedlibError("this model takes no films: leave out pixel_values_videos")
    return _pixels(given, "pixel_values_videos", config, "B, n")


def _pixels(given: Mapping[str, object], name: str, config: object, *leading: str) -> Tensor:
    """The tensor of this name, whose shape in front of (3, side, side) is one of `leading`."""
    pixels, vision = given[name], config.vision_config
    tile = (vision.num_channels, vision.image_size, vision.image_size)
    fits = isinstance(pixels, Tensor) and pixels.shape[-3:] == tile
    if not fits or pixels.ndim - 3 not in [len(each.split()) for each in leading]:
        shapes = " or ".join(f"({each}, {', '.join(map(str, tile))})" for each in leading)
        shape = f" {tuple(pixels.shape)}" if hasattr(pixels, "shape") else ""
        raise RedlibError(
            f"{name} must be a tensor {shapes}, as the processor makes it with "
            f"return_tensors='pt'; got {type(pixels).__name__}{shape}"
        )
    return pixels


def _sizes(sizes: object) -> list[tuple[int, int]]:
    """(height, width) of each image."""
    try:
        found = [tuple(int(n) for n in size) for size in sizes]
        fits = all(len(size) == 2 and min(size) > 0 for size in found)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # no sequence, or no number
        fits = False
    if not fits:
        raise RedlibError(
            "image_sizes must hold one (height, width) in pixels per image; got "
            f"{reprlib.repr(sizes)}: pass all that the processor made"
        )
    return found
