"""What to compute once: the plan of many forwards over variants of one visual input.

A causal decoder gives position t a state that depends on positions 0..t alone. Two inputs that
begin alike therefore agree, in every layer, up to the first position at which they differ, and
whatever is asked about many variants of one image can be drawn as a tree:

    text ─┬─ image ─────────────────┬─ question              the intact run
          │                         └─ (of every window:) from its first token on, ablated
          ├─ window 1 ─┬─ question
          │            └─ from its centre on, ablated
          └─ window 2 ...

A *path* is one input, written as numbers: path[t] says which embedding stands at position t, so
equal numbers are equal tokens. `plan` merges equal paths, lets each one continue from the earlier
path with which it shares most, and cuts what remains into batches:

    made = plan(paths, shared=35)
    made.tokens, made.naive_tokens        # before anything runs

That is the least any exact method can compute token by token. It is not yet the fastest, since
every forward has a fixed cost besides. So paths whose first own positions lie close together begin,
side by side, at the lowest of them, as long as the tokens computed twice cost less than another
forward would (`OVERHEAD`).

`like` tells which runs are read together: an ablated path is read at the step, and at the
candidates, of its intact one, and so runs after it and continues from nothing but it and its kin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from redlib.errors import RedlibError

OVERHEAD = 32
"""Tokens whose computation takes about as long as the fixed cost of a forward."""


@dataclass(frozen=True)
class Budget:
    """What one forward may hold: so many new tokens, and so much memory.

    Attributes:
        tokens: most new tokens, those of a batch that fills the device.
        memory: most bytes.
        per_token: bytes of one new token while it passes through a layer.
        per_position: bytes of the keys and values of one position of a row, the continued ones
            included.
        rows: most rows, None for no such limit.
    """

    tokens: int
    memory: float = math.inf
    per_token: int = 0
    per_position: int = 0
    rows: int | None = None

    def room(self, own: int, length: int) -> int:
        """Rows of `length` positions, `own` of them new, that one forward holds; at least one."""
        fitting = self.tokens // own
        if self.memory < math.inf:
            a_row = own * self.per_token + length * self.per_position
            fitting = min(fitting, int(self.memory // a_row))
        return max(1, fitting if self.rows is None else min(fitting, self.rows))


@dataclass(frozen=True)
class Tree:
    """Distinct paths and where each of them leaves the others.

    Attributes:
        paths: the distinct paths, int64.
        of: for every path asked, its place among the distinct ones.
        like: for every distinct path, the one at whose step it is read; itself for an intact run.
        donor: for every distinct path, the earlier one that it continues, -1 for the shared text.
        start: the first position that it computes itself.
        shared: positions that all paths share and that are computed beforehand.
        naive_tokens: sum of the lengths of all paths asked: one full forward for each.
    """

    paths: tuple[np.ndarray, ...]
    of: np.ndarray
    like: tuple[int, ...]
    donor: tuple[int, ...]
    start: tuple[int, ...]
    shared: int
    naive_tokens: int


@dataclass(frozen=True)
class Batch:
    """Rows that go through the decoder side by side.

    Attributes:
        rows: distinct paths of the tree.
        start: first position that is computed, the same for all rows.
        end: length of the longest row; the others are padded behind.
        parent: the earlier batch whose keys and values are continued, None for the shared text.
        donors: for each row, which row of the parent it continues; empty without a parent.
        keep: positions up to which later batches continue this one; 0 if none does.
    """

    rows: tuple[int, ...]
    start: int
    end: int
    parent: int | None
    donors: tuple[int, ...]
    keep: int


@dataclass(frozen=True)
class Plan:
    """A tree and its batches, in an order in which each follows what it continues."""

    tree: Tree
    budget: Budget
    batches: tuple[Batch, ...]

    @cached_property
    def tokens(self) -> int:
        """Tokens that will pass through the decoder, the shared text and padding included.

        One more for each row read behind an article, which no plan can know.
        """
        pushed = sum(len(batch.rows) * (batch.end - batch.start) for batch in self.batches)
        return self.tree.shared + pushed

    @property
    def naive_tokens(self) -> int:
        """Tokens of one full forward for every path asked, equal ones included."""
        return self.tree.naive_tokens


def plan(
    paths: Sequence[np.ndarray],
    *,
    shared: int,
    budget: Budget,
    like: Sequence[int | None] | None = None,
) -> Plan:
    """Plan one run over all `paths`; the other arguments are those of `grow`."""
    tree = grow(paths, shared=shared, like=like)
    return Plan(tree, budget, batches(tree, range(len(tree.paths)), budget))


def grow(
    paths: Sequence[np.ndarray], *, shared: int, like: Sequence[int | None] | None = None
) -> Tree:
    """The tree of paths.

    Args:
        paths: one input each; `path[t]` names the embedding at position t.
        shared: how many positions all paths begin with alike; they are computed beforehand.
        like: for each path the number of an earlier one at whose step it is read, None for a path
            that is read at its own; by default none is read like another.

    Raises:
        RedlibError: no path, one that does not hold whole numbers, does not begin with the shared
            positions or ends with them, or `like` names a path that does not stand before it or is
            itself read like another.
    """
    if not len(paths):
        raise RedlibError("there is no path to plan")
    like = [None] * len(paths) if like is None else like
    distinct: dict[tuple[bytes, int | None], int] = {}
    of: list[int] = []
    for number, (path, intact) in enumerate(zip(paths, like, strict=True)):
        if np.asarray(path).dtype.kind not in "iu":  # cut to whole numbers, two could become one
            raise RedlibError(f"path {number} must hold whole numbers")
        if len(path) <= shared or not np.array_equal(path[:shared], paths[0][:shared]):
            raise RedlibError(f"path {number} does not continue the {shared} positions all share")
        if intact is not None and not (0 <= intact < number and like[intact] is None):
            raise RedlibError(f"path {number} cannot be read like path {intact!r}")
        key = (np.asarray(path, dtype=np.int64).tobytes(), None if intact is None else of[intact])
        of.append(distinct.setdefault(key, len(distinct)))
    kept = tuple(np.frombuffer(path, dtype=np.int64).copy() for path, _ in distinct)  # writable
    own = tuple(row if intact is None else intact for row, (_, intact) in enumerate(distinct))
    donor, start = _join(kept, own, shared)
    return Tree(kept, np.asarray(of), own, donor, start, shared, sum(map(len, paths)))


def _join(
    paths: Sequence[np.ndarray], like: Sequence[int], shared: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For every path the earlier one of its kin that shares most with it, and how much that is."""
    families: dict[int, list[int]] = {}  # -1: intact runs among themselves
    for row, intact in enumerate(like):
        family = -1 if intact == row else intact
        families.setdefault(family, [] if family < 0 else [family]).append(row)
    donor, start = [-1] * len(paths), [shared] * len(paths)
    for family in families.values():
        longest = max(len(paths[row]) for row in family)
        grid = np.full((len(family), longest), -1)  # (n, T)
        for line, row in zip(grid, family, strict=True):
            line[: len(paths[row])] = paths[row]
        for place, row in enumerate(family[1:], 1):
            differ = grid[:place, shared:] != grid[place, shared:]
            alike = np.where(differ.any(axis=1), differ.argmax(axis=1), longest - shared)
            # The logits are read at the last position, so that one at least is computed.
            alike = np.minimum(alike, len(paths[row]) - shared - 1)
            best = int(alike.argmax())  # the earliest of several
            if alike[best] > 0 or like[row] != row:
                donor[row], start[row] = family[best], shared + int(alike[best])
    return tuple(donor), tuple(start)


