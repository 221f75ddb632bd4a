"""Questions about tabletop scenes, in the schemas of the real benchmarks.

Each task asks what one benchmark of the paper asks, and gives its answer from the scene's truth:

| task | stands in for | answer |
|---|---|---|
| pope-random, pope-popular, pope-adversarial | POPE: is an object there | yes / no, half each |
| mme | MME: seven categories, two questions each, one yes and one no | yes / no |
| mmb | MMBench: four options in all four rotations, right if all four answers are | a letter |
| seed | SEED: seven dimensions, one of four options | a letter |
| rwqa | RealWorldQA: the smallest thing in an image of another shape | a letter or a word |
| nocaps | NoCaps: one sentence, with a noun and colour withheld from training | a sentence |
| flickr | Flickr30k: one sentence about a crowded scene | a sentence |
| detail | the paper's detailed descriptions | a list |
| colour, position, count, word | VQA | one word |
| naming | the single-token probe's own prompt, on scenes of one object | a noun |
| article | an answer that begins with an article ("a cup") | two words |

The last three groups of sentences have many right forms and are judged by their scene graph
(`bench.captions`); the others have one right answer.

POPE's negatives follow its definition: *random* draws among the absent nouns, *popular* takes the
absent nouns that are most frequent over the scenes, *adversarial* those that most often stand
beside the nouns that are present; three of each per scene, balanced by three present ones.
Frequencies and co-occurrences are counted on scenes of the training split.

    questions(scenes("test", 200), "pope-random")[0].text
    # 'Is there a cup in the image? Please answer this question with one word.'
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from redlib.errors import RedlibError
from redlib.tabletop.world import (
    COLOURS,
    GROUNDS,
    NOUNS,
    SIMPLE,
    SIZES,
    SPLITS,
    UNDERLAYS,
    WITHHELD,
    WORDS,
    Scene,
    Thing,
    article,
    plan,
)

ONE_WORD = (
    "What does this image show? You must provide a single word that best describes the image."
)
DESCRIBE = "Describe the provided image in one sentence."
DETAIL = "Please provide detailed and specific descriptions of the key information in the picture."
CHECKLIST = "Which objects are in the image?"
YES_NO = "Please answer yes or no."
LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Please answer directly with a single word or number."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
LETTERS = ("A", "B", "C", "D")
PLACES = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")
RELATIONS = ("to the left", "to the right", "above", "below")

COUNTED = 1000
POPE = ("pope-random", "pope-popular", "pope-adversarial")
MME = ("existence", "count", "position", "colour", "size", "scene", "text")
SEED = ("identity", "colour", "place", "count", "size", "relation", "text")
MMB = ("identity", "colour", "place", "count", "text")
CAPTIONS = ("nocaps", "flickr", "detail")
VQA = ("colour", "position", "count", "word", "naming", "article")
TASKS = (*POPE, "mme", "mmb", "seed", "rwqa", *VQA, *CAPTIONS)
MME_PER_SCENE, SEED_PER_SCENE, RWQA_PER_SCENE = 3, 2, 2


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        task: one of TASKS.
        image: id of the scene.
        text: what follows the image in the user's turn.
        answer: the right answer, lower case, without final punctuation (captions: as written).
        group: questions that belong together share it, within their scene: the category of a pair
            (mme), the kind of a set of rotations (mmb); the dimension (seed, rwqa); "" elsewhere.
        asked: index in `scene.objects` of the object the question is about, -1 where it is about
            none or about several.
        options: number of answers the question offers, 0 where it offers none.
    """

    task: str
    image: str
    text: str
    answer: str
    group: str = ""
    asked: int = -1
    options: int = 0


def questions(scene_list: Sequence[Scene], task: str) -> list[Question]:
    """All questions of a task about the scenes; scenes that cannot carry the task (no word
    written, no object of a unique noun, for rwqa a square image, for nocaps no withheld pair) give
    none.

    Raises:
        RedlibError: an unknown task.
    """
    if task not in TASKS:
        raise RedlibError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    return [q for s in scene_list if _suits(s, task) for q in ask(s, task, _rng(s, task))]


