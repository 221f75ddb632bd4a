"""Questions about tabletop scenes, in the schemas of the real benchmarks.

Each task asks what one benchmark of the paper asks, and gives its answer from the scene's truth:

| task | stands in for | answer |
|---|---|---|
| pope-random, pope-popular, pope-adversarial | POPE: is an object there | yes / no, half each |
| mme | MME: two questions per image, one yes and one no | yes / no |
| choice | MMBench, SEED: one of four options is right | a letter |
| colour, position, count, word | VQA | one word |
| naming | the single-token probe's own prompt, on scenes of one object | a noun |
| article | an answer that begins with an article ("a cup") | two words |
| caption | NoCaps, Flickr30k: one sentence | the scene's caption |

POPE's negatives follow its definition: *random* draws among the absent nouns, *popular* takes the
absent nouns that are most frequent over the scenes, *adversarial* those that most often stand
beside the nouns that are present; three of each per scene, balanced by three present ones.
Frequencies and co-occurrences are counted on scenes of the training split.

    questions(scenes("test", 200), "pope-random")[0].text
    # 'Is there a cup in the image? Please answer this question with one word.'
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from redlib.errors import RedlibError
from redlib.tabletop.world import COLOURS, NOUNS, Scene, Thing, article, scenes

ONE_WORD = (
    "What does this image show? You must provide a single word that best describes the image."
)
DESCRIBE = "Describe the provided image in one sentence."
DETAIL = "Please provide detailed and specific descriptions of the key information in the picture."
CHECKLIST = "Which objects are in the image?"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
LETTERS = ("A", "B", "C", "D")

COUNTED = 1000
POPE = ("pope-random", "pope-popular", "pope-adversarial")
TASKS = (
    *POPE,
    "mme",
    "choice",
    "colour",
    "position",
    "count",
    "word",
    "naming",
    "article",
    "caption",
)


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        task: one of TASKS.
        image: id of the scene.
        text: what follows the image in the user's turn.
        answer: the right answer, lower case, without final punctuation.
        group: id of the pair (mme), "" elsewhere.
        asked: index in `scene.objects` of the object the question is about, -1 where it is about
            none or about several.
    """

    task: str
    image: str
    text: str
    answer: str
    group: str = ""
    asked: int = -1


def questions(scene_list: Sequence[Scene], task: str) -> list[Question]:
    """All questions of a task about the scenes; scenes that cannot carry the task (no word
    written, no object of a unique noun) give none.

    Raises:
        RedlibError: an unknown task.
    """
    if task not in TASKS:
        raise RedlibError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    return [q for scene in scene_list for q in _ask(scene, task)]


@lru_cache(maxsize=1)
def statistics() -> tuple[np.ndarray, np.ndarray]:
    """(frequency (32,), co-occurrence (32, 32)) of the nouns over COUNTED training scenes, as POPE
    counts them: in how many images a noun occurs, and in how many a pair of nouns does."""
    present = np.zeros((COUNTED, len(NOUNS)))
    for row, scene in enumerate(scenes("train", COUNTED)):
        present[row, [NOUNS.index(o.noun) for o in scene.objects]] = 1
    together = present.T @ present
    frequency = together.diagonal().copy()
    np.fill_diagonal(together, 0)
    return frequency, together


def _rng(scene: Scene, task: str) -> np.random.Generator:
    return np.random.default_rng([int(scene.id.split("-")[1]), TASKS.index(task)])


def _unique(scene: Scene) -> list[tuple[int, Thing]]:
    """The objects whose noun occurs once, with their index: "the cup" names one of them."""
    nouns = [o.noun for o in scene.objects]
    return [(i, o) for i, o in enumerate(scene.objects) if nouns.count(o.noun) == 1]


def pope_text(noun: str) -> str:
    return (
        f"Is there {article(noun)} {noun} in the image? Please answer this question with one word."
    )


