"""What the library knows about a pruning method besides its formula.

A method is one function and a few facts: which tower layers it reads, in which order it hands the
tokens on, where the language model is told they stand. The facts are what methods differ in and
tables leave out, so they are data here, next to the function, and not conventions of an installer.

    METHOD = Method(name="divprune", title="DivPrune", select=select, order="raster")
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from redlib.errors import RedlibError
from redlib.prune.context import Selection


@dataclass(frozen=True, kw_only=True)
class Method:
    """One pruning method.

    Attributes:
        name: by which it is asked for, such as "prumerge".
        title: as printed in tables, such as "PruMerge".
        scores: `scores(context, **options) -> (L,)`, the highest stay; or None.
        select: `select(context, keep, **options) -> Selection`, for a method that merges or whose
            choice is not a ranking; or None. Exactly one of the two is given.
        layers: tower layers to trace, counted from the end: -1 is the tower's last layer, -2 the
            one whose output is `hidden_states[-2]`, LLaVA's features.
        order: "raster", as in the image, or "own", in which the method hands the tokens on.
        positions: what the language model is told about where a token stands: "compact", numbered
            through as if nothing had been taken out, or "original", the numbers they had.
        merges: whether rows may be mixtures of several tokens.
        native: whether it has a count of its own, so that `keep=None` is allowed.
        options: names of the keyword arguments that the function takes.

    Raises:
        RedlibError: both `scores` and `select`, or neither.
    """

    name: str
    title: str
    scores: Callable[..., Tensor] | None = None
    select: Callable[..., Selection] | None = None
    layers: tuple[int, ...] = ()
    order: Literal["raster", "own"] = "raster"
    positions: Literal["compact", "original"] = "compact"
    merges: bool = False
    native: bool = False
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.scores is None) == (self.select is None):
            raise RedlibError(f"method {self.name!r} must have exactly one of scores and select")
