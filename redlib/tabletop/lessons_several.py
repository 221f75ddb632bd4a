"""What a training step asks about two images, a spot-the-difference picture and a film.

Questions with lettered options are few per image, cost many words, and teach little at first: their
answer is a letter. So each is asked in several forms, with its options in another order and open,
with the right option for an answer; others about the same two scenes are laid out like it, with
options (`_offered`); and beside them stand questions whose answers take a look at one place: which
objects are in the first image, which image shows which, what happens to each object.

What is kept are the same places in both images, or in some of a film's frames, since two images
can only be compared where both are seen. As with scenes (`lessons`), an answer is the whole
input's, whatever the places show.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from redlib.tabletop import films, pairs
from redlib.tabletop.films import SUBTASKS, Film
from redlib.tabletop.lessons import TOKENS, Step, absent, checklist, listed, view
from redlib.tabletop.pairs import NONE, ORDER, SPOT_THE_DIFFERENCE, WAYS, Composite, Pair
from redlib.tabletop.questions import LETTERS, NUMBERS, YES_NO, options
from redlib.tabletop.sources import Card, Source
from redlib.tabletop.world import COLOURS, SIDE, WORDS, Scene, Thing, article

Rows = list[tuple[str, str]]

LENGTH = 5_000  # tokens of a step, about
TEXT = 400  # tokens of the questions about one input, about
ASKED = 11  # questions per input
OFFERED = 6  # of them lettered ones about any two scenes
UNANSWERABLE = 0.3  # of those
OPEN = 0.5  # lettered questions that are asked without their options
NO = 0.25  # of the comparisons of any two images whose answer is no, so many are asked
FRAMES = {"rich": (3, 6, 12), "few": (4, 8, 16), "more": (4, 6, 8), "all": (8, 16)}
SPOTTED = (100, 144, 196)  # tokens of a rich view of a composite; it is always seen whole else


def on_pairs(source: Source, kind: str, rng: np.random.Generator) -> Step:
    """A step on questions about two images, a kind of `lessons.SCENES`."""
    places = source.tokens // 2 if kind == "all" else int(rng.choice(TOKENS[kind]))
    return _step(source, kind, places, lambda: (0, 1), about_pair, rng)


def on_composites(source: Source, kind: str, rng: np.random.Generator) -> Step:
    """A step on spot-the-difference pictures."""
    places = int(rng.choice(SPOTTED)) if kind == "rich" else source.tokens
    return _step(source, kind, places, lambda: (0,), about_composite, rng)


def on_films(source: Source, kind: str, rng: np.random.Generator) -> Step:
    """A step on films: the first frame, the last one and some between them."""
    frames = len(source.tiles[0])
    whole = source.tokens // frames
    places = whole if kind == "all" else int(rng.choice(TOKENS[kind]))
    n = int(rng.choice(FRAMES[kind]))

    def some() -> np.ndarray:
        between = 1 + np.sort(rng.permutation(frames - 2)[: n - 2])
        return np.concatenate(([0], between, [frames - 1]))

    return _step(source, kind, places, some, about_film, rng)


def _step(
    source: Source,
    kind: str,
    places: int,
    tiles: Callable[[], Sequence[int]],
    about: Callable[..., Rows],
    rng: np.random.Generator,
) -> Step:
    """As many inputs as come to LENGTH, of each so many places in each of some tiles."""
    size = max(1, LENGTH // (places * len(tiles()) + TEXT))
    chosen = rng.integers(0, len(source.cards), size)
    cards = [source.cards[i] for i in chosen]
    kept = [same_places(rng, places, c, tiles(), rich=kind == "rich") for c in cards]
    return chosen, kept, [about(c.scene, rng) for c in cards]


def same_places(
    rng: np.random.Generator, places: int, c: Card, tiles: Sequence[int], *, rich: bool = False
) -> np.ndarray:
    """(tiles * places,) numbers of visual tokens, ascending: a `view` of one tile, chosen by what
    any of these tiles shows, in each of them."""
    size = c.cells**2
    together = c.seen.reshape(len(c.seen), -1, size)[:, np.asarray(tiles)].any(1)
    at = view(rng, places, replace(c, seen=together), rich=rich)
    return (np.asarray(tiles)[:, None] * size + at).ravel()


def about_pair(pair: Pair, rng: np.random.Generator) -> Rows:
    """The pair's own question, in two forms where it has options, and others about its scenes."""
    if pair.schema == "busy":
        return about_busy(pair, rng)
    rows = [put(pair.text, pair.answer, rng)]
    if "\n" in pair.text:
        rows.append(put(pair.text, pair.answer, rng))
    change = difference(*pair.scenes)
    if change:
        rows.append((pairs.CHANGED, f"{pairs.clause(*change)}."))
    offered = _offered(pair.scenes, rng)
    rows += [offered[i] for i in rng.permutation(len(offered))[:OFFERED]]
    return rows + _compared(pair.scenes, ASKED - len(rows), rng)


