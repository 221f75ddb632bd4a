"""The methods by name.

    >>> "codebook" in METHODS
    True

A method of your own needs no place here: `redlib.pruned` takes a `Method` as well as a name.
"""

from redlib.errors import RedlibError
from redlib.prune import divprune, fastv, plain, prumerge, sparsevlm, visionzip
from redlib.prune.method import Method

PUBLISHED = (
    prumerge.PRUMERGE, prumerge.PRUMERGE_PLUS, visionzip.METHOD, divprune.METHOD, fastv.METHOD,
    sparsevlm.METHOD,
)  # fmt: skip
METHODS: dict[str, Method] = {each.name: each for each in (*plain.METHODS, *PUBLISHED)}


def find(name: str) -> Method:
    """The method of a name; RedlibError lists the names there are."""
    if name not in METHODS:
        raise RedlibError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]