def batches(tree: Tree, rows: Sequence[int], budget: Budget) -> tuple[Batch, ...]:
    """Batches that run `rows` and all that they continue or are read like.

    A batch is followed at once by those that continue it, so that few keys and values wait.
    """
    wanted: set[int] = set()
    for row in rows:
        while row >= 0 and row not in wanted:
            wanted.add(row)
            row = tree.donor[row]
    followers: dict[int, list[int]] = {}
    for row in sorted(wanted):
        followers.setdefault(tree.donor[row], []).append(row)
    made: list[Batch] = []
    waiting: list[tuple[list[int], int | None, list[int]]] = []  # rows, parent and the rows of that

    def wait(members: Sequence[int], parent: int | None, above: list[int]) -> None:
        waiting.extend((group, parent, above) for group in _groups(members, tree, budget)[::-1])

    wait(followers.get(-1, []), None, [])
    while waiting:
        group, parent, above = waiting.pop()
        children = [child for row in group for child in followers.get(row, ())]
        made.append(
            Batch(
                rows=tuple(group),
                start=min(tree.start[row] for row in group),
                end=max(len(tree.paths[row]) for row in group),
                parent=parent,
                donors=() if parent is None else tuple(above.index(tree.donor[r]) for r in group),
                keep=max((tree.start[child] for child in children), default=0),
            )
        )
        wait(children, len(made) - 1, group)
    return tuple(made)


def _groups(members: Sequence[int], tree: Tree, budget: Budget) -> list[list[int]]:
    """Rows, sorted by where they begin, cut into forwards.

    A forward takes in the next row as long as it has room for it and what it computes without need,
    before the start of some rows and behind the end of others, costs no more than another forward.
    """
    groups: list[list[int]] = []
    needed = longest = 0
    for row in sorted(members, key=lambda row: (tree.start[row], len(tree.paths[row]), row)):
        length = len(tree.paths[row])
        own = length - tree.start[row]
        if groups:
            longest, size = max(longest, length), len(groups[-1]) + 1
            pushed = longest - tree.start[groups[-1][0]]
            wasted = size * pushed - needed - own
            if wasted <= OVERHEAD and size <= budget.room(pushed, longest):
                groups[-1].append(row)
                needed += own
                continue
        groups.append([row])
        needed, longest = own, length
    return groups
