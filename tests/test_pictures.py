"""Image files as the model may see them, and those that it may not."""

from pathlib import Path

import numpy as np
import pytest
from conftest import random_image
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from redlib.errors import RedlibError
from redlib.pictures import open_image, read_image


def test_images_are_converted(tmp_path: Path):
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("RGBA", (8, 6), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("I;16", (8, 6), 40_000).save(tmp_path / "deep.png")
    upright = Image.Exif()
    upright[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=upright)
    red = np.asarray(open_image(tmp_path / "cmyk.jpg"), int)[3, 3]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    assert (np.asarray(open_image(tmp_path / "clear.png")) == 255).all()
    assert np.unique(open_image(tmp_path / "deep.png")).tolist() == [40_000 // 256]
    assert open_image(tmp_path / "deep.png").mode == "RGB"
    assert open_image(tmp_path / "turned.jpg").size == (6, 8)


def test_16_bits_and_transparency(tmp_path: Path):
    values = np.array([[300, 40_000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "clear.png", transparency=300)
    assert np.asarray(open_image(tmp_path / "clear.png"))[0, :, 0].tolist() == [255, 156]
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 1 65535\n" + values.astype(">u2").tobytes())
    assert np.asarray(open_image(tmp_path / "deep.pgm"))[0, :, 0].tolist() == [1, 156]


def test_an_image_of_pillow_is_seen_as_its_file(tmp_path: Path):
    deep, clear = Image.new("I;16", (8, 6), 40_000), Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    for name, image in (("deep.png", deep), ("clear.png", clear)):
        image.save(tmp_path / name)
        expected = np.asarray(open_image(tmp_path / name))
        assert np.array_equal(np.asarray(read_image(image, "mine")), expected)
    with Image.open(tmp_path / "deep.png") as file:
        read_image(file, "mine")
        assert file.size == (8, 6) and file.getpixel((0, 0)) == 40_000, "still open"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.new("F", (8, 6)), "image 'mine' has 32 bits per pixel"),
        (Image.new("I", (8, 6)), "image 'mine' has 32 bits per pixel"),
        (Image.new("RGB", (510, 10)), "image 'mine' is 510 x 10: one side may be at most"),
        (Image.new("RGB", (0, 6)), "image 'mine' has no pixels"),
    ],
)
def test_an_image_of_pillow_passes_the_same_guards(image: Image.Image, words: str):
    with pytest.raises(RedlibError, match=words):
        read_image(image, "mine")


@pytest.mark.parametrize("kind", [RuntimeError, IndexError, EOFError])
def test_whatever_a_decoder_raises_is_told_in_one_line(tmp_path: Path, monkeypatch, kind: type):
    def fail(*_):
        raise kind("Failed to decode image")

    Image.new("RGB", (8, 6)).save(tmp_path / "x.png")
    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(RedlibError, match=r"x\.png' is truncated or damaged: Failed to decode"):
        open_image(tmp_path / "x.png")


def test_bad_images_are_refused_in_one_line(tmp_path: Path):
    random_image(0, width=300, height=300).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    Image.new("RGB", (510, 10)).save(tmp_path / "strip.png")
    Image.new("F", (8, 6), 0.5).save(tmp_path / "float.tiff")
    cases = {
        "missing.png": "does not exist",
        ".": "not a file",
        "truncated.png": "truncated or damaged",
        "empty.png": "empty",
        "text.png": "not an image",
        "strip.png": "510 x 10: one side may be at most 50 times the other",
        "float.tiff": "32 bits per pixel",
        "x" * 300 + ".png": "cannot be looked up|does not exist",
    }
    for name, words in cases.items():
        with pytest.raises(RedlibError, match=words) as error:
            open_image(tmp_path / name)
        assert str(tmp_path) in str(error.value)
