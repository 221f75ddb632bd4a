"""Pictures of the reader's own, in a folder.

own("~/games")      # every image file of it, by name
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from redlib.errors import RedlibError
from redlib.params import local
from redlib.pictures import open_image

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Own:
    """An image file.

    Attributes:
        id: its name.
        path: where it lies.
    """

    id: str
    path: Path

    @property
    def image(self) -> Image.Image:
        """In RGB, upright. Raises RedlibError, naming the file, if it cannot be read."""
        return open_image(self.path)


def own(folder: str | Path) -> list[Own]:
    """The image files of a folder by name; other files are passed over.

    Raises:
        RedlibError: no such folder, or no image file in it.
    """
    where = local(folder)
    if not where.is_dir():
        raise RedlibError(f"games_dir: no folder {str(where)!r}")
    found = sorted(p for p in where.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())
    if not found:
        raise RedlibError(f"games_dir: no image in {str(where)!r} ({', '.join(ENDINGS)})")
    return [Own(path.name, path) for path in found]