def _both(scenes: tuple[Scene, Scene], rng: np.random.Generator) -> str:
    """Of each noun that no scene shows twice what it is like in the first and in the second: "cup
    red small left blue small left, star no green large, ..."."""
    nouns = [[thing.noun for thing in scene.objects] for scene in scenes]
    parts = []
    for noun in _never_twice(nouns):
        said = [
            scene.details(of.index(noun)) if noun in of else "no"
            for scene, of in zip(scenes, nouns, strict=True)
        ]
        parts.append(f"{noun} {' '.join(said)}")
    return listed(parts, rng)


def _never_twice(nouns: list[list[str]]) -> list[str]:
    """Of the nouns of two scenes those that neither shows twice."""
    return [
        noun
        for noun in dict.fromkeys(nouns[0] + nouns[1])
        if max(of.count(noun) for of in nouns) == 1
    ]


def about_busy(pair: Pair, rng: np.random.Generator) -> Rows:
    """As many comparisons as there is room for: of two images that are alike the number of objects
    and the ground, of changed ones what happened to each object that is there once."""
    scenes = pair.scenes
    rows = [(pairs.BOTH, _both(scenes, rng))]
    compared = [*_counted(scenes, rng, no=1.0), *_grounds(scenes, rng, no=1.0)]
    if pair.kind == "alike":
        for order, scene in zip(ORDER, scenes, strict=True):
            text = f"How many objects are in the {order} image?"
            rows.append((text, NUMBERS[len(scene.objects)]))
        rows += compared
        more = [*_offered(scenes, rng), *_owned(scenes), *_coloured(scenes, rng, no=1.0)]
    else:
        happened = _happened(scenes)
        fates = [f"{noun} {_said(change)}" for noun, change in happened.items()]
        rows += [(films.CHECKLISTS[2], listed(fates, rng)), (pair.text, pair.answer)]
        more = [*compared, *_coloured(scenes, rng, no=1.0), *_ways(happened, rng)]
        more += _changers(happened, rng)
    return rows + [more[i] for i in rng.permutation(len(more))[: ASKED - len(rows)]]


