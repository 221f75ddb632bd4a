"""A batch of images of which some cannot be read.

A processor that meets one damaged file in a batch of sixteen raises, and says neither which nor
anything about the other fifteen.

    batch = prepare(processor, ["cup.jpg", "torn.jpg"], [prompt, prompt])
    model.generate(**batch.inputs)           # for batch.taken, here (0,)
    batch.refused                            # {1: "image 'torn.jpg' is truncated or damaged: ..."}
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from redlib.errors import RedlibError
from redlib.pictures import open_image, read_image

Images = Image.Image | str | Path


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a processor made of a batch.

    Attributes:
        inputs: for the model.
        taken: which of the batch they stand for, in order.
        refused: why each of the others does not.
    """

    inputs: Mapping[str, object]
    taken: tuple[int, ...]
    refused: Mapping[int, str]


def prepare(
    processor: object,
    images: Sequence[Images | Sequence[Images]],
    texts: Sequence[str],
    **options: object,
) -> Prepared:
    """Process a batch, without those of it that cannot be.

    Args:
        processor: a stock processor.
        images: for each text an image or a file, or a list of them; seen as `redlib.pictures` does.
        texts: prompts with the processor's placeholders.
        options: for the processor; by default padding and tensors of torch.

    Raises:
        RedlibError: one of them in place of a list, lengths differ, nothing is left, or what is
            left is refused together.
    """
    for name, value in (("images", images), ("texts", texts)):
        if isinstance(value, Images):
            told = reprlib.repr(value)  # prompts may be long
            raise RedlibError(f"{name} must be a list, one for each of the batch; got {told}")
    if len(images) != len(texts):
        raise RedlibError(f"{len(texts)} texts need as many images; got {len(images)}")
    if not texts:
        raise RedlibError("texts: none; an image and a text at least are wanted")
    options = {"padding": True, "return_tensors": "pt", **options}

    def process(which: Sequence[int]) -> Mapping[str, object]:
        return processor(
            images=[opened[i] for i in which], text=[texts[i] for i in which], **options
        )

    opened, refused = {}, {}
    for i, each in enumerate(images):
        try:
            several = isinstance(each, list | tuple)
            opened[i] = [_open(one, i) for one in each] if several else _open(each, i)
        except RedlibError as error:
            refused[i] = str(error)
    while opened:
        try:
            return Prepared(process(list(opened)), tuple(opened), refused)
        except Exception as error:  # of many kinds
            before = len(opened)
            for i in list(opened):
                try:
                    process([i])
                except Exception as alone:
                    refused[i] = f"the processor refuses it: {alone}"
                    del opened[i]
            if len(opened) == before:  # each alone goes through
                raise RedlibError(f"the processor refuses the batch: {error}") from error
    raise RedlibError(f"no image of {len(texts)} is left; the first: {min(refused.items())[1]}")


def _open(image: Images, number: int) -> Image.Image:
    if isinstance(image, str | Path):
        return open_image(image)
    # What is neither the processor may know, or refuse.
    return read_image(image, f"number {number}") if isinstance(image, Image.Image) else image
