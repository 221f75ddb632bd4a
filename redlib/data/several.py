"""Mantis-Eval, MuirBench and MVBench: questions about several photographs, and about films.

    shots("mantis", 200, params)[0].asked      # (kind, text, gold, chance, options)
    shots("film", 200, params)[0].images       # sixteen frames

Mantis-Eval and MuirBench put the images of a question into its text ("Which is larger, <image> or
<image>?"), and there they are shown, as by the release and by lmms-eval. A text that has places for
more images or fewer gets them before it, in order, with their numbers in those places: "(image 1)".

MVBench is twenty subtasks with a file of questions each, taken in turn. A film is fetched when its
question is drawn, from the hub's branch `video` or from the folder MVBench of `data_dir`. Subtasks
whose films are not there (those of NTU RGB+D may not be passed on) are named and left out; a single
film that is missing or damaged is treated as a damaged picture.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from redlib.data import prompts
from redlib.data.benchmarks import BENCHMARKS, SEVERAL
from redlib.data.photo import Photo, readable, rows, told
from redlib.data.reading import MOST_UNREADABLE, Skipped, Unreadable, cut_off, row, table
from redlib.data.values import letter, names, written
from redlib.errors import RedlibError
from redlib.params import Params, local

FRAMES = 16

FOLDERS: dict[str, str] = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
"""MVBench's subtasks, and where the branch `video` keeps the films of each, cut to length."""


class Asked(NamedTuple):
    """One question.

    Attributes:
        kind: what the set calls it: a subtask, a type of question.
        text, gold: what is asked, and what is right.
        chance: what guessing among the options reaches.
        options: text in which the rule that judges the answer finds them, where the question does
            not show them in a form that it knows; None: the question itself.
    """

    kind: str
    text: str
    gold: str
    chance: float
    options: str | None = None


@dataclass(frozen=True, eq=False)
class Shots:
    """Several photographs, or one film, with what is asked about it.

    Attributes:
        id: name of the set and of the item in it.
        asked: its questions.
        photos: the photographs, in order; none where it is a film.
        film: file of the film.
    """

    id: str
    asked: tuple[Asked, ...]
    photos: tuple[Photo, ...] = ()
    film: str = ""

    @property
    def files(self) -> list[bytes]:
        """The bytes of the photographs, or of the film."""
        return [Path(self.film).read_bytes()] if self.film else [one.data for one in self.photos]

    @property
    def images(self) -> list[Image.Image]:
        """The photographs, or FRAMES frames at even distances. Raises RedlibError for a film that
        cannot be decoded."""
        return frames(self.film) if self.film else [photo.image for photo in self.photos]


def shots(name: str, limit: int, params: Params, *, part: str = "test") -> list[Shots]:
    """The first `limit` questions of a set in the random order that the seed decides.

    name: "mantis", "muir" or "film". part: "test", or "calibration", whose items no test asks.

    Raises:
        RedlibError: as `reading.table`; over 1 % of the images or films are damaged or missing; a
            value that makes no question; nothing to ask.
    """
    if name not in SEVERAL:
        raise RedlibError(f"a set of several images is one of {', '.join(SEVERAL)}; got {name!r}")
    films = name == "film"
    skipped = Skipped(BENCHMARKS[name].name, "films" if films else "pictures")
    drawn = _films(params, part, limit, skipped) if films else _sets(name, params, part)
    found: list[Shots] = []
    for one in drawn:
        if len(found) == limit:
            break
        if _playable(one, skipped) if films else readable(one.photos, skipped):
            found.append(one)
    told(skipped)
    if not found:
        raise RedlibError(f"{BENCHMARKS[name].name} has no question for the {part} part")
    return found


