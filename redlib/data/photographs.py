"""VQAv2 and COCO as one kind of thing: images by number, each with what was said about it.

    photos = vqav2(data_dir, seed=0)             # or coco(data_dir)
    photos.numbers                               # of all its images
    photos.read(262148)                          # -> Picture; raises Unreadable

A *picture* is the record that every notebook sees: its id, the image, and what belongs to it, a
question with ten people's answers or five captions. It keeps the file's bytes, a tenth of what the
pixels weigh, because some hundred pictures travel to every worker.

The same sample must come from the hub and from a folder, so both forms list the same numbers,
COCO's own, and `digest` is a hash of that list. It goes into the key of every table, and a
picture's id holds a hash of its file: rows measured on another edition of a data set, or on another
picture of that number, are not taken for these.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from PIL import Image

from redlib.data.photo import alike
from redlib.data.reading import (
    Unreadable,
    column,
    copied,
    decode,
    encoded,
    parsed,
    revision,
    row,
    table,
)
from redlib.data.sources import ANNOTATIONS, COCO, KARPATHY, QUESTIONS, VQAV2, Source
from redlib.data.values import once, texts, whole, written
from redlib.errors import RedlibError
from redlib.params import local
from redlib.store import atomic

PATIENCE = 60
"""Seconds to wait for one image of COCO."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One photograph and what was said about it.

    Attributes:
        id: the data set, COCO's number, and eight letters of a hash of all that follows, since a
            file may be replaced under its number: "vqav2-262148.1f3a9c2e". So a table keeps its
            rows of other photographs where one is exchanged, and where more are asked for.
        data: the image file's bytes.
        question: one of VQAv2's about it, "" elsewhere.
        answers: what ten people answered to that; the most frequent first.
        captions: COCO's, () elsewhere.
    """

    id: str
    data: bytes = field(repr=False)
    question: str = ""
    answers: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()

    @property
    def image(self) -> Image.Image:
        """As the model may see it; decoded anew each time."""
        return decode(self.data, self.id)

    @property
    def caption(self) -> str:
        """What people say that it shows: the first caption, else the answer to its question."""
        if self.captions:
            return self.captions[0]
        said = f", people say “{self.answers[0]}”" if self.answers else ""
        return f"asked “{self.question}”{said}."


@dataclass(frozen=True)
class Photographs:
    """A data set of pictures.

    Attributes:
        name: as the paper calls it.
        place: "Hugging Face hub" or "data_dir", whatever that folder is called here.
        revision: of the data set, as `reading.revision` tells it.
        digest: twelve letters that tell lists of images (and questions) apart.
        numbers: COCO's number of every image, ascending.
        read: the picture of a number; raises Unreadable, and RedlibError for values beside it that
            are no text.
    """

    name: str
    place: str
    revision: str
    digest: str
    numbers: tuple[int, ...]
    read: Callable[[int], Picture] = field(repr=False)


def lot(seed: int, *words: Hashable) -> bytes:
    """A draw that depends on nothing but its arguments: sorting by it is a random order, which is
    the same in every form of a data set and from one version of a library to the next."""
    return hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()


# --- VQAv2 ---------------------------------------------------------------------------------------


def vqav2(data_dir: str | None, *, seed: int) -> Photographs:
    """VQAv2 validation; of an image's several questions the seed draws one.

    Raises RedlibError, one line, naming the folder, file or column that is missing or wrong.
    """
    folder = _folder(VQAV2, data_dir)
    if folder is not None and (folder / QUESTIONS).is_file():
        needed = ("image_id", "question_id", "question")
        questions = _records(folder / QUESTIONS, "questions", needed)
        answered = _records(folder / ANNOTATIONS, "annotations", ("question_id", "answers"))
        numbered = _numbers((one["question_id"] for one in answered), "question_id", VQAV2)
        once(numbered, "question_id", ANNOTATIONS)
        about = dict(zip(numbered, answered, strict=True))
        images, ids = (_numbers((one[key] for one in questions), key, VQAV2) for key in needed[:2])
        if about.keys().isdisjoint(ids):  # answers are optional, but a file is there to hold some
            raise RedlibError(
                f"{folder / ANNOTATIONS}: answers none of the questions of {QUESTIONS}; fetch the "
                "annotations of the validation split"
            )

        def entry(at: int) -> tuple[dict[str, Any], Any]:
            name = f"COCO_val2014_{images[at]:012d}.jpg"
            path = _image_file(folder, "val2014", name, VQAV2)
            return about.get(ids[at], {}) | questions[at], path
    else:
        found = table(VQAV2, data_dir, columns=("image", "image_id", "question_id", "question"))

        def entry(at: int) -> tuple[dict[str, Any], Any]:
            stored = row(found, at)
            return stored, stored["image"]

        images, ids = (
            _numbers(column(found, key), key, VQAV2) for key in ("image_id", "question_id")
        )
    once(ids, "question_id", VQAV2.name)
    asked: dict[int, list[int]] = {}
    for at, image in enumerate(images):
        asked.setdefault(image, []).append(at)

    def read(number: int) -> Picture:
        at = min(asked[number], key=lambda at: lot(seed, "question", ids[at]))
        stored, image = entry(at)
        name, where = f"vqav2-{number}", f"{VQAV2.name}, image {number}"
        first = texts(stored.get("multiple_choice_answer") or None, "answer", where)
        found = _picture(
            name,
            encoded(image, name),
            question=written(stored["question"], "question", where),
            answers=first + texts(stored.get("answers"), "answer", where),
        )
        for other in asked[number]:  # in the hub's form every question holds the picture anew
            again = entry(other)[1]
            if again != image and not _again(found, again):
                raise RedlibError(
                    f"{VQAV2.name}: rows {at} and {other} are about image {number} and have "
                    "different pictures; a number stands for one: fetch the data set again"
                )
        return found

    digest = _digest(f"{image} {question}" for image, question in zip(images, ids, strict=True))
    return _photographs(VQAV2, data_dir, digest, asked, read)


# --- COCO ----------------------------------------------------------------------------------------


def coco(data_dir: str | None) -> Photographs:
    """COCO Karpathy train, with its captions.

    The hub's form holds the address of each image, not the image: without `data_dir` the pictures
    that are read are fetched one by one, into the cache of `datasets`; with it, they are taken from
    a folder train2014/.

    Raises RedlibError, one line, naming the folder, file or column that is missing or wrong.
    """
    folder = _folder(COCO, data_dir)
    if folder is not None and (folder / KARPATHY).is_file():
        listed = _records(
            folder / KARPATHY, "images", ("cocoid", "split", "filepath", "filename", "sentences")
        )
        listed = [one for one in listed if one["split"] == COCO.split]
        if not listed:
            raise RedlibError(f"{folder / KARPATHY}: holds no image of the split 'train'")
        at_hand = listed.__getitem__
        numbers = [one["cocoid"] for one in listed]
    else:
        needed = ("cocoid", "filepath", "filename", "sentences", "url")
        found = table(COCO, data_dir, columns=needed)

        def at_hand(at: int) -> dict[str, Any]:
            return row(found, at)

        numbers = column(found, "cocoid")
    numbers = _numbers(numbers, "cocoid", COCO)
    once(numbers, "cocoid", COCO.name)
    at = {number: n for n, number in enumerate(numbers)}

    def read(number: int) -> Picture:
        one, name, where = at_hand(at[number]), f"coco-{number}", f"{COCO.name}, image {number}"
        if folder is not None:
            below, file = (written(one[key], key, where) for key in ("filepath", "filename"))
            path = _image_file(folder, below, file, COCO)
        else:
            path = _fetched(written(one["url"], "url", where))
        captions = tuple(c for c in texts(one["sentences"], "raw", where) if c.strip())
        if not captions:
            raise RedlibError(f"{where}: 'sentences' has no caption")
        return _picture(name, encoded(path, name), captions=captions)

    return _photographs(COCO, data_dir, _digest(map(str, sorted(at))), at, read)


def _fetched(url: str) -> Path:
    """The image behind an address, in the cache of `datasets`, where it stays."""
    from datasets import config

    path = local(config.HF_DATASETS_CACHE) / "coco" / url.rpartition("/")[2]
    if path.is_file():
        return path
    remedy = "fetch it while there is a connection, or set data_dir to a folder with train2014/"
    if config.HF_HUB_OFFLINE:
        raise RedlibError(f"{COCO.name}: offline, and {url} is not in {path.parent}; {remedy}")
    try:
        with urlopen(url, timeout=PATIENCE) as answer:
            data = answer.read()
    except HTTPError as error:
        raise Unreadable(f"{url}: {error}") from None
    except (HTTPException, OSError, ValueError) as error:  # no connection, or no address
        raise RedlibError(f"{COCO.name}: {url} cannot be fetched ({error}); {remedy}") from None
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return path


# --- both ----------------------------------------------------------------------------------------


def _photographs(
    source: Source,
    data_dir: str | None,
    digest: str,
    numbers: Iterable[int],
    read: Callable[[int], Picture],
) -> Photographs:
    place = "Hugging Face hub" if data_dir is None else "data_dir"
    edition = revision(source, data_dir)
    return Photographs(source.name, place, edition, digest, tuple(sorted(numbers)), read)


def _picture(name: str, data: bytes, **said: Any) -> Picture:
    """A picture that is known to decode."""
    decode(data, name)
    told = hashlib.sha256(data)
    told.update(repr(sorted(said.items())).encode())
    return Picture(f"{name}.{told.hexdigest()[:8]}", data, **said)


def _again(found: Picture, stored: Any) -> bool:
    """Whether what is stored may be the picture once more, or nothing that can be read."""
    try:
        return alike(found, Picture(found.id, encoded(stored, found.id)))
    except Unreadable:
        return True


def _numbers(found: Iterable[Any], field: str, source: Source) -> list[int]:
    return [whole(number, field, f"{source.name}, row {at}") for at, number in enumerate(found)]


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]


def _folder(source: Source, data_dir: str | None) -> Path | None:
    """The data set's folder below `data_dir`; None without one."""
    return None if data_dir is None else copied(source, data_dir)


def _records(path: Path, key: str, fields: Iterable[str]) -> list[Mapping[str, Any]]:
    """The list under `key` of a JSON file, of mappings that have at least `fields`."""
    if not local(path).exists():
        raise RedlibError(f"{path}: no such file; it belongs beside the other of VQAv2")
    held = parsed(path)
    entries = held.get(key) if isinstance(held, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RedlibError(f"{path}: another file, without a list of records {key!r}")
    for name in fields:
        if not all(name in entry for entry in entries):
            raise RedlibError(f"{path}: an entry of {key!r} has no field {name!r}")
    return entries


def _image_file(folder: Path, below: str, name: str, source: Source) -> Path:
    """An image of the folder form."""
    return image_folder(folder, below, source) / name


def image_folder(folder: Path, below: str, source: Source) -> Path:
    """The folder `below` with the images of a set. Raises RedlibError if there is none."""
    places = (local(place / below) for place in source.beside(folder))
    there = next((place for place in places if place.is_dir()), None)
    if there is None:
        raise RedlibError(
            f"data_dir: no folder {below!r} with the images of {source.name}; it belongs to "
            f"{str(folder)!r}"
        )
    return there
