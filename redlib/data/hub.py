"""A table of the Hugging Face hub, its cache or a folder, and the photographs in it.

`datasets` reads all three by one call, and decodes an image when a row is looked at. What is kept
here is a reference to that row, so that ten thousand questions about as many photographs hold none
of them in memory:

    table = opened(BENCHMARKS["pope"], data_dir=None)
    rows(table, ("question", "answer"))[0]      # plain values, no image decoded
    Picture("pope/17", table, 17, "image").image

A photograph that cannot be decoded is left out, and named. One may be bad luck; where more than one
in a hundred of those that were wanted is damaged, the copy is, and the run stops (`Readable`).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from redlib.data.sources import Source
from redlib.errors import RedlibError

MOST_DAMAGED = 0.01
"""Share of the images wanted that may be unreadable; a single one never stops a run."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A photograph of a data set, decoded whenever it is looked at.

    Attributes:
        id: name of the benchmark and the image's own name in it.
        table: the `datasets.Dataset` that holds it.
        row, column, place: where; place is the number within a list of images.
        references: captions that people wrote of it, where the data set has any.
    """

    id: str
    table: Any
    row: int
    column: str
    place: int = 0
    references: tuple[str, ...] = ()

    @property
    def image(self) -> Image.Image:
        """In RGB, upright. Raises what Pillow raises for an image that it cannot read."""
        found = self.table.select_columns([self.column])[self.row][self.column]
        if isinstance(found, list):
            found = found[self.place]
        if found is None:
            raise ValueError("no image in this row")
        return found.convert("RGB")


class Readable:
    """Keeps count of the pictures of one benchmark that could and could not be read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tried = 0
        self.damaged: list[str] = []

    def __call__(self, *pictures: Picture) -> bool:
        """Whether all of the pictures can be decoded; those that cannot are remembered."""
        self.tried += len(pictures)
        bad = [picture.id for picture in pictures if not _decodes(picture)]
        self.damaged += bad
        return not bad

    def finish(self) -> None:
        """Say which were left out.

        Raises:
            RedlibError: several, and over MOST_DAMAGED of all that were tried.
        """
        if not self.damaged:
            return
        told = ", ".join(self.damaged[:5]) + (", ..." if len(self.damaged) > 5 else "")
        found = f"{len(self.damaged)} of {self.tried} images of {self.name} cannot be read: {told}"
        if len(self.damaged) > max(1, MOST_DAMAGED * self.tried):
            raise RedlibError(
                f"{found}; over 1 % means a damaged copy: delete it and fetch it again"
            )
        warnings.warn(f"{found}; left out", stacklevel=2)


def _decodes(picture: Picture) -> bool:
    try:
        picture.image.close()
    except (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError):
        return False
    return True


def opened(of: Source, data_dir: str | None, *, columns: Sequence[str], files: str | None = None):
    """The split of a data set as a `datasets.Dataset`; nothing but the table itself is read.

    Args:
        of: which; its names are tried in turn, the present one first.
        data_dir: folder that holds a copy of its repository; None: the hub or its cache.
        columns: those that must be there.
        files: which files, if others than the source names.

    Raises:
        RedlibError: `datasets` is not installed; no such folder; nothing can be read; a column is
            missing.
    """
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise RedlibError(
            "data: real needs the package datasets; run: pip install 'redlib[data]'"
        ) from None
    places = of.ids
    if data_dir is not None:
        folder = Path(data_dir).expanduser() / of.folder
        if not folder.is_dir():
            raise RedlibError(
                f"data_dir {str(data_dir)!r} has no folder {of.folder!r} for {of.name}; make it by "
                f"`hf download {of.ids[0]} --repo-type dataset --local-dir {folder}`"
            )
        places = (str(folder),)
    reasons = []
    for place in places:
        try:
            table = load_dataset(
                place,
                data_files={of.split: files or of.files},
                split=of.split,
                revision=getattr(of, "revision", None) if data_dir is None else None,
                # The card counts all splits, and of these one is wanted.
                verification_mode="no_checks",
            )
        except Exception as error:  # of half a dozen packages; every one of them means the same
            reasons.append(f"{place}: {type(error).__name__}: {_line(error)}")
            continue
        lacking = [name for name in columns if name not in table.column_names]
        if lacking:
            raise RedlibError(
                f"{of.name} ({place}) has no column {lacking[0]!r}; it has "
                f"{', '.join(table.column_names)}"
            )
        return table
    raise RedlibError(
        f"{of.name} cannot be read ({'; '.join(reasons)}); check the connection and, for a copy, "
        "that it is complete, or set data_dir to a folder with one"
    )


def with_images(table, column: str):
    """The table with its column of images as such, also where the file does not say so."""
    from datasets import Image as Picturelike
    from datasets import List

    feature = table.features[column]
    several = hasattr(feature, "feature")
    if isinstance(feature.feature if several else feature, Picturelike):
        return table
    return table.cast_column(column, List(Picturelike()) if several else Picturelike())


def rows(table, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Plain values of some columns, a row each; class labels by their names."""
    from datasets import ClassLabel

    part = table.select_columns(list(columns))
    labels = {n: f for n, f in part.features.items() if isinstance(f, ClassLabel)}
    found = part.to_list()
    for name, feature in labels.items():
        for row in found:
            if row[name] is not None:
                row[name] = feature.int2str(row[name])
    return found


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
