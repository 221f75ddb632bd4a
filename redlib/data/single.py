"""Benchmarks that ask about one image, as the questions that the tabletop's generators ask.

Each benchmark is a function from its rows to *units*: what is asked about one image and counts
once. That is a question for POPE, SEED and RealWorldQA, a pair for MME, all rotations for MMBench,
and one description for the captions. Sampling is the same for all: images in a random order that
the seed decides, each giving its first unit before any gives its second, so that few questions
still see many images:

    photos, questions = ask("pope", 1000, params)      # 1,000 of each of its three subsets

A smaller number gives the first of the same. No threshold is set on any of these images: those of
COCO's training split serve for that (`data.images`).

Questions with a yes take turns with questions with a no, and every other image begins with a no;
the benchmarks have as many of one as of the other, and so has every sample.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from redlib.bench.pope_mme import MME_COGNITION, POPE_SUBSETS
from redlib.data import prompts
from redlib.data.benchmarks import BENCHMARKS
from redlib.data.photo import Photo, alike, readable, rows, told
from redlib.data.reading import Skipped, table
from redlib.data.values import letter, names, texts, there, whole, written
from redlib.errors import RedlibError
from redlib.params import Params, family
from redlib.tabletop.questions import Question

MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
"""The ten categories whose sum the paper's column is, as the data set writes them."""
MILLION = 1_000_000
"""MMBench numbers the rotations of a question n as n, n + 1,000,000, ..."""


@dataclass(frozen=True)
class Unit:
    """What is asked about one image and counts once.

    Attributes:
        rows: in which it is asked; its image is that of the first.
        key: name of the image within its benchmark.
        asked: its questions, all of one task; their `image` is filled in later.
        references: captions of the image.
    """

    rows: tuple[int, ...]
    key: str
    asked: tuple[Question, ...]
    references: tuple[str, ...] = ()


def ask(
    name: str, limit: int, params: Params, *, group: str = ""
) -> tuple[list[Photo], list[Question]]:
    """At most `limit` questions of each task of a benchmark, and the photographs they are about.

    name: of `BENCHMARKS`, one that asks about single images. group: its questions of this group
    alone (MME's category, SEED's type).

    Raises:
        RedlibError: as `reading.table`; over 1 % of the images are damaged; a value that makes no
            question; two rows with one name and two pictures; a subset of POPE is missing; nothing
            to ask.
    """
    of = BENCHMARKS[name]
    found = table(of, params.data_dir, columns=of.columns)
    plain = [c for c in found.column_names if c != "image"]
    units: dict[str, list[Unit]] = {}
    for unit in _READ[name](rows(found, plain), params):
        if group in ("", unit.asked[0].group):
            units.setdefault(unit.key, []).append(unit)
    shuffle = np.random.default_rng([params.seed, *name.encode()])
    order = shuffle.permutation(sorted(units)).tolist()
    skipped, photos = Skipped(of.name), {}

    def usable(unit: Unit) -> bool:
        for at in unit.rows:  # pictures are large, so only those of rows that are asked are read
            photo = Photo(f"{name}/{unit.key}", found, at, "image", 0, unit.references)
            if unit.key not in photos:
                photos[unit.key] = photo if readable([photo], skipped) else None
            elif photos[unit.key] is not None and not alike(photos[unit.key], photo):
                raise RedlibError(
                    f"{of.name}: rows {photos[unit.key].row} and {at} are about {unit.key!r} and "
                    "have different pictures; a name stands for one: fetch the data set again"
                )
        return photos[unit.key] is not None

    chosen: list[Unit] = []
    for task in dict.fromkeys(u.asked[0].task for key in order for u in units[key]):
        of_task = [[u for u in units[key] if u.asked[0].task == task] for key in order]
        chosen += take(of_task, limit, usable)
    told(skipped)
    if not chosen:
        about = f" about {group!r}" if group else ""
        raise RedlibError(f"{of.name}: nothing to ask{about} in {len(found)} rows")
    questions = [replace(q, image=photos[u.key].id) for u in chosen for q in u.asked]
    return list(dict.fromkeys(photos[u.key] for u in chosen)), questions


