"""The codebook that notebooks 06 to 08 prune with: built in notebook 05, or a file of one's own.

Where the parameters name no file, it is the one that notebook 05 of the same run built. With
`codebook: FILE` it is the one in that file: the authors' prototypes as `redlib codebook import`
makes them ours, or those of another run of the same model:

    book = codebook(session)            # either; captions name it from here on
    criteria(session, book, table)      # the thresholds behind the codebooks of samples

Visual tokens of two models live in two spaces, and cosines between them are numbers without a
meaning. So a file has to be of the very model at hand: its name, its revision, its width. What a
result depends on is the prototypes, whose digest is part of the key of every table of answers;
tables of two codebooks are never taken for one.

A codebook that was not built here does not bring everything along. The patch that a prototype comes
from may be untold (`redlib.released`), or lie in a photograph that this run has not drawn: then it
cannot be shown. And codebooks from samples of this run's training images, to which notebook 08
compares, can only be built under this run's thresholds, not under those of the file.
"""

from contextlib import suppress
from pathlib import Path

import pandas as pd

from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError
from redlib.notebook import Session
from redlib.params import Params, local
from redlib.released import UNTOLD
from redlib.study import codebooks, pipeline, pruning
from redlib.tabletop.world import redraw


def codebook(session: Session) -> Codebook:
    """The codebook of the parameters' file, else of notebook 05 (`pruning.load_codebook`).

    With a file, the session's captions name it as Ours, and it is printed.
    Raises RedlibError, one line: as `read` and `pruning.load_codebook`, and for a file that was
    made with another width or revision of the model.
    """
    p, vlm = session.params, session.model
    if p.codebook is None:
        return pruning.load_codebook(session)
    book = read(p)
    if book.width != vlm.width:
        raise _of_another(p, f"has width {book.width}, the model has {vlm.width}", vlm.revision)
    if book.revision != vlm.revision:
        told = f"was made with revision {book.revision!r} of the model, not {vlm.revision!r}"
        raise _of_another(p, told, vlm.revision)
    session.ours = f"{Path(p.codebook).name} ({len(book)} prototypes, digest {book.digest})"
    print(f"Ours: the codebook {session.ours}, not built by this run")
    return book


def read(params: Params) -> Codebook:
    """The codebook in the file that the parameters name; needs no model in memory.

    Raises RedlibError, one line: the file is missing or no codebook, or its model has another name.
    """
    path = local(params.codebook)
    if not path.is_file():
        raise RedlibError(
            f"codebook: no file {params.codebook!r}; `redlib codebook import` makes one of the "
            "authors' files, notebook 05 leaves one in runs/<run_name>/codebook.safetensors"
        )
    try:
        book = Codebook.load(path)
    except RedlibError as error:
        raise RedlibError(f"codebook: {error}") from error
    if book.model != params.model:
        told = f"was made with model {book.model!r}, not {params.model!r}"
        raise _of_another(params, told, params.revision)
    return book


def _of_another(params: Params, told: str, revision: str | None) -> RedlibError:
    at = f" --revision {revision}" if revision and not Path(params.model).is_dir() else ""
    return RedlibError(
        f"codebook: {params.codebook!r} {told}; import it with --model {params.model}{at} if it is "
        "of this model, or leave `codebook` out"
    )


def criteria(session: Session, book: Codebook, table: pd.DataFrame) -> Criteria:
    """The thresholds that this run searches prototypes under: those of `book` where it was built
    here, else what the parameters give or the grid of notebook 05 chooses.

    table: rows of `codebooks.cascade_images`.
    """
    if session.params.codebook is None:
        return book.criteria
    grid = codebooks.grid_settings(session, table)
    if len(grid) > 1:
        return codebooks.chosen(session, codebooks.score_grid(session, table))
    return codebooks.criteria_of(session, grid.iloc[0])


def origins(session: Session, book: Codebook, shown: pd.DataFrame) -> dict[int, pipeline.Origin]:
    """`pipeline.origins` of those prototypes whose patch is told and whose image is at hand.

    shown: the table of `pipeline.Shown`.
    """
    real = session.source.real
    there = codebooks.training_scenes(session) if real else {}

    def known(number: int) -> bool:
        if book.patch[number] == UNTOLD:
            return False
        if real:
            return book.image[number] in there
        with suppress(RedlibError):
            return redraw(book.image[number]) is not None
        return False

    found = shown.loc[~shown["kept"], "prototype"].unique()
    of = [number for number in found if known(int(number))]
    return pipeline.origins(session, book, shown[shown["prototype"].isin(of)])
