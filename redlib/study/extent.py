"""How many images and questions an evaluation has, known before a picture is drawn or fetched.

Which questions they are stands in `asking`, `several`, `describing` and `spotting`. How many they
are follows from the parameters and from what there is to ask: of a scene its generators ask so many
questions and no more, and of a benchmark its publisher says how much it holds.

    exam(params, 1000)            # of the five tasks
    exam(Params(), 1000)          # Extent(images=1500, questions=10000.0)

Scenes and photographs differ in more than their numbers. All tasks ask about the same scenes, a
thousand questions of each about a thousand square scenes and half as many wide ones (and some few
more of these, less than one in a hundred, since some yield one question in place of two, which only
drawing them tells). Every benchmark brings its own photographs: one for each question of MMBench,
SEED and RealWorldQA, one for the two of a pair of MME, and 500 for all of POPE. So fewer questions
share an image, and more images have to be read.
"""

from math import ceil
from typing import NamedTuple

from redlib.data.folder import own
from redlib.params import Params
from redlib.study.asking import CAPTIONED, FIVE_TASKS
from redlib.tabletop.questions import MME_PER_SCENE, RWQA_PER_SCENE, SEED_PER_SCENE

HELD: dict[str, int] = {
    "pope": 500, "mmbench": 1164, "seed": 14_233, "mme": 1057, "realworldqa": 765,
    "nocaps": 4500, "flickr": 31_783, "image-dc": 100, "mantis": 217, "muir": 2600, "film": 4000,
}  # fmt: skip
"""What the benchmarks hold, by their publishers, and Image-DC by its name: images of POPE and of
captions, questions of MMBench before they are rotated, of SEED those about images, of MME pairs of
perception, of the others items."""

POPE_PER_IMAGE = 6  # questions of each subset, about a scene at most
ROTATIONS = {"tabletop": 4.0, "real": 4329 / HELD["mmbench"]}
"""In how many orders of its options an MMBench question is asked; real ones have two to four."""

PER_FILM = 6.0
"""Questions about a drawn film, on average; about one of MVBench there is one."""

MUIR_IMAGES = 11_264 / HELD["muir"]
"""Images of a question of MuirBench, on average; Mantis-Eval does not say, and has two at least."""


class Extent(NamedTuple):
    """How much is asked.

    Attributes:
        images: pairs or films, where several images make one prompt.
        questions: about all of them together.
    """

    images: int
    questions: float

    @property
    def each(self) -> float:
        """Questions about an image, on average."""
        return self.questions / self.images if self.images else 0.0


def exam(params: Params, limit: int, *, scenes: int | None = None) -> Extent:
    """`asking.exam`: at most `limit` questions of each of the five tasks.

    scenes: how many square ones are asked about, by default `limit`; of photographs no matter.
    """
    if params.data == "real":
        return _of_photographs(limit)
    square = limit if scenes is None else scenes
    wide = ceil(square / 2)
    most = {
        "mme": 2 * MME_PER_SCENE * square, "mmb": square, "seed": SEED_PER_SCENE * square,
        "rwqa": RWQA_PER_SCENE * wide,
    }  # fmt: skip
    asked = {task: min(limit, most.get(task, POPE_PER_IMAGE * square)) for task in FIVE_TASKS}
    asked["mme"] = 2 * max(1, asked["mme"] // 2)  # a pair stays together
    asked["mmb"] *= ROTATIONS["tabletop"]
    # Every image gives its first question before any gives its second.
    return Extent(min(limit, square) + min(limit, wide), sum(asked.values()))


def _of_photographs(limit: int) -> Extent:
    pope, pairs = min(limit, HELD["pope"]), min(max(1, limit // 2), HELD["mme"])
    single = {name: min(limit, HELD[name]) for name in ("mmbench", "seed", "realworldqa")}
    questions = 3 * min(limit, POPE_PER_IMAGE * HELD["pope"]) + 2 * pairs + sum(single.values())
    questions += (ROTATIONS["real"] - 1) * single["mmbench"]
    return Extent(pope + pairs + sum(single.values()), questions)


def described(params: Params, limit: int) -> Extent:
    """`asking.described`: images that are described in one sentence, for either column."""
    if params.data == "real":
        images = sum(min(limit, HELD[name]) for name in CAPTIONED)
    else:
        images = len(CAPTIONED) * limit
    return Extent(images, images)


def several(params: Params, name: str) -> Extent:
    """`several.samples` of a set, "mantis", "muir" or "film", on the test split."""
    n = params.n_several
    if params.data == "real":  # a twentieth is kept for calibration
        n = min(n, HELD[name] - ceil(HELD[name] / 20))
        return Extent(n, n)
    if name == "film":  # as many as it takes
        films = ceil(n / PER_FILM)
        return Extent(films, PER_FILM * films)
    return Extent(ceil(n / 2) if name == "muir" else n, n)  # two items of muir are about one pair


def seen(params: Params, name: str) -> float:
    """Images of one such question about several, on average."""
    return MUIR_IMAGES if params.data == "real" and name == "muir" else 2.0


def detailed(params: Params) -> int:
    """Images of either sort that notebook 07 describes; of photographs in all."""
    n = params.n_described
    return min(n, HELD["image-dc"]) if params.data == "real" else n


def games(params: Params) -> int:
    """Pictures that spot-the-difference is played with, where the model plays.

    Raises RedlibError as `data.folder.own`.
    """
    if params.data != "real":
        return params.n_games
    return 0 if params.games_dir is None else len(own(params.games_dir)[: params.n_games])