def _order(name: str, size: int, params: Params, part: str) -> list[int]:
    """Numbers of the items of a part, in random order; a twentieth is kept for calibration."""
    shuffled = np.random.default_rng([params.seed, *name.encode()]).permutation(size)
    cut = size - -(-size // 20) if size > 1 else size
    return (shuffled[:cut] if part == "test" else shuffled[cut:]).tolist()


def _sets(name: str, params: Params, part: str) -> Iterator[Shots]:
    of = BENCHMARKS[name]
    column, own = ("images", "id") if name == "mantis" else ("image_list", "idx")
    found = table(of, params.data_dir, columns=of.columns)
    images = found.select_columns([column])
    plain = rows(found, [c for c in of.columns if c != column])
    ids = names(plain, own, of.name)
    for at in _order(name, len(plain), params, part):
        stored = row(images, at)[column]
        count = len(stored) if isinstance(stored, list) else 0
        if count < 2:
            raise RedlibError(f"{of.name}: row {at} has {count} images; two or more are needed")
        key = f"{name}/{ids[at]}"
        asked = (_mantis if name == "mantis" else _muir)(plain[at], params, f"{of.name}, row {at}")
        placed = asked._replace(text=_placed(asked.text, count))
        photos = (Photo(f"{key} ({n + 1})", images, at, column, n) for n in range(count))
        yield Shots(key, (placed,), tuple(photos))


def _mantis(item: dict[str, Any], params: Params, where: str) -> Asked:
    kind = written(item["question_type"], "question_type", where)
    if kind not in ("multi-choice", "short-answer"):
        raise RedlibError(
            f"{where}: 'question_type' must be multi-choice or short-answer; got {kind!r}"
        )
    options = _options(item["options"], "options", where) if kind == "multi-choice" else []
    question = written(item["question"], "question", where)
    text = prompts.mantis(question, options, params.prompts)
    listed = _listed(options)
    if not options:
        return Asked(kind, text, written(item["answer"], "answer", where), 0.0, listed)
    said = written(item["answer"], "answer", where)
    gold = next((each for each in said if each.isalpha()), said)  # "(A)", as the metric reads it
    return Asked(kind, text, letter(gold, len(options), where), 1 / len(options), listed)


def _listed(options: list[str]) -> str:
    """Options as the judge finds them, a line each, whatever letters the prompt shows.

    The prompt takes "The car is red." for an option that has its letter D, as Mantis' template
    does; for lmms-eval's rule their number alone says which letters are on offer.
    """
    lines = []
    for n, text in enumerate(options):
        own = chr(65 + n)
        bare = re.sub(rf"^\s*(?:\({own}\)|{own}[.:)])\s*", "", text)
        lines.append(f"({own}) " + bare.replace("\n", " "))
    return "\n".join(lines)


def _muir(item: dict[str, Any], params: Params, where: str) -> Asked:
    options = _options(item["options"], "options", where)
    text = prompts.lettered(written(item["question"], "question", where), options)
    gold = letter(item["answer"], len(options), where)
    return Asked(written(item["task"], "task", where), text, gold, 1 / len(options))


def _options(value: Any, field: str, where: str) -> list[str]:
    count = len(value) if isinstance(value, list) else 0
    if count < 2:
        raise RedlibError(f"{where}: {field!r} has {count} options; two or more are needed")
    return [written(text, field, where) for text in value]


def _placed(text: str, images: int) -> str:
    """The text as it is, where it has a place for each image, else with numbers in its places."""
    first, *others = text.split("<image>")
    if len(others) == images:
        return text
    return first + "".join(f"(image {n}){part}" for n, part in enumerate(others, start=1))


def _films(params: Params, part: str, limit: int, skipped: Skipped) -> Iterator[Shots]:
    of = BENCHMARKS["film"]
    reels = []
    for task in FOLDERS:
        own = replace(of, files=of.files.format(task))
        plain = rows(table(own, params.data_dir, columns=of.columns), of.columns)
        order = _order(f"film {task}", len(plain), params, part)
        reels.append(_reel(task, plain, order, params, skipped))
    for turn in zip_longest(*reels):
        yield from (one for one in turn if one is not None)
        lost = len(skipped.reasons)
        if lost > max(1, MOST_UNREADABLE * (limit + lost)):
            return  # too many, whatever follows; without a connection each would cost its time


def _reel(
    task: str, plain: list[dict[str, Any]], order: list[int], params: Params, skipped: Skipped
) -> Iterator[Shots | None]:
    """The questions of a subtask, None for one whose film is missing."""
    for place, at in enumerate(order):
        item, where = plain[at], f"MVBench, {task}, row {at}"
        options = _options(item["candidates"], "candidates", where)
        question = written(item["question"], "question", where)
        answer = written(item["answer"], "answer", where)
        if answer not in options:
            raise RedlibError(f"{where}: 'answer' is no candidate; got {answer!r}")
        name = written(item["video"], "video", where)
        id = f"film/{task}/{at}"
        try:
            film = _film(f"{FOLDERS[task]}/{name}", params)
        except Unreadable as error:
            absent = _absent(task, plain, params, error) if place == 0 else ""
            if absent:
                print(f"MVBench: without its subtask {task}, since {absent}")
                return
            skipped.add(id, str(error))
            yield None
            continue
        gold = chr(65 + options.index(answer))
        text = prompts.mvbench(question, options, params.prompts)
        yield Shots(id, (Asked(task, text, gold, 1 / len(options)),), film=film)


def _absent(task: str, plain: list[dict[str, Any]], params: Params, why: Unreadable) -> str:
    """Why a subtask whose first film is missing has none at all; "" where another one is there.

    Of a folder that can be seen. The hub would have to be asked for every film, so that there the
    first one tells.
    """
    if params.data_dir is None:
        return f"the first film drawn of it is missing: {why}"
    folder = local(params.data_dir) / BENCHMARKS["film"].folder / FOLDERS[task]
    any_there = any((folder / str(item["video"])).is_file() for item in plain)
    return "" if any_there else f"{folder} has none of its films"


def _film(path: str, params: Params) -> str:
    """The file of a film, fetched where it has to be.

    Raises Unreadable where it is missing, and RedlibError where the connection broke off: such a
    film is there, and left out it might take its whole subtask along.
    """
    of = BENCHMARKS["film"]
    if params.data_dir is not None:
        file = local(Path(params.data_dir, of.folder, path))
        if not file.is_file():
            raise Unreadable(f"{file} is not there")
        return str(file)
    from datasets import config  # either of HF_DATASETS_OFFLINE and HF_HUB_OFFLINE
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    try:
        return hf_hub_download(
            of.ids[0], path, repo_type="dataset", revision=of.revision,
            local_files_only=config.HF_HUB_OFFLINE,
        )  # fmt: skip
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise Unreadable(f"{path} cannot be fetched ({type(error).__name__})") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:  # the latter two are hf_xet's
        raise cut_off(f"{of.name}: {path}", error) from None


def frames(film: str, number: int = FRAMES) -> list[Image.Image]:
    """The middle frames of `number` equal parts of a film, fewer where it has fewer.

    Raises:
        RedlibError: PyAV is not installed; the file is no film that it can decode.
    """
    try:
        with _opened(film) as container:  # a film as pictures would fill the memory: count first
            length = container.streams.video[0].frames or sum(1 for _ in container.decode(video=0))
        wanted = set(middles(length, number))
        with _opened(film) as container:
            numbered = enumerate(container.decode(video=0))
            shown = [frame.to_image() for at, frame in numbered if at in wanted]
    except Unreadable as error:
        raise RedlibError(f"{error}; fetch it again") from None
    if not shown:
        raise RedlibError(f"{film}: a film without frames")
    return shown


def _playable(one: Shots, skipped: Skipped) -> bool:
    """Whether the first frame of a film can be decoded; `skipped` keeps the count."""
    try:
        with _opened(one.film) as container:
            if next(container.decode(video=0), None) is None:
                raise Unreadable(f"{one.film}: a film without frames")
    except Unreadable as error:
        skipped.add(one.id, str(error))
        return False
    skipped.read += 1
    return True


@contextmanager
def _opened(film: str) -> Iterator[Any]:
    """A film as PyAV's container. Raises Unreadable for what cannot be opened, or decoded within,
    and RedlibError if PyAV is not installed."""
    try:
        import av
    except ModuleNotFoundError:
        raise RedlibError("films need the package av; run: pip install 'redlib[video]'") from None
    try:
        with av.open(film) as container:
            yield container
    except (av.error.FFmpegError, OSError, ValueError, LookupError) as error:
        why = f"no film that can be decoded ({type(error).__name__})"
        raise Unreadable(f"{film}: {why}") from None


def middles(length: int, number: int) -> list[int]:
    """Numbers of the frames that the release takes: of parts between the first frame and the last,
    the middle ones."""
    part = (length - 1) / number
    return [int(part / 2 + np.round(part * n)) for n in range(number)]
