"""The picture of anything that the world can ask about, from its id alone.

Answers name their image by an id, and no picture is stored anywhere: an id holds all that it takes
to draw a scene, a pair, a composite or a film again.

    picture("test-60000012").save("scene.png")
    picture("test-60000012.mantis")           # both scenes, side by side
    picture("test-60000012.frames=16")        # all frames, four in a row
"""

from collections.abc import Sequence

from PIL import Image

from redlib.tabletop import films, pairs, world

_GAP, _ROW = 8, 4


def picture(id: str) -> Image.Image:
    """What the model was shown under this id, in one picture.

    Raises:
        RedlibError: not the id of a scene, pair, composite or film.
    """
    if ".frames=" in id:
        return _sheet(films.redraw_film(id).images)
    if id.endswith(".spot"):
        return pairs.redraw(id).image
    if ".mantis" in id or ".muir" in id:
        return _sheet([scene.image for scene in pairs.redraw(id).scenes])
    return world.redraw(id).image


def _sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Equal pictures from left to right in rows of four, with white between them."""
    width, height = images[0].size
    columns, rows = min(_ROW, len(images)), -(-len(images) // _ROW)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % _ROW * (width + _GAP), k // _ROW * (height + _GAP)))
    return sheet
