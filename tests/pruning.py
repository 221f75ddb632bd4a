"""Small random models of the three families and what a processor makes for them.

The stock processor of OneVision needs torchvision. Where that is missing its prompts are written
here, from the counts that the processor's documentation gives: an image alone in tiles, several of
a prompt as one tile and a newline each, a film as 3 x 3 = 9 tokens a frame (of 5 x 5) and a
newline. Where it is there, a test holds the two together.
"""

from dataclasses import replace

import torch
from conftest import random_image, save_tiny_llava
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available

from redlib import layouts
from redlib.codebook import Codebook, Criteria
from redlib.models import load

CELLS, SIDE = 5, 70
PINS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
KINDS = ("llava", "llava_next", "llava_onevision")
SIZES = [(96, 80), (150, 60), (130, 140)]
"""(width, height) of pictures; cut into tiles of 1 x 2, 1 x 2 and 2 x 2, with padding in some."""


def save(kind: str, folder) -> None:
    """A random checkpoint with a decoder of 4 layers."""
    save_tiny_llava(folder, kind=kind, seed=3, layers=4)


def model_of(folder, dtype=torch.float64):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()


def picture(seed: int):
    width, height = SIZES[seed % len(SIZES)]
    return random_image(seed, width=width, height=height)


TEXTS = ["USER: <image> what is this ?", "the <image> red cup <image> show in the picture ?"]
IMAGES = [[picture(1)], [picture(2), picture(3)]]
"""Two prompts, and the pictures of each."""


class Maker:
    """Processor output for one model."""

    def __init__(self, kind: str, folder) -> None:
        self.kind, self.folder = kind, folder
        if kind == "llava_onevision":
            parts = load(str(folder), device="cpu").processor
            self.tokenizer, self.images = parts.tokenizer, parts.image_processor
            self.processor = None
            if is_torchvision_available():
                replace(parts, video_token="key").save_pretrained(folder / "stock")
                self.processor = AutoProcessor.from_pretrained(folder / "stock")
                self.tokenizer = self.processor.tokenizer
                # whichever pixels: those of torchvision differ from pillow's in the last digits
                self.processor.image_processor = self.images
        else:
            self.processor = AutoProcessor.from_pretrained(folder, backend="pil")
            self.tokenizer = self.processor.tokenizer

    def __call__(self, texts, pictures=(), films=(), side="left") -> dict:
        """Texts with <image> and key (a film) in them; per text a list of pictures."""
        self.tokenizer.padding_side = side
        if self.processor is None or films:  # films of a test have frames of several sizes
            made = self.by_hand(texts, pictures, films)
        else:
            nested = [list(each) for each in pictures if each]
            if self.kind != "llava_onevision":
                nested = [one for each in nested for one in each]
            made = self.processor(
                text=list(texts), images=nested or None, padding=True, return_tensors="pt"
            )
        return {k: v.double() if v.is_floating_point() else v for k, v in made.items()}

    def by_hand(self, texts, pictures, films) -> dict:
        made, lengths = {}, []
        given = [list(each) for each in pictures]
        if any(given):
            made = dict(self.images(images=[g for g in given if g], return_tensors="pt"))
            for each in given:
                for one in each:
                    lengths.append(
                        len(layouts.unpadded(CELLS, one.size[::-1], SIDE, PINS, most=9))
                        if len(each) == 1
                        else CELLS**2 + 1
                    )
        if films:
            frames = [self.images(images=f, return_tensors="pt")["pixel_values"] for f in films]
            made["pixel_values_videos"] = torch.stack(
                [torch.stack([one[0] for one in f]) for f in frames]
            )
        rows = []
        lengths, spans = iter(lengths), iter([9 * len(f) + 1 for f in films])
        for text in texts:
            words = []
            for word in text.split():
                n = next(lengths) if word == "<image>" else next(spans) if word == "key" else 1
                words += [word] * n
            rows.append(self.tokenizer(" ".join(words))["input_ids"])
        padded = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        return {**padded, **made}


@torch.no_grad()
def embeddings(model, inputs, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of TEXTS and IMAGES: (T, D) the whole prompt of one row, unpadded, and (T,) the number of the
    image whose visual token, not newline, stands at a position; -1 elsewhere."""
    names = ("pixel_values", "image_sizes", "batch_num_images")
    packed = model.model.get_image_features(
        **{k: inputs[k] for k in names if k in inputs}, return_dict=True
    ).pooler_output
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    rows = model.get_input_embeddings()(ids)
    at = ids == model.config.image_token_id
    images = [0] if row == 0 else [1, 2]
    visual = torch.cat([packed[i] for i in images])
    owner = torch.cat([torch.full((len(packed[i]),), i) for i in images])
    newline = getattr(model.model, "image_newline", None)
    if newline is not None:
        owner[(visual == newline).all(1)] = -1
    rows[at] = visual
    found = torch.full((len(ids),), -1)
    found[at] = owner
    return rows, found


def turned(vectors, cos, sin) -> torch.Tensor:
    """Queries or keys (..., c) turned by their positions, in pairs of one of either half."""
    a, b = vectors.chunk(2, -1)
    (c, _), (s, _) = cos.chunk(2, -1), sin.chunk(2, -1)
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def codebook(width: int = 48, seed: int = 5, name: str = "any") -> Codebook:
    vectors = torch.randn(7, width, generator=torch.Generator().manual_seed(seed))
    return Codebook(vectors, "abcdefg", range(7), name, "r", Criteria.paper())