def about_composite(game: Composite, rng: np.random.Generator) -> Rows:
    """The game itself, and questions about its two pictures."""
    return [(SPOT_THE_DIFFERENCE, game.answer), *_compared(game.scenes, ASKED // 2, rng)]


def about_film(film: Film, rng: np.random.Generator) -> Rows:
    """What is there at the start and at the end, what happens to each object, and questions of
    subtasks by lot."""
    start, end, happens = films.CHECKLISTS
    rows = [
        (start, checklist(_still(film, 0), rng)),
        (end, checklist(_still(film, film.frames - 1), rng)),
        (happens, listed([_fate(film, k) for k in range(len(film.objects))], rng)),
        (films.BOTH, _both((_still(film, 0), _still(film, film.frames - 1)), rng)),
    ]
    for task in rng.permutation(SUBTASKS):
        asked = films.ask(film, task, rng) if len(rows) < ASKED else None
        rows += [put(asked.text, asked.answer, rng)] if asked else []
    return rows


def put(text: str, answer: str, rng: np.random.Generator) -> tuple[str, str]:
    """A lettered question with its options in another order, or open: without them, the right one
    being the answer. Any other question stays as it is."""
    first, *lines = text.split("\n")
    if not lines:
        return text, answer
    offered = [line.split(". ", 1)[1] for line in lines[:-1]]
    right = offered[LETTERS.index(answer.upper())]
    if right != NONE and rng.random() < OPEN:
        return first, right
    return _shuffled(first, right, offered, rng)


def _shuffled(
    text: str, right: str, offered: Sequence[str], rng: np.random.Generator
) -> tuple[str, str]:
    """A lettered question with its options in random order, and the right one's letter."""
    order = [offered[i] for i in rng.permutation(len(offered))]
    return options(text, order), LETTERS[order.index(right)].lower()


def difference(first: Scene, second: Scene) -> tuple[str, ...] | None:
    """What changed from one scene to the other, as in `Composite.differences`, where one object was
    changed and nothing else; else None."""
    gone = [thing for thing in first.objects if thing not in second.objects]
    come = [thing for thing in second.objects if thing not in first.objects]
    before, after = (things[0] if len(things) == 1 else None for things in (gone, come))
    if len(gone) + len(come) == 1:
        return _change(before, after)
    if not (before and after) or before.noun != after.noun:
        return None
    return _change(before, after)


def _happened(scenes: tuple[Scene, Scene]) -> dict[str, tuple[str, ...] | None]:
    """Of the nouns that each scene shows at most once what changed, as in `difference`, or None."""
    nouns = [[thing.noun for thing in scene.objects] for scene in scenes]
    once = [_once(scene) for scene in scenes]
    return {noun: _change(*(things.get(noun) for things in once)) for noun in _never_twice(nouns)}


def _change(before: Thing | None, after: Thing | None) -> tuple[str, ...] | None:
    """What changed from an object in the first scene to the same in the second."""
    if after is None:
        return "missing", before.colour, before.noun
    if before is None:
        return "new", after.size, after.colour, after.noun
    if before == after:
        return None
    if before.box == after.box:
        return "recoloured", before.colour, before.noun, after.colour
    dx, dy = (b - a for a, b in zip(before.centre, after.centre, strict=True))
    way = next((w for w, (x, y) in WAYS.items() if (dx, dy) == (abs(dx) * x, abs(dy) * y)), None)
    return ("moved", before.colour, before.noun, way) if way else None


def _said(change: tuple[str, ...] | None) -> str:
    """A change in the words of `_fate`, as one of two frames."""
    if change is None:
        return "stays unchanged"
    kind, *_, detail = change
    said = films.SAYING[_AS_EVENT[kind]]
    return f"{said} {detail}" if kind in ("moved", "recoloured") else said


_AS_EVENT = {"missing": "leave", "new": "appear", "moved": "move", "recoloured": "recolour"}


def _ways(happened: dict[str, tuple[str, ...] | None], rng: np.random.Generator) -> Rows:
    """Which way each mover moved, open or with options."""
    rows = []
    for noun, change in happened.items():
        if change and change[0] == "moved":
            text = f"Which way did the {noun} move from the first image to the second?"
            rows.append(put(*_shuffled(text, change[-1], tuple(WAYS), rng), rng))
    return rows


def _changers(happened: dict[str, tuple[str, ...] | None], rng: np.random.Generator) -> Rows:
    """Which object is new, missing or recoloured, where one alone is, open or with options."""
    rows = []
    for kind, text in _WHICH.items():
        own = [noun for noun, change in happened.items() if change and change[0] == kind]
        others = [noun for noun in happened if noun not in own]
        if len(own) == 1 and len(others) >= 3:
            wrong = [others[i] for i in rng.permutation(len(others))[:3]]
            rows.append(put(*_shuffled(text, own[0], (own[0], *wrong), rng), rng))
    return rows


_WHICH = {
    "new": "Which object is new in the second image?",
    "missing": "Which object is missing in the second image?",
    "recoloured": "Which object has another color in the second image?",
}


def _compared(scenes: tuple[Scene, Scene], n: int, rng: np.random.Generator) -> Rows:
    """n of the questions about two scenes that a look at one place of each can answer."""
    in_first, in_second, which = pairs.CHECKLISTS
    k = rng.integers(2)
    rows = [((in_first, in_second)[k], checklist(scenes[k], rng)), (which, _which(scenes, rng))]
    more = [
        *_counted(scenes, rng),
        *_grounds(scenes, rng),
        *_words(scenes),
        *_owned(scenes),
        *_coloured(scenes, rng),
    ]
    return rows + [more[i] for i in rng.permutation(len(more))[: n - len(rows)]]


def _which(scenes: tuple[Scene, Scene], rng: np.random.Generator) -> str:
    """Of each noun which image shows it: "cup first, star both, anchor no, ..."."""
    shown = [{thing.noun for thing in scene.objects} for scene in scenes]
    nouns = sorted(shown[0] | shown[1])
    places = [
        "both" if noun in shown[0] & shown[1] else ORDER[noun not in shown[0]] for noun in nouns
    ]
    parts = [f"{noun} {place}" for noun, place in zip(nouns, places, strict=True)]
    return listed(parts + [f"{noun} no" for noun in absent(nouns, rng)], rng)


def _counted(scenes: tuple[Scene, Scene], rng: np.random.Generator, no: float = NO) -> Rows:
    first, second = (len(scene.objects) for scene in scenes)
    rows = _judged("Do the two images show the same number of objects?", first == second, rng, no)
    if first != second:
        text = f"Which image shows more objects, the first or the second? {pairs.ONE_WORD}"
        rows.append((text, ORDER[second > first]))
    if first + second < len(NUMBERS):
        text = "How many objects are in the two images together?"
        rows.append((text, NUMBERS[first + second]))
    return rows


def _grounds(scenes: tuple[Scene, Scene], rng: np.random.Generator, no: float = NO) -> Rows:
    first, second = scenes
    if first.second or second.second:
        return []
    same = first.ground == second.ground
    return _judged("Do the two images show the same ground?", same, rng, no)


def _judged(text: str, same: bool, rng: np.random.Generator, no: float) -> Rows:
    """A yes or no; most pairs of scenes are alike in nothing, which would teach to say no. So of
    these only the share `no` is asked."""
    asked = same or rng.random() < no
    return [(f"{text} {YES_NO}", "yes" if same else "no")] if asked else []


def _words(scenes: tuple[Scene, Scene]) -> Rows:
    words = [scene.word for scene in scenes]
    rows = []
    for k, word in enumerate(words):
        if word:
            rows.append((f"Which word is written in the {ORDER[k]} image?", word))
        if word and word != words[1 - k]:
            text = f"Which image shows the word {word}, the first or the second? {pairs.ONE_WORD}"
            rows.append((text, ORDER[k]))
    return rows


def _owned(scenes: tuple[Scene, Scene]) -> Rows:
    """Which image shows a noun that only one does."""
    shown = [{thing.noun for thing in scene.objects} for scene in scenes]
    return [
        (
            f"Which image shows {article(noun)} {noun}, the first or the second? {pairs.ONE_WORD}",
            ORDER[k],
        )
        for k in (0, 1)
        for noun in sorted(shown[k] - shown[1 - k])
    ]


def _coloured(scenes: tuple[Scene, Scene], rng: np.random.Generator, no: float = NO) -> Rows:
    once = [_once(scene) for scene in scenes]
    rows = [
        (f"What color is the {noun} in the {ORDER[k]} image?", thing.colour)
        for k in (0, 1)
        for noun, thing in once[k].items()
    ]
    for noun in sorted(once[0].keys() & once[1].keys()):
        same = once[0][noun].colour == once[1][noun].colour
        rows += _judged(f"Does the {noun} have the same color in both images?", same, rng, no)
    return rows


def _once(scene: Scene) -> dict[str, Thing]:
    """The objects whose noun occurs once, by their nouns."""
    nouns = [thing.noun for thing in scene.objects]
    return {thing.noun: thing for thing in scene.objects if nouns.count(thing.noun) == 1}


def _offered(scenes: tuple[Scene, Scene], rng: np.random.Generator) -> Rows:
    """Lettered questions that any two scenes can be asked, as muir asks them and mantis: which
    shows a noun, what colour a noun has in one of them, which word one of them shows, how many
    objects there are."""
    nouns = [{thing.noun for thing in scene.objects} for scene in scenes]
    holders = ("the first image", "the second image", "both images")
    rows = []
    for held in (nouns[0] - nouns[1], nouns[1] - nouns[0], nouns[0] & nouns[1], None):
        if held is None:
            noun, right = absent(sorted(nouns[0] | nouns[1]), rng)[0], NONE
        elif held:
            noun = sorted(held)[rng.integers(len(held))]
            right = holders[(noun in nouns[1]) + (noun in nouns[0] & nouns[1])]
        else:
            continue
        text = f"Which image shows {article(noun)} {noun}?"
        rows.append(_shuffled(text, right, (*holders, NONE), rng))
    for k, scene in enumerate(scenes):
        once, others = _once(scene), _once(scenes[1 - k])
        for noun, thing in once.items():
            text = f"What color is the {noun} in the {ORDER[k]} image?"
            near = [others[noun].colour] if noun in others else []
            rows.append(_laid_out(text, thing.colour, near, tuple(COLOURS), rng))
        if scene.word:
            text = f"Which word is written in the {ORDER[k]} image?"
            near = [scenes[1 - k].word] if scenes[1 - k].word else []
            rows.append(_laid_out(text, scene.word, near, WORDS, rng))
    total = len(scenes[0].objects) + len(scenes[1].objects)
    if total < len(NUMBERS):
        text = "How many objects are in the two images together?"
        rows.append(_laid_out(text, NUMBERS[total], [], NUMBERS[2:], rng))
    return rows


def _laid_out(
    text: str, right: str, near: Sequence[str], among: Sequence[str], rng: np.random.Generator
) -> tuple[str, str]:
    """Four options, three of them wrong; or three and "None", where it may be that none of the
    three is right."""
    wrong = [other for other in near if other != right]
    rest = [other for other in among if other not in (right, *wrong)]
    wrong += [rest[i] for i in rng.permutation(len(rest))[: 3 - len(wrong)]]
    chance = rng.random()
    if chance < UNANSWERABLE:
        laid, right = [*wrong, NONE], NONE
    elif chance < 2 * UNANSWERABLE:
        laid = [right, *wrong[:2], NONE]
    else:
        laid = [right, *wrong]
    return _shuffled(text, right, laid, rng)


def _still(film: Film, frame: int) -> Scene:
    """A frame as a scene without pixels."""
    there = tuple(film.state(k, frame) for k in film.present(frame))
    return Scene(film.id, np.empty((0,)), there, "", "", np.empty((SIDE, SIDE), np.bool_))


def _fate(film: Film, k: int) -> str:
    """What happens to an object: "cup moves left", "star stays unchanged"."""
    event, noun = film.event(k), film.objects[k].noun
    if event is None:
        return f"{noun} stays unchanged"
    detail = f" {event.detail}" if event.kind in ("move", "recolour") else ""
    return f"{noun} {films.SAYING[event.kind]}{detail}"


def known(c: Card) -> list[tuple[str, str, str]]:
    """What training checks of a held-out pair or film: (label, question, answer) each."""
    if isinstance(c.scene, Pair):
        return [(c.scene.schema, c.scene.text, c.scene.answer)]
    asked = [q for task in SUBTASKS for q in films.film_questions([c.scene], task)]
    return [("films", q.text, q.answer) for q in asked]