def ask(scene: Scene, task: str, rng: np.random.Generator) -> list[Question]:
    """The questions of a task about a scene with the random choices of `rng`; training asks with
    ever new ones."""
    if task in POPE:
        return [
            Question(task, scene.id, pope_text(noun), answer, asked=k, options=2)
            for noun, answer, k in _pope(scene, task, rng)
        ]
    if task == "mme":
        return _mme(scene, rng)
    if task == "mmb":
        return _rotations(scene, rng)
    if task in ("seed", "rwqa"):
        return _seed(scene, rng) if task == "seed" else _rwqa(scene, rng)
    return [
        Question(task, scene.id, text, answer, asked=k, options=options)
        for k, text, answer, options in _open(scene, task)
    ]


@lru_cache(maxsize=1)
def statistics() -> tuple[np.ndarray, np.ndarray]:
    """(frequency (32,), co-occurrence (32, 32)) of the nouns over COUNTED training scenes, as POPE
    counts them: in how many images a noun occurs, and in how many a pair of nouns does."""
    present = np.zeros((COUNTED, len(NOUNS)))
    for row, number in enumerate(SPLITS["train"][:COUNTED]):
        present[row, [NOUNS.index(piece.thing.noun) for piece in plan(number).pieces]] = 1
    together = present.T @ present
    frequency = together.diagonal().copy()
    np.fill_diagonal(together, 0)
    return frequency, together


def pope_text(noun: str) -> str:
    """POPE's question in the wording of the paper's release."""
    return (
        f"Is there {article(noun)} {noun} in the image? Please answer this question with one word."
    )


def _suits(scene: Scene, task: str) -> bool:
    height, width = scene.instance.shape
    if task == "rwqa":
        return width != height
    if task == "nocaps":
        return any((o.noun, o.colour) in WITHHELD for o in scene.objects)
    return scene.level == "crowded" if task == "flickr" else True


def _rng(scene: Scene, task: str) -> np.random.Generator:
    return np.random.default_rng([scene.number, TASKS.index(task)])


def _unique(scene: Scene) -> list[tuple[int, Thing]]:
    """The objects whose noun occurs once, with their index: "the cup" names one of them."""
    nouns = [o.noun for o in scene.objects]
    return [(i, o) for i, o in enumerate(scene.objects) if nouns.count(o.noun) == 1]


def _pick(rng: np.random.Generator, things: Iterable, n: int) -> list:
    """n of the things in random order, all of them where there are fewer."""
    things = list(things)
    return [things[i] for i in rng.permutation(len(things))[:n]]


def _open(scene: Scene, task: str) -> list[tuple[int, str, str, int]]:
    """The questions without random choices: (index or -1, text, answer, options)."""
    if task == "naming":
        return [(0, ONE_WORD, scene.objects[0].noun, 0)] if len(scene.objects) == 1 else []
    if task in ("nocaps", "flickr"):
        return [(-1, DESCRIBE, scene.caption, 0)]
    if task == "detail":
        return [(-1, DETAIL, scene.inventory, 0)]
    if task == "word":
        return [(-1, "What word is written in the image?", scene.word, 0)] if scene.word else []
    if task == "count":
        return [(-1, "How many objects are there?", NUMBERS[len(scene.objects)], 0)]
    if task == "colour":
        return [(i, f"What color is the {o.noun}?", o.colour, 0) for i, o in _unique(scene)]
    if task == "article":
        colours = [o.colour for o in scene.objects]
        return [
            (i, f"What is the {o.colour} thing?", f"{article(o.noun)} {o.noun}", 0)
            for i, o in enumerate(scene.objects)
            if colours.count(o.colour) == 1
        ]
    return [
        (i, f"Is the {o.noun} {halves}?", answer, 2)
        for i, o in _unique(scene)
        for halves, answer in _halves(scene, o)
    ]


def _offset(scene: Scene, thing: Thing) -> tuple[float, float]:
    """(dx, dy) of an object from the middle, as shares of the shorter side; 0 within a tenth."""
    height, width = scene.instance.shape
    side = min(height, width)
    dx, dy = (thing.centre[0] - width / 2) / side, (thing.centre[1] - height / 2) / side
    return (dx if abs(dx) > 0.1 else 0.0), (dy if abs(dy) > 0.1 else 0.0)


def _halves(scene: Scene, thing: Thing) -> list[tuple[str, str]]:
    """In which half an object lies; objects within a tenth of the middle are not asked about."""
    dx, dy = _offset(scene, thing)
    rows = [("on the left or on the right", "left" if dx < 0 else "right")] * bool(dx)
    return rows + [("at the top or at the bottom", "top" if dy < 0 else "bottom")] * bool(dy)


