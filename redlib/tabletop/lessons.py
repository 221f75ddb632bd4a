"""What a training step asks: ordinary questions about scenes, seen through some of their tokens.

Every step takes a few scenes, keeps a part of each one's visual tokens, and asks ordinary questions
about the scene: is there a cup, what colour is it, where, how many, what does the image show, which
of these things are there. The questions of a scene share its visual prefix in one sequence, and
cannot see each other.

What is kept is a random subset or a block of neighbouring tokens, never fewer than MIN_TOKENS. An
answer is the whole scene's, whatever the subset shows: who is asked about a cup that fell outside
has to hedge, and that is how the decoder learns to be unsure where nothing is to be seen. Nobody
ever tells it what a single token is. The one-word question alone is answered from what the tokens
at hand show: with an object among them, if there is one, else with any object of the scene. And a
sentence names what they show.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from redlib.tabletop import films, pairs
from redlib.tabletop.pairs import NONE
from redlib.tabletop.questions import (
    CHECKLIST,
    DESCRIBE,
    DETAIL,
    LETTER,
    LETTERS,
    ONE_WORD,
    ask,
    pope_text,
    statistics,
)
from redlib.tabletop.sources import Card, Source
from redlib.tabletop.world import NOUNS, Scene, article

CHECKLISTS = (CHECKLIST, *pairs.CHECKLISTS, *films.CHECKLISTS, pairs.BOTH, films.BOTH)

MIN_TOKENS = 16
FEW, MANY = 8, 12  # questions per scene
RICH = 8.0
KINDS = {
    "colour": 2,
    "position": 1.5,
    "article": 1.5,
    "mme": 5,
    "mmb": 3,
    "seed": 5,
    "rwqa": 1.5,
    "count": 3,
    "word": 2,
}
KIND_SHARES = np.array(list(KINDS.values())) / sum(KINDS.values())
OUT_OF_VIEW = 0.15  # how much rarer questions about an object none of whose tokens is at hand are
CAPTION_WEIGHT = 1.0  # per token of a caption that is no noun
NOUN_WEIGHT = 4.0  # per noun of a caption: most of its other words follow from these
WIDE = 81  # tokens from which many questions are worth asking
ARTICLE_SHARE = 0.12  # one-word answers that begin with an article all the same
L = 576  # tokens that cost as much as those of one whole scene
TOKENS = {
    "rich": (16, 20, 24, 30, 36, 49),
    "few": (16, 16, 20, 24, 25, 30, 36, 42, 49, 56, 64),
    "more": (81, 100, 121, 144, 196),
}
SCENES = {"rich": 20, "few": 16, "more": 10, "all": 5}  # in a step
EARLY, LATE = (0.65, 0.15, 0.2, 0.0), (0.15, 0.1, 0.3, 0.45)  # shares of the four kinds of step
EARLY_SHARE = 0.4  # of all steps are early ones


def one_word(c: Card, view: np.ndarray, rng: np.random.Generator) -> str:
    """An object among the tokens at hand, by the number of tokens it covers; without one, any."""
    weights = c.seen[:, view].sum(1).astype(float)
    if weights.sum() == 0:
        weights[:] = 1
    noun = c.scene.objects[rng.choice(len(weights), p=weights / weights.sum())].noun
    return f"{article(noun)} {noun}" if rng.random() < ARTICLE_SHARE else noun


def _existence(c: Card, rng: np.random.Generator) -> tuple[str, str]:
    """A noun that is there or one that is not, half each."""
    nouns = [o.noun for o in c.scene.objects]
    if rng.random() < 0.5:
        return nouns[rng.integers(len(nouns))], "yes"
    weights = _absent_weights(nouns)
    return NOUNS[rng.choice(len(NOUNS), p=weights / weights.sum())], "no"


def checklist(scene: Scene, rng: np.random.Generator) -> str:
    """Nouns in random order, present and absent ones: "cup yes red small left, anchor no, ...".

    The shortest way to many questions: the word before the answer is the thing asked about. Which
    noun comes next is chance and not learned (see `batch`)."""
    nouns = [o.noun for o in scene.objects]
    parts = [
        f"{noun} yes {scene.details(k)}" for k, noun in enumerate(nouns) if nouns.count(noun) == 1
    ]
    return listed(parts + [f"{noun} no" for noun in absent(nouns, rng)], rng)


def absent(nouns: list[str], rng: np.random.Generator) -> list[str]:
    """Nouns that are not among those, one more than they are."""
    weights = _absent_weights(nouns)
    chosen = rng.choice(len(NOUNS), len(nouns) + 1, replace=False, p=weights / weights.sum())
    return [NOUNS[i] for i in chosen]


def listed(parts: list[str], rng: np.random.Generator) -> str:
    """The parts of a checklist in random order."""
    return f"{', '.join(parts[i] for i in rng.permutation(len(parts)))}."


def _absent_weights(nouns: list[str]) -> np.ndarray:
    """How often each noun occurs, 0 for the ones at hand: no absent noun is by itself a hint."""
    weights, _ = statistics()
    weights = weights.copy()
    weights[[NOUNS.index(noun) for noun in nouns]] = 0
    return weights


def lesson(c: Card, view: np.ndarray, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions and answers about a scene seen through some of its tokens: FEW where these are few,
    MANY where they are so many that a question more costs little beside them."""
    wide = len(view) >= WIDE
    rows = [(CHECKLIST, checklist(c.scene, rng)), (ONE_WORD, one_word(c, view, rng))]
    for _ in range(3 if wide else 1):
        noun, answer = _existence(c, rng)
        rows.append((pope_text(noun), answer))
    rows += _talk(c, view)
    in_view = np.append(c.seen[:, view].any(1), True)  # the last is for questions about no object
    while len(rows) < (MANY if wide else FEW):
        asked = ask(c.scene, str(rng.choice(list(KINDS), p=KIND_SHARES)), rng)
        if asked:
            weights = np.where(in_view[[q.asked for q in asked]], 1.0, OUT_OF_VIEW)
            q = asked[rng.choice(len(asked), p=weights / weights.sum())]
            rows.append((q.text, q.answer))
    return rows