def take(
    images: Sequence[Sequence[Unit]], limit: int, usable: Callable[[Unit], bool]
) -> list[Unit]:
    """The first units when every image gives its first before any gives its second: as many as hold
    `limit` questions, and at least one. The rotations of MMBench are one question."""
    turns = [list(_in_turn(units, at)) for at, units in enumerate(images)]
    chosen: list[Unit] = []
    taken = 0
    for turn in zip_longest(*turns):
        for unit in turn:
            if unit is None:
                continue
            size = 1 if unit.asked[0].task == "mmbench" else len(unit.asked)
            if taken and taken + size > limit:
                return chosen
            if usable(unit):
                chosen.append(unit)
                taken += size
    return chosen


def _in_turn(units: Sequence[Unit], at: int) -> Iterator[Unit]:
    """The units of one image, yes and no in turn."""
    halves = [[u for u in units if (u.asked[0].answer == "yes") is yes] for yes in (True, False)]
    for pair in zip_longest(*(halves[::-1] if at % 2 else halves)):
        yield from (unit for unit in pair if unit is not None)


def _question(task: str, text: str, answer: str, group: str = "", options: int = 0) -> Question:
    text = text.replace("<image>", "").strip()  # it stands before the text in every prompt
    return Question(task, "", text, answer, group, options=options)


def _pope(plain: list[dict[str, Any]], params: Params) -> Iterator[Unit]:
    held = set()
    for at, row in enumerate(plain):
        where = f"POPE, row {at}"
        task = f"pope-{written(row['category'], 'category', where).strip().lower()}"
        if task not in POPE_SUBSETS:
            raise RedlibError(
                f"{where}: 'category' must be random, popular or adversarial; got "
                f"{row['category']!r}"
            )
        held.add(task.removeprefix("pope-"))
        question = written(row["question"], "question", where)
        text = prompts.yes_no(question, params.prompts, family(params.model))
        asked = _question(task, text, _yes_or_no(row["answer"], where), options=2)
        yield Unit((at,), written(row["image_source"], "image_source", where), (asked,))
    parts = [task.removeprefix("pope-") for task in POPE_SUBSETS]
    _check_whole("POPE", "subset", parts, held, len(plain))


def _check_whole(
    name: str, kind: str, parts: Sequence[str], held: Container[str], rows: int
) -> None:
    """A mean or sum over fewer parts would be another number under the same name."""
    for part in parts:
        if part not in held:
            raise RedlibError(
                f"{name}: no question of the {kind} {part} in {rows} rows; the copy is not whole: "
                "fetch the data set again"
            )


def _mme(plain: list[dict[str, Any]], params: Params) -> Iterator[Unit]:
    pairs: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(plain):
        where = f"MME, row {at}"
        key = written(row["question_id"], "question_id", where)
        category = written(row["category"], "category", where)
        if category not in MME_COGNITION:  # the paper's column is perception alone
            pairs.setdefault((key, category), []).append(at)
    held = {category for _, category in pairs}
    _check_whole("MME", "category", MME_PERCEPTION, held, len(plain))
    for (key, category), both in pairs.items():
        if len(both) != 2:
            raise RedlibError(f"MME: image {key!r} has {len(both)} questions, not a pair")
        asked = []
        for at in both:
            where = f"MME, row {at}"
            question = written(plain[at]["question"], "question", where)
            text, answer = prompts.mme(question, params.prompts), plain[at]["answer"]
            asked.append(_question("mme", text, _yes_or_no(answer, where), category, options=2))
        own = key if key.startswith(f"{category}/") else f"{category}/{key}"
        yield Unit(tuple(both), own, tuple(asked))


def _yes_or_no(value: Any, where: str) -> str:
    answer = str(value).strip().strip(".").lower()
    if answer not in ("yes", "no"):
        raise RedlibError(f"{where}: 'answer' must be yes or no; got {value!r}")
    return answer