def _pope(scene: Scene, task: str, rng: np.random.Generator) -> list[tuple[str, str, int]]:
    """Up to three present nouns and as many absent ones: (noun, yes / no, index or -1)."""
    nouns = [o.noun for o in scene.objects]
    present = _pick(rng, sorted(set(nouns), key=nouns.index), 3)
    absent = [noun for noun in NOUNS if noun not in nouns]
    frequency, together = statistics()
    if task == "pope-random":
        ranked = _pick(rng, absent, len(absent))
    elif task == "pope-popular":
        ranked = sorted(absent, key=lambda noun: -frequency[NOUNS.index(noun)])
    else:
        beside = together[[NOUNS.index(noun) for noun in set(nouns)]].sum(0)
        ranked = sorted(absent, key=lambda noun: -beside[NOUNS.index(noun)])
    asked = [(noun, "yes", nouns.index(noun)) for noun in present]
    return asked + [(noun, "no", -1) for noun in ranked[: len(present)]]


def _mme(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """A pair, one yes and one no, in some of the categories."""
    found = []
    for category in _pick(rng, MME, len(MME)):
        pair = _mme_pair(scene, category, rng)
        if pair and len(found) < 2 * MME_PER_SCENE:
            found += [
                Question("mme", scene.id, f"{text} {YES_NO}", answer, category, k, 2)
                for (text, k), answer in zip(pair, ("yes", "no"), strict=True)
            ]
    return found


def _mme_pair(
    scene: Scene, category: str, rng: np.random.Generator
) -> list[tuple[str, int]] | None:
    """The question with the answer yes, then the one with no: (text, index or -1)."""
    if category == "existence":
        nouns = [o.noun for o in scene.objects]
        k = int(rng.integers(len(nouns)))
        (other,) = _pick(rng, (noun for noun in NOUNS if noun not in nouns), 1)
        return [(f"Is there {article(n)} {n} in this image?", i)
                for n, i in ((nouns[k], k), (other, -1))]  # fmt: skip
    if category == "text":
        if not scene.word:
            return None
        (other,) = _pick(rng, (word for word in WORDS if word != scene.word), 1)
        return [(f"Is the word {w} written in this image?", -1) for w in (scene.word, other)]
    if category == "count":
        n = len(scene.objects)
        (other,) = _pick(rng, (k for k in range(1, 8) if k != n), 1)
        return [(f"Are there {NUMBERS[k]} objects in this image?", -1) for k in (n, other)]
    if category == "scene":
        # under a plate or a sheet the texture that it lies on is to be seen too
        under = [scene.ground, scene.second, *(() if scene.ground in SIMPLE else UNDERLAYS)]
        (other,) = _pick(rng, (g for g in GROUNDS if g not in under), 1)
        return [(f"Is there a {g} ground in this image?", -1) for g in (scene.ground, other)]
    for k, thing in _pick(rng, _unique(scene), 7):
        if category == "position":
            dx, dy = _offset(scene, thing)
            sides = [("left", "right")[:: 1 if dx < 0 else -1]] * bool(dx)
            sides += [("top", "bottom")[:: 1 if dy < 0 else -1]] * bool(dy)
            if not sides:
                continue
            pair = sides[rng.integers(len(sides))]
            return [(f"Is the {thing.noun} {_at(side)}?", k) for side in pair]
        right, others = (thing.colour, COLOURS) if category == "colour" else (thing.size, SIZES)
        (other,) = _pick(rng, (name for name in others if name != right), 1)
        return [(f"Is the {thing.noun} {name}?", k) for name in (right, other)]
    return None


def _at(side: str) -> str:
    return f"{'on' if side in ('left', 'right') else 'at'} the {side}"


def _kinds(
    scene: Scene, kind: str, rng: np.random.Generator
) -> tuple[str, str, list[str], int] | None:
    """A question of a kind with its right option and three wrong ones: (text, right, wrong, index
    or -1), or None where the scene does not carry it."""
    things = scene.objects
    if kind == "identity":
        nouns = [o.noun for o in things]
        k = int(rng.integers(len(nouns)))
        absent = (noun for noun in NOUNS if noun not in nouns)
        return "Which object is in the image?", nouns[k], _pick(rng, absent, 3), k
    if kind == "text":
        wrong = (word for word in WORDS if word != scene.word)
        text = "What word is written in the image?"
        return (text, scene.word, _pick(rng, wrong, 3), -1) if scene.word else None
    if kind == "count":
        right = NUMBERS[len(things)]
        wrong = (n for n in NUMBERS[1:] if n != right)
        return "How many objects are there?", right, _pick(rng, wrong, 3), -1
    for k, thing in _pick(rng, _unique(scene), 7):
        noun = thing.noun
        if kind in ("colour", "size"):
            right, names = (thing.colour, COLOURS) if kind == "colour" else (thing.size, SIZES)
            text = f"What {'color' if kind == 'colour' else 'size'} is the {noun}?"
            return text, right, _pick(rng, (n for n in names if n != right), 3), k
        if kind == "place":
            dx, dy = _offset(scene, thing)
            if dx and dy:
                right = PLACES[2 * (dy > 0) + (dx > 0)]
                wrong = _pick(rng, (p for p in PLACES if p != right), 3)
                return f"Where is the {noun}?", right, wrong, k
            continue
        for _, other in _pick(rng, _unique(scene), 7):
            right = _relation(scene, thing, other)
            if right:
                wrong = _pick(rng, (r for r in RELATIONS if r != right), 3)
                return f"Where is the {noun} from the {other.noun}?", right, wrong, k
    return None


def _relation(scene: Scene, thing: Thing, other: Thing) -> str:
    """Where an object lies from another one, "" where no direction is twice as far as the other or
    they are near each other."""
    dx, dy = (a - b for a, b in zip(thing.centre, other.centre, strict=True))
    far, near = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if far < 0.15 * min(scene.instance.shape) or far < 2 * near:
        return ""
    if abs(dx) > abs(dy):
        return RELATIONS[int(dx > 0)]
    return RELATIONS[2 + int(dy > 0)]


def options(text: str, listed: Sequence[str], *, last: str = LETTER) -> str:
    """A question with lettered options, in lmms-eval's wording."""
    letters = "\n".join(f"{LETTERS[k]}. {option}" for k, option in enumerate(listed))
    return f"{text}\n{letters}\n{last}"


def _seed(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Of some dimensions a question with four options in random order."""
    found = []
    for kind in _pick(rng, SEED, len(SEED)):
        row = _kinds(scene, kind, rng)
        if row and len(found) < SEED_PER_SCENE:
            text, right, wrong, k = row
            listed = _pick(rng, [right, *wrong], 4)
            letter = LETTERS[listed.index(right)].lower()
            found.append(Question("seed", scene.id, options(text, listed), letter, kind, k, 4))
    return found


def _rotations(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question with its four options in all four rotations (MMBench's circular evaluation)."""
    for kind in _pick(rng, MMB, len(MMB)):
        row = _kinds(scene, kind, rng)
        if row:
            text, right, wrong, k = row
            order = _pick(rng, [right, *wrong], 4)
            turns = [order[i:] + order[:i] for i in range(4)]
            return [
                Question("mmb", scene.id, options(text, listed),
                         LETTERS[listed.index(right)].lower(), kind, k, 4)
                for listed in turns
            ]  # fmt: skip
    return []


def _rwqa(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions about the smallest object of a unique noun, and about the written word, in
    RealWorldQA's two forms: a letter, or a single word."""
    rows: list[Question] = []

    def add(kind: str, text: str, answer: str, asked: int, offered: int) -> None:
        rows.append(Question("rwqa", scene.id, text, answer, kind, asked, offered))

    def choose(kind: str, text: str, right: str, wrong: list[str], asked: int) -> None:
        listed = _pick(rng, [right, *wrong], len(wrong) + 1)
        letter = LETTERS[listed.index(right)].lower()
        add(kind, options(text, listed), letter, asked, len(listed))

    once = _unique(scene)
    if once:
        k, thing = min(once, key=lambda row: list(SIZES).index(row[1].size))
        colours = _pick(rng, (c for c in COLOURS if c != thing.colour), 2)
        choose("colour", f"What color is the {thing.noun}?", thing.colour, colours, k)
        for halves, answer in _halves(scene, thing)[:1]:
            add("side", f"Is the {thing.noun} {halves}? {SHORT}", answer, k, 2)
    if scene.word:
        add("text", f"What word is written in the image? {SHORT}", scene.word, -1, 0)
    right = NUMBERS[len(scene.objects)]
    add("count", f"How many objects are there? {SHORT}", right, -1, 0)
    return _pick(rng, rows, RWQA_PER_SCENE)
