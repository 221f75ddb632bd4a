"""A photograph in a table of a benchmark, by its place there.

Ten thousand questions are about as many photographs, of which none has to be in memory before it is
looked at. So what the evaluation holds is a reference to a row, and the picture is decoded whenever
it is asked for:

    found = reading.table(BENCHMARKS["pope"], data_dir, columns=("image", "question"))
    rows(found, ("question",))[17]["question"]      # no image decoded
    Photo("pope/17", found, 17, "image").image
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from redlib.data.reading import Skipped, Unreadable, column, decode, encoded, row


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph of a benchmark.

    Attributes:
        id: name of the benchmark and the image's own name in it.
        table: as `reading.table` returns it.
        row, column, place: where in it; place is the number within a list of images.
        references: captions that people wrote of it, where the data set has any.
    """

    id: str
    table: Any
    row: int
    column: str
    place: int = 0
    references: tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        """The file's bytes. Raises `reading.Unreadable`."""
        stored = row(self.table.select_columns([self.column]), self.row)[self.column]
        if isinstance(stored, list):
            if len(stored) <= self.place:
                raise Unreadable(f"{self.id}: the row has {len(stored)} images")
            stored = stored[self.place]
        return encoded(stored, self.id)

    @property
    def image(self) -> Image.Image:
        """In RGB, upright. Raises `reading.Unreadable`."""
        return decode(self.data, self.id)


def readable(photos: Sequence[Photo], skipped: Skipped) -> bool:
    """Whether all of the photographs can be decoded; `skipped` keeps the count."""
    good = True
    for photo in photos:
        try:
            photo.image.close()
            skipped.read += 1
        except Unreadable as error:
            skipped.add(photo.id, str(error).removeprefix(f"{photo.id}: "))
            good = False
    return good


def alike(one: Any, other: Any) -> bool:
    """Whether `other` may be the picture that `one` is, each with `data` and `image` as a Photo has
    them: the same file, the same pixels in another form of file, or nothing that can be read and
    belie it."""
    try:
        if one.data == other.data:
            return True
        first, second = one.image, other.image
        return first.size == second.size and first.tobytes() == second.tobytes()
    except Unreadable:
        return True


def told(skipped: Skipped) -> None:
    """Name the photographs that were left out. Raises RedlibError if there were too many."""
    skipped.check()
    if skipped.reasons:
        print(f"{skipped.name}: {skipped}")


def rows(found: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of a table, a row each; a class by its name, None for -1, which is no label."""
    from datasets import ClassLabel

    each = []
    for name in names:
        feature, values = found.features[name], column(found, name)
        if isinstance(feature, ClassLabel):
            named = dict(enumerate(feature.names))
            values = [named.get(value) for value in values]
        each.append(values)
    return [dict(zip(names, values, strict=True)) for values in zip(*each, strict=True)]