def _ask(scene: Scene, task: str) -> list[Question]:
    rng = _rng(scene, task)

    def ask(text: str, answer: str, *, group: str = "", asked: int = -1) -> Question:
        return Question(task, scene.id, text, answer, group, asked)

    if task in POPE:
        return [
            ask(pope_text(noun), answer, asked=asked)
            for noun, answer, asked in _pope(scene, task, rng)
        ]
    if task == "mme":
        return [
            ask(text, answer, group=f"{scene.id}/{kind}", asked=asked)
            for kind, text, answer, asked in _pairs(scene, rng)
        ]
    if task == "choice":
        return [ask(*_choice(scene, rng))]
    if task == "naming":
        return [ask(ONE_WORD, scene.objects[0].noun, asked=0)] if len(scene.objects) == 1 else []
    if task == "caption":
        return [ask(DESCRIBE, scene.caption)]
    if task == "word":
        return [ask("What word is written in the image?", scene.word)] if scene.word else []
    if task == "count":
        return [ask("How many objects are there?", NUMBERS[len(scene.objects)])]
    if task == "colour":
        return [ask(f"What color is the {o.noun}?", o.colour, asked=i) for i, o in _unique(scene)]
    if task == "article":
        once = [
            (i, o)
            for i, o in enumerate(scene.objects)
            if [t.colour for t in scene.objects].count(o.colour) == 1
        ]
        return [
            ask(f"What is the {o.colour} thing?", f"{article(o.noun)} {o.noun}", asked=i)
            for i, o in once
        ]
    return [ask(text, answer, asked=i) for i, text, answer in _positions(scene)]


def _pope(scene: Scene, task: str, rng: np.random.Generator) -> list[tuple[str, str, int]]:
    """Up to three present nouns and as many absent ones: (noun, yes / no, index or -1)."""
    nouns = [o.noun for o in scene.objects]
    present = sorted(set(nouns), key=nouns.index)
    present = [present[i] for i in rng.permutation(len(present))[:3]]
    absent = [noun for noun in NOUNS if noun not in nouns]
    frequency, together = statistics()
    if task == "pope-random":
        ranked = [absent[i] for i in rng.permutation(len(absent))]
    elif task == "pope-popular":
        ranked = sorted(absent, key=lambda noun: -frequency[NOUNS.index(noun)])
    else:
        beside = together[[NOUNS.index(noun) for noun in set(nouns)]].sum(0)
        ranked = sorted(absent, key=lambda noun: -beside[NOUNS.index(noun)])
    asked = [(noun, "yes", nouns.index(noun)) for noun in present]
    return asked + [(noun, "no", -1) for noun in ranked[: len(present)]]


def _pairs(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str, int]]:
    """MME's form: an existence pair, and a colour pair where a noun is unique."""
    nouns = [o.noun for o in scene.objects]
    i = int(rng.integers(len(nouns)))
    absent = [noun for noun in NOUNS if noun not in nouns]
    other = absent[rng.integers(len(absent))]
    tail = "Please answer yes or no."
    rows = [
        ("existence", f"Is there {article(n)} {n} in this image? {tail}", a, k)
        for n, a, k in ((nouns[i], "yes", i), (other, "no", -1))
    ]
    once = _unique(scene)
    if once:
        k, thing = once[rng.integers(len(once))]
        wrong = [c for c in COLOURS if c != thing.colour]
        for colour, answer in ((thing.colour, "yes"), (wrong[rng.integers(len(wrong))], "no")):
            rows.append(("colour", f"Is the {thing.noun} {colour}? {tail}", answer, k))
    return rows


def _choice(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """One present noun among three absent ones, in random order, in lmms-eval's wording."""
    nouns = [o.noun for o in scene.objects]
    absent = [noun for noun in NOUNS if noun not in nouns]
    options = [nouns[rng.integers(len(nouns))]]
    options += [absent[i] for i in rng.permutation(len(absent))[:3]]
    order = rng.permutation(4)
    listing = "\n".join(f"{LETTERS[k]}. {options[i]}" for k, i in enumerate(order))
    text = (
        f"Which object is in the image?\n{listing}\n"
        "Answer with the option's letter from the given choices directly."
    )
    return text, LETTERS[int(np.flatnonzero(order == 0)[0])].lower()


def _positions(scene: Scene) -> list[tuple[int, str, str]]:
    """In which half an object lies; objects within a tenth of the middle are not asked about."""
    height, width = scene.instance.shape
    side = min(height, width)
    rows = []
    for i, thing in _unique(scene):
        dx, dy = thing.centre[0] - width / 2, thing.centre[1] - height / 2
        if abs(dx) > side / 10:
            rows.append(
                (
                    i,
                    f"Is the {thing.noun} on the left or on the right?",
                    "left" if dx < 0 else "right",
                )
            )
        if abs(dy) > side / 10:
            rows.append(
                (
                    i,
                    f"Is the {thing.noun} at the top or at the bottom?",
                    "top" if dy < 0 else "bottom",
                )
            )
    return rows
