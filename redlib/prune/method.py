"""A pruning method as data: what it computes and how the installer has to treat it.

    METHOD = Method("codebook", "Redundancy codebook", scores=codebook, options=("codebook",))

Methods differ in five ways that whoever installs them must know: whether they rank tokens or choose
them otherwise, what of the vision tower they look at, in which order the kept tokens follow one
another, which positions those get, and what else they have to be told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from redlib.errors import RedlibError
from redlib.prune.context import Selection


@dataclass(frozen=True)
class Method:
    """A pruning method.

    Attributes:
        name: by which it is asked for.
        title: as tables print it.
        scores: `scores(context, **options) -> (L,)`, signed numbers, the highest stay; or
        select: `select(context, keep, **options) -> Selection`; or
        inside: `inside(model, **options)`, of a method that prunes between layers of the language
            model (`redlib.prune.inside`); exactly one of the three.
        layers: tower layers whose queries and keys it looks at, counted from the end: -1, -2, ...
        order: "raster", or "own" where the language model gets the tokens in the method's order.
        positions: "compact", numbered anew, or "original", as if nothing had been pruned.
        merges: whether rows may stand for several tokens.
        options: names of the keyword arguments that it takes.
        native: whether it can set the number of tokens itself (keep=None).

    Raises:
        RedlibError: none, or several, of scores, select and inside.
    """

    name: str
    title: str
    scores: Callable[..., Tensor] | None = None
    select: Callable[..., Selection] | None = None
    layers: tuple[int, ...] = ()
    order: Literal["raster", "own"] = "raster"
    positions: Literal["compact", "original"] = "compact"
    merges: bool = False
    options: tuple[str, ...] = ()
    native: bool = False
    inside: Callable[..., object] | None = None

    def __post_init__(self) -> None:
        if (self.scores is not None) + (self.select is not None) + (self.inside is not None) != 1:
            raise RedlibError(
                f"method {self.name!r} must have exactly one of scores, select and inside"
            )

    @property
    def reorders(self) -> bool:
        """Whether its rows cannot stand where the tokens they come from stood."""
        return self.merges or self.order == "own"
