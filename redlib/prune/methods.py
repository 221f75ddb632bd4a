"""The methods by name.

    >>> "codebook" in METHODS
    True

A method of your own needs no place here: `redlib.pruned` takes a `Method` as well as a name.
"""

from redlib.errors import RedlibError
from redlib.prune import plain
from redlib.prune.method import Method

FASTV = Method(
    "fastv", "FastV", inside=True, positions="original", options=("layer",)
)  # see `redlib.prune.inside`

METHODS: dict[str, Method] = {each.name: each for each in (*plain.METHODS, FASTV)}


def find(name: str) -> Method:
    """The method of a name; RedlibError lists the names there are."""
    if name not in METHODS:
        raise RedlibError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]