def _mmbench(plain: list[dict[str, Any]], params: Params) -> Iterator[Unit]:
    rotations: dict[int, list[int]] = {}
    for at, row in enumerate(plain):
        number = whole(row["index"], "index", f"MMBench, row {at}")
        rotations.setdefault(number % MILLION, []).append(at)
    for number, all_of in rotations.items():
        asked, shown = [], []
        for at in all_of:
            row, where = plain[at], f"MMBench, row {at}"
            held = [option for option in "ABCDE" if there(row.get(option))]
            listed = "ABCDE"[: "ABCDE".index(max(["B", *held])) + 1]  # without a gap
            options = {option: written(row[option], option, where) for option in listed}
            question = written(row["question"], "question", where)
            text = prompts.mmbench(question, there(row["hint"]), options)
            answer = letter(row["answer"], len(options), where)
            asked.append(_question("mmbench", text, answer, str(number), len(options)))
            shown.append((question, sorted(options.values())))
            if shown[-1] != shown[0]:
                raise RedlibError(
                    f"MMBench: rows {all_of[0]} and {at} have the same 'index' up to millions, "
                    f"{number}, and are no rotations of one question: fetch the data set again"
                )
        yield Unit(tuple(all_of), str(number), tuple(asked))


def _seed(plain: list[dict[str, Any]], params: Params) -> Iterator[Unit]:
    for at, row in enumerate(plain):
        where = f"SEED-Bench, row {at}"
        if row["data_type"] not in ("image", "video"):
            raise RedlibError(
                f"{where}: 'data_type' must be image or video; got {row['data_type']!r}"
            )
        if row["data_type"] == "video":
            continue
        choices = [f"choice_{choice}" for choice in "abcd"]
        options = [written(row[choice], choice, where) for choice in choices]
        text = prompts.lettered(written(row["question"], "question", where), options)
        kind = str(row.get("question_type_id", ""))
        asked = _question("seed", text, letter(row["answer"], 4, where), kind, 4)
        key = row["data_id"][:1] if isinstance(row["data_id"], list) else [row["data_id"]]
        yield Unit((at,), written(*key or [None], "data_id", where), (asked,))


def _realworldqa(plain: list[dict[str, Any]], params: Params) -> Iterator[Unit]:
    for at, row in enumerate(plain):
        where = f"RealWorldQA, row {at}"
        question = written(row["question"], "question", where)
        answer = written(row["answer"], "answer", where)
        asked = _question("realworldqa", question, answer.strip())
        yield Unit((at,), str(at), (asked,))


def _captions(task: str, key: str, told: str) -> Callable[[list, Params], Iterator[Unit]]:
    def read(plain: list[dict[str, Any]], params: Params) -> Iterator[Unit]:
        for at, name in enumerate(names(plain, key, BENCHMARKS[task].name)):
            row, where = plain[at], f"{task}, row {at}"
            references = tuple(text for text in texts(row[told], told, where) if text.strip())
            if not references:
                raise RedlibError(f"{where}: {told!r} has no caption")
            asked = _question(task, prompts.caption(params.prompts), references[0])
            yield Unit((at,), name, (asked,), references)

    return read


def _image_dc(plain: list[dict[str, Any]], params: Params) -> Iterator[Unit]:
    for at, name in enumerate(names(plain, "question_id", "Image-DC")):
        question = written(plain[at]["question"], "question", f"Image-DC, row {at}")
        yield Unit((at,), name, (_question("detail", question, ""),))


_READ: dict[str, Callable[[list[dict[str, Any]], Params], Iterator[Unit]]] = {
    "pope": _pope,
    "mmbench": _mmbench,
    "seed": _seed,
    "mme": _mme,
    "realworldqa": _realworldqa,
    "nocaps": _captions("nocaps", "image_id", "annotations_captions"),
    "flickr": _captions("flickr", "img_id", "caption"),
    "image-dc": _image_dc,
}
