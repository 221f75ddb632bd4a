"""Where a notebook's images come from: the one place that knows scenes from photographs.

Every notebook asks for images by the *role* that they play, and gets scenes of known truth or, with
`data: real`, photographs of the paper's data sets:

    images = Images(params)
    shown = images.take("study", 100)        # 100 scenes, or 100 pictures of VQAv2 validation
    images.key("study")                      # what tells their rows apart, for a table's key

Photographs are drawn by lot (`photographs.lot`): a role sorts all images of its data set by a hash
of seed, role and COCO's number, and takes them from the front. So a sample of 100 begins with the
sample of 10; it does not depend on the form of the data set or on the order of its rows; and where
one image cannot be read, the next takes its place. Which images those are nobody can say without
the data set's list of numbers, so none can be listed here in advance; `drawn` lists them, and the
session writes that list among the results.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from redlib.data.benchmarks import BENCHMARKS
from redlib.data.photographs import Photographs, Picture, coco, lot, vqav2
from redlib.data.reading import Skipped, Unreadable, revision
from redlib.data.sources import COCO, VQAV2, Source
from redlib.errors import RedlibError
from redlib.params import Params
from redlib.tabletop import Scene, scenes


class Role(NamedTuple):
    """What an image is for.

    split, first: of the scenes that play it, and the number of the first one.
    source: the data set whose photographs do.
    knob: the parameter that says how many; "" where their number is fixed.
    behind: another role of that data set, from the end of whose order the photographs are taken, so
        that the two share none.
    """

    split: str
    first: int
    source: Source
    knob: str
    behind: str = ""


ROLES: dict[str, Role] = {
    "probed": Role("test", 0, VQAV2, "probe_scenes"),
    "captioned": Role("test", 0, COCO, "attention_positions"),
    "reference": Role("test", 1000, VQAV2, "", behind="probed"),
    "study": Role("test", 10_000, VQAV2, "study_images"),
    "maps": Role("test", 20_000, VQAV2, "tsne_images"),
    "training": Role("train", 1_000_000, COCO, "codebook_images"),
    "calibration": Role("calibration", 0, COCO, "n_calibration", behind="training"),
}
"""01 to 03 look at probed, captioned and reference images; 04 at those of the study; 05 searches
prototypes in training images, which the tiny checkpoints have not seen, and maps others; 06 finds a
threshold for its budgets on calibration images."""


class Images:
    """The images of one run.

    Attributes:
        params: say from where, and which.
        real: whether they are photographs, of which no truth is known.
        drawn: of photographs, one row per picture that was drawn: role, set, source, revision (as
            `reading.revision` tells it), digest, seed, place (in the role's order), image, and
            skipped (why, "" where it was read).
    """

    def __init__(self, params: Params) -> None:
        self.params = params
        self.real = params.data == "real"
        self.drawn = pd.DataFrame(columns=list(_COLUMNS))
        self._sets: dict[str, Photographs] = {}
        self._orders: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[type, tuple]:
        return Images, (self.params,)  # a worker opens the data sets for itself, if ever

    def take(self, role: str, n: int, *, start: int = 0) -> list[Scene | Picture]:
        """`n` images of a role, from the one at place `start` of its order on.

        Raises RedlibError, one line: a data set that is missing, damaged or too small, also for two
        roles that share no image, or of which over one picture in a hundred cannot be read.
        """
        of = ROLES[role]
        if not self.real:
            return scenes(of.split, n, start=of.first + start)
        photos = self._photographs(of.source)
        seed, order = self.params.seed, self._order(role, photos)
        found: list[Picture] = []
        skipped = Skipped(photos.name)
        rows = []
        for place, number in enumerate(order[start:], start):
            if len(found) == n:
                break
            why = ""
            try:
                found.append(photos.read(number))
                skipped.read += 1
            except Unreadable as error:
                why = str(error)
                skipped.add(str(number), why)
            about = (photos.name, photos.place, photos.revision, photos.digest, seed)
            rows.append((role, *about, place, number, why))
        skipped.check()
        if len(found) < n:
            remedy = "ask for fewer" if of.knob else "give it whole"
            place = f" from place {start} on" if start else ""
            lost = f", {len(skipped.reasons)} unreadable" if skipped.reasons else ""
            raise RedlibError(
                f"{self._wish(role)} needs {n} images of {photos.name}{place}; the data set has "
                f"{len(order)}{lost}: {remedy}"
            )
        self._check_apart(role, start + len(rows), photos)
        if skipped.reasons:
            print(f"{photos.name}: {skipped}")
        new = pd.DataFrame([*self.drawn.itertuples(index=False), *rows], columns=list(_COLUMNS))
        self.drawn = new.drop_duplicates(["role", "place"], ignore_index=True)
        return found

    def key(self, role: str) -> dict[str, Any]:
        """What a table's rows depend on beside the names of its images; nothing for scenes, whose
        names say all."""
        if not self.real:
            return {}
        source = ROLES[role].source
        found = f"{source.name} {self._photographs(source).digest}"
        # The seed draws one of VQAv2's questions about each image.
        return {"photographs": f"{found}, seed {self.params.seed}" if source is VQAV2 else found}

    def revisions(self, names: Iterable[str]) -> dict[str, str]:
        """By name, the revision of data sets that were read, benchmarks among them; see
        `reading.revision`."""
        known = {of.name: of for of in (VQAV2, COCO, *BENCHMARKS.values())}
        return {name: revision(known[name], self.params.data_dir) for name in dict.fromkeys(names)}

    def _wish(self, role: str) -> str:
        """The parameter that says how many images a role has, with its value."""
        knob = ROLES[role].knob
        fixed = "data: a reference of fixed size"
        return f"{knob}: {getattr(self.params, knob)}" if knob else fixed

    def _check_apart(self, role: str, places: int, photos: Photographs) -> None:
        """Raises RedlibError if the first `places` of a role's order are also of the role that is
        drawn from its other end: all that were drawn of that, and all that it will have."""
        behind = ROLES[role].behind
        other = behind or next((name for name, of in ROLES.items() if of.behind == role), "")
        if not other:
            return
        drawn = self.drawn.loc[self.drawn["role"] == other, "place"]
        taken = int(drawn.max()) + 1 if len(drawn) else 0
        if behind:  # what another session may have drawn, or will
            taken = max(taken, getattr(self.params, ROLES[other].knob))
        if places + taken > len(photos.numbers):
            raise RedlibError(
                f"{self._wish(role)} and {self._wish(other)} need {places} and {taken} images of "
                f"{photos.name} and may share none; the data set has {len(photos.numbers)}: ask "
                "for fewer"
            )

    def _order(self, role: str, photos: Photographs) -> list[int]:
        if role not in self._orders:
            seed, behind = self.params.seed, ROLES[role].behind
            order = sorted(photos.numbers, key=lambda n: lot(seed, behind or role, n))
            self._orders[role] = order[::-1] if behind else order
        return self._orders[role]

    def _photographs(self, source: Source) -> Photographs:
        if source.name not in self._sets:
            data_dir, seed = self.params.data_dir, self.params.seed
            found = vqav2(data_dir, seed=seed) if source is VQAV2 else coco(data_dir)
            self._sets[source.name] = found
        return self._sets[source.name]


_COLUMNS = ("role", "set", "source", "revision", "digest", "seed", "place", "image", "skipped")
