"""The methods by name.

    >>> "codebook" in METHODS
    True

A method of your own needs no place here. `redlib.pruned` takes a function of a `Context` as well,

    def largest(context):                         # (L,), the highest stay
        return context.tokens.norm(dim=-1)

    with redlib.pruned(model, largest, keep=64): ...

and where the installer must know more of it, a `Method`.
"""

from collections.abc import Callable

from torch import Tensor

from redlib.errors import RedlibError
from redlib.prune import divprune, fastv, plain, prumerge, sparsevlm, visionzip
from redlib.prune.method import Method

PUBLISHED = (
    prumerge.PRUMERGE, prumerge.PRUMERGE_PLUS, visionzip.METHOD, divprune.METHOD, fastv.METHOD,
    sparsevlm.METHOD,
)  # fmt: skip
METHODS: dict[str, Method] = {each.name: each for each in (*plain.METHODS, *PUBLISHED)}


def find(method: str | Callable[..., Tensor] | Method) -> Method:
    """The method of a name, of a function `scores(context) -> (L,)`, or as it is.

    Raises:
        RedlibError: no such name, which lists those there are, or none of the three.
    """
    if isinstance(method, Method):
        return method
    if callable(method) and not isinstance(method, type):
        name = getattr(method, "__name__", type(method).__name__)
        return Method(name, name, scores=method)
    if not isinstance(method, str):
        raise RedlibError(
            "method must be a name, a function scores(context) -> (L,) or a redlib.prune.Method; "
            f"got {type(method).__name__}"
        )
    if method not in METHODS:
        raise RedlibError(f"no method {method!r}; there are {', '.join(METHODS)}")
    return METHODS[method]
