"""Captions against the truth, by their scene graphs.

SPICE turns a caption into tuples (cup), (cup, red), (cup, small) and compares sets of tuples. Its
parser needs Java and a trained grammar; the captions of the drawn world follow a grammar of their
own, in which a noun and its adjectives stand together between commas, so that the tuples can be
read off; "and" joins the look of another object of the same noun. The F1 over them is named
tabletop-SPICE and is never to be compared with SPICE, nor either with CIDEr (`coco`).

    tuples("a small red cup and the word open on a plain ground.")
    # {("cup",), ("cup", "red"), ("cup", "small"), ("word", "open")}
"""

import re
from collections import Counter
from dataclasses import dataclass

from redlib.tabletop.questions import CAPTIONS
from redlib.tabletop.world import COLOURS, NOUNS, SIZES, WORDS, Scene

METRIC = "tabletop-SPICE"
"""The name under which every output states the F1."""


@dataclass(frozen=True)
class Phrase:
    """A part of a sentence.

    Attributes:
        text: as it was said, without the comma, full stop or "and" beside it.
        graph: the tuples that it says, the object or the word first; none where it names neither.
    """

    text: str
    graph: tuple[tuple[str, ...], ...]


def phrases(text: str) -> list[Phrase]:
    """The parts of a caption or of a detailed description, in order.

    They stand between commas, full stops or "and". One that names no noun but a colour or a size
    speaks of another object of the noun before, behind "and", and of nothing else. Of several nouns
    in one part the last counts, of several colours or sizes the first.
    """
    found: list[Phrase] = []
    noun = ""
    for part in re.split(r"([,.]|\band\b)", text.lower()):
        if part in (",", "."):
            noun = ""
        words = part.split()
        if not words or part in (",", ".", "and"):
            continue
        graph: tuple[tuple[str, ...], ...] = ()
        if "word" in words:
            written = [word for word in words if word in WORDS]
            graph = (("word", written[0]),) if written else ()
            noun = ""
        else:
            nouns = [word for word in words if word in NOUNS]
            looks = [[w for w in words if w in names][:1] for names in (COLOURS, SIZES)]
            noun = nouns[-1] if nouns else noun
            if noun and (nouns or any(looks)):
                graph = ((noun,), *((noun, look) for named in looks for look in named))
        found.append(Phrase(" ".join(words), graph))
    return found


def tuples(text: str) -> Counter[tuple[str, ...]]:
    """The scene graph of a caption or of a detailed description, each tuple as often as it is
    said."""
    return Counter(said for phrase in phrases(text) for said in phrase.graph)


def truth(scene: Scene, task: str) -> Counter[tuple[str, ...]]:
    """The scene's own graph; the word is no part of the detailed description."""
    graph = Counter(scene.graph)
    if task == "detail":
        graph.pop(("word", scene.word), None)
    return graph


def counts(text: str, scene: Scene, task: str = CAPTIONS[0]) -> tuple[int, int, int]:
    """(tuples said and true, tuples said, tuples true) of one caption."""
    said, true = tuples(text), truth(scene, task)
    return (said & true).total(), said.total(), true.total()


def f1(hits: int, said: int, true: int) -> float:
    """Harmonic mean of precision and recall; 0 where nothing is right."""
    return 2 * hits / (said + true) if hits else 0.0