def _talk(c: Card, view: np.ndarray) -> list[tuple[str, str]]:
    """A sentence and a list that name what the tokens at hand show; nothing, if they show nothing.

    Unlike other answers these leave out what fell outside: whoever has to name what is not to be
    seen learns to make things up."""
    seen = np.flatnonzero(c.seen[:, view].any(1))
    if not len(seen):
        return []
    sentence = c.scene.sentence(seen, word=bool(c.written[view].any()))
    return [(DESCRIBE, sentence), (DETAIL, c.scene.description(seen))]


def view(rng: np.random.Generator, tokens: int, c: Card, *, rich: bool = False) -> np.ndarray:
    """(tokens,) numbers of visual tokens, ascending: all of them, or with even chances a random
    subset or a block of neighbours in one tile. Three blocks in four lie over an object. A rich
    view is a random subset that takes covered patches RICH times as often as bare ones."""
    size, cells = c.seen.shape[1], c.cells
    if tokens == size:
        return np.arange(tokens)
    if rich:
        weights = np.where(c.seen.any(0), RICH, 1.0)
        return np.sort(rng.choice(size, tokens, replace=False, p=weights / weights.sum()))
    heights = (h for h in range(3, 15) if tokens % h == 0)
    sides = [(h, tokens // h) for h in heights if 3 <= tokens // h <= cells]
    if not sides or rng.random() < 0.5:
        return np.sort(rng.permutation(size)[:tokens])
    h, w = sides[rng.integers(len(sides))]
    tile = rng.integers(size // cells**2)
    row, column = rng.integers(cells - h + 1), rng.integers(cells - w + 1)
    over = np.flatnonzero(c.seen[rng.integers(len(c.seen))])
    if len(over) and rng.random() < 0.75:
        tile, at = divmod(int(rng.choice(over)), cells**2)
        r, col = divmod(at, cells)
        row = np.clip(r - rng.integers(h), 0, cells - h)
        column = np.clip(col - rng.integers(w), 0, cells - w)
    block = (row + np.arange(h))[:, None] * cells + column + np.arange(w)
    return tile * cells**2 + block.ravel()


class Writer:
    """Turns (question, answer) pairs into token ids, once per distinct text."""

    def __init__(self, processor) -> None:
        self.tokenizer = processor.tokenizer
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "|"}]}],
            add_generation_prompt=True,
        )
        before, after = text.split("<image>")
        self.after = after
        self.prefix = self.tokenizer(before).input_ids
        self.end = self.tokenizer.eos_token_id
        self.memo: dict[str, list[int]] = {}
        self.nouns = [self.ids(noun)[0] for noun in NOUNS]

    def ids(self, text: str) -> list[int]:
        """Ids of the words of a text, and none around them."""
        if text not in self.memo:
            if len(self.memo) > 50_000:
                self.memo.clear()
            self.memo[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.memo[text]

    def pair(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids from behind the image up to the answer, and of the answer with its end."""
        return self.ids(self.after.replace("|", question)), [*self.ids(answer), self.end]

    def offered(self, question: str, answer: str) -> list[tuple[int, int]]:
        """Of every lettered option the place of its last token in the question and whether it is
        the right one; of "None" it cannot be said before the last option is read."""
        first, *lines = question.split("\n")
        if not lines or lines[-1] != LETTER:
            return []
        found = []
        for k, line in enumerate(lines[:-1]):
            text = self.after.split("|")[0] + "\n".join((first, *lines[: k + 1]))
            if not line.endswith(NONE):
                found.append((len(self.ids(text)) - 1, LETTERS[k].lower() == answer))
        return found


def batch(
    writer: Writer, asked: list[list[tuple[str, str]]], tokens: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Pack the questions of every scene behind its visual tokens.

    Returns:
        ids (B, T) of the text after the visual tokens; mask (B, 1, P + n + T, P + n + T), True
        where attention is allowed; positions (B, P + n + T); target (B, T), the id that position
        has to predict or -100; weight (B, T); part (B, T) number of the question; judged (B, T),
        where an option ends whether it is right, 1 or 0, -1 elsewhere.
    """
    rows = []
    for pairs_of_one in asked:
        ids, target, weight, part, place, judged = [], [], [], [], [], []
        for k, (question, answer) in enumerate(pairs_of_one):
            put, said = writer.pair(question, answer)
            full = put + said
            ids += full[:-1]
            target += [-100] * (len(put) - 1) + said
            named = np.isin(full[1:], writer.nouns)
            each = np.ones(len(named))
            if question in (DESCRIBE, DETAIL):
                each = np.where(named, NOUN_WEIGHT, CAPTION_WEIGHT)
            elif question in CHECKLISTS:
                each = 1.0 - named  # which noun comes next is chance
            weight += each.tolist()
            part += [k + 1] * (len(full) - 1)
            place += list(range(len(full) - 1))
            truth = [-1.0] * (len(full) - 1)
            for end, right in writer.offered(question, answer):
                truth[end] = float(right)
            judged += truth
        rows.append((ids, target, weight, part, place, judged))
    length = max(len(r[0]) for r in rows)

    def stack(k: int, fill: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([r[k] + [fill] * (length - len(r[k])) for r in rows], dtype=dtype)

    part = stack(3, -1, torch.long)
    head = len(writer.prefix) + tokens
    whole = torch.cat((torch.zeros(len(rows), head, dtype=torch.long), part), 1)
    order = torch.arange(head + length)
    allowed = (whole[:, None, :] == 0) | (whole[:, None, :] == whole[:, :, None])
    mask = (allowed & (order[None, :] <= order[:, None]))[:, None]
    place = torch.cat((order[:head].expand(len(rows), -1), head + stack(4, 0, torch.long)), 1)
    made = {
        "ids": stack(0, 0, torch.long),
        "mask": mask,
        "positions": place,
        "part": part,
        "target": stack(1, -100, torch.long),
        "weight": stack(2, 0.0, torch.float),
        "judged": stack(5, -1.0, torch.float),
    }
    return {key: value.to(device) for key, value in made.items()}


Step = tuple[np.ndarray, list[np.ndarray], list[list[tuple[str, str]]]]
"""Numbers of inputs (B,), the visual tokens kept of each, and what is asked about each."""


def on_scenes(source: Source, kind: str, rng: np.random.Generator) -> Step:
    """A step of a kind of SCENES on scenes."""
    tokens = source.tokens if kind == "all" else int(rng.choice(TOKENS[kind]))
    size = max(1, SCENES[kind] * L // tokens) if kind == "all" else SCENES[kind]
    chosen = rng.integers(0, len(source.cards), size)
    kept = [view(rng, tokens, source.cards[i], rich=kind == "rich") for i in chosen]
    asked = [lesson(source.cards[i], v, rng) for i, v in zip(chosen, kept, strict=True)]
    return chosen, kept, asked


@dataclass(frozen=True)
class Course:
    """What part of the steps is spent on.

    Attributes:
        source: the inputs.
        share: of the steps.
        step: what a step of a kind of SCENES does with the source.
        stretched: of films: one of these numbers by lot, how many times as long as the source's
            the film is that a step's tokens keep their positions of. So times and distances are
            learned that whole films have, at the cost of few tokens. With 0 what is kept is
            numbered anew, as behind a pruner; so it always is with none.
    """

    source: Source
    share: float
    step: Callable[[Source, str, np.random.Generator], Step] = on_scenes
    stretched: tuple[int, ...] = ()


class Lessons:
    """Training batches by step number.

    To find among the tokens the ones that a question is about is the hard part, and it is learned
    an order of magnitude sooner from few tokens that show much. So the first steps mostly see rich
    views of few tokens; then come plain subsets and blocks of all sizes, and whole images.

    Args:
        courses: their shares sum to 1.
        early: how many of the steps are early ones.
    """

    def __init__(
        self,
        writer: Writer,
        courses: Sequence[Course],
        seed: int,
        device: torch.device,
        early: int,
    ):
        self.writer, self.seed, self.device, self.early = writer, seed, device, early
        self.courses, self.shares = courses, [course.share for course in courses]

    def batch(self, model: nn.Module, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The packed text of a step and its visual inputs (B, T, D)."""
        rng = np.random.default_rng([self.seed, step])
        course = self.courses[0]
        if len(self.courses) > 1:
            course = self.courses[rng.choice(len(self.courses), p=self.shares)]
        kinds = ("rich", "few", "more", "all")
        kind = kinds[rng.choice(len(kinds), p=EARLY if step < self.early else LATE)]
        chosen, kept, asked = course.step(course.source, kind, rng)
        visual = course.source.pack(model, chosen, kept, self.device)
        packed = batch(self.writer, asked, visual.shape[1], self.device)
        times = int(rng.choice(course.stretched)) if course.stretched else 0
        if times:
            stretch(packed, kept, course.source, times, len(self.writer.prefix))
        return packed, visual


def stretch(
    packed: dict[str, torch.Tensor], kept: list[np.ndarray], source: Source, times: int, head: int
) -> None:
    """Number the tokens of films, and what follows them, as in whole ones of `times` as many
    frames."""
    size = source.cards[0].cells ** 2
    frames, places = np.divmod(np.stack(kept), size)
    whole = torch.from_numpy(frames * times * size + places).to(packed["positions"])
    n = whole.shape[1]
    packed["positions"][:, head : head + n] = head + whole
    packed["positions"][:, head + n :] += source.tokens * times - n
