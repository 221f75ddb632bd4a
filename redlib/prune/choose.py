"""From what was seen of an image to what stays of it.

A method speaks of one unit at a time, an image or a tile. Here its word becomes rows for the
language model. Tokens that were chosen stand in the order in which they stood, with all newlines of
the packing between them. Rows of methods that merge tokens or put them in an order of their own
stand unit after unit instead, the newlines behind them; that has a meaning only where the tiles
follow one another, so Hugging Face's packing of several tiles into one picture is refused to them.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redlib.errors import RedlibError
from redlib.prune.budget import Budget
from redlib.prune.context import MERGED, Selection
from redlib.prune.method import Method
from redlib.prune.prompts import NOWHERE
from redlib.prune.views import Seen, Unit


@dataclass(frozen=True, eq=False)
class Kept:
    """What stayed of one image or film.

    Attributes:
        kind: "image" or "video".
        kept: (K,) int64, numbers of the visual tokens that stay, in the order in which the language
            model gets them; MERGED where a row stands for no single token.
        scores: (L,) what they were chosen by, the highest first to stay; NaN without a score.
        patches: (L,) int64, the patch behind each visual token, numbered tile by tile in raster
            order; where several are pooled into one, the one it owes most.
    """

    kind: str
    kept: Tensor
    scores: Tensor
    patches: Tensor

    @property
    def before(self) -> int:
        """L."""
        return len(self.scores)

    @property
    def after(self) -> int:
        """K."""
        return len(self.kept)


@dataclass(frozen=True, eq=False)
class Choice:
    """What the language model gets of a view.

    Attributes:
        rows: (n, D), newlines included.
        offsets: (n,) int64, for each the placeholder of the view that it stands for, or NOWHERE.
        kept: what is told about it.
    """

    rows: Tensor
    offsets: Tensor
    kept: Kept


def everything(seen: Seen) -> Choice:
    """All rows of a view."""
    count = len(seen.patches)
    kept = torch.arange(count)
    return Choice(
        seen.rows, _offsets(seen, np.arange(len(seen.rows))), _kept(seen, kept, _blank(count))
    )


def choose(method: Method, seen: Seen, budget: Budget, options: Mapping[str, object]) -> Choice:
    """What stays of a view.

    Raises:
        RedlibError: a budget that the view does not have, a method and a packing that do not go
            together, scores or a selection that are none, or whatever the method finds wrong.
    """
    newlines = seen.view.layout.newlines
    count = len(seen.patches)
    if method.reorders and newlines[:count].any():
        raise RedlibError(
            f"{method.name} puts tokens in an order of its own, which the stock packing of "
            f"{seen.view.tiles} tiles cannot hold; say packing='split' or packing='base'"
        )
    scores, kept, tokens = _blank(count), [], []
    for unit in seen.units:
        found = _unit(method, unit, budget, options)
        numbers = torch.from_numpy(unit.numbers)
        scores[numbers] = found.scores.detach().to("cpu", scores.dtype)
        chosen = found.kept.cpu()
        kept.append(torch.where(chosen == MERGED, MERGED, numbers[chosen.clamp(min=0)]))
        tokens.append(found.tokens)
    if method.reorders:
        ends = seen.rows[count:]
        offsets = torch.full((sum(map(len, kept)) + len(ends),), NOWHERE)
        rows = torch.cat([*(part.to(ends.dtype) for part in tokens), ends])
        return Choice(rows, offsets, _kept(seen, torch.cat(kept), scores))
    chosen = torch.cat(kept).sort().values
    stays = newlines.copy()
    stays[np.flatnonzero(~newlines)[chosen.numpy()]] = True
    at = np.flatnonzero(stays)
    rows = seen.rows[torch.from_numpy(at).to(seen.rows.device)]
    return Choice(rows, _offsets(seen, at), _kept(seen, chosen, scores))


def scores(method: Method, seen: Seen, options: Mapping[str, object]) -> list[Tensor]:
    """The scores of each unit, (L,).

    Raises:
        RedlibError: what the method gave are no scores, or whatever it finds wrong.
    """
    return [_scores(method, unit, options) for unit in seen.units]


def _unit(method: Method, unit: Unit, budget: Budget, options: Mapping[str, object]) -> Selection:
    if method.select is not None:
        keep = budget.count(len(unit.context), unit.full, unit.name)
        return _selected(method, unit, method.select(unit.context, keep, **options))
    found = _scores(method, unit, options)
    kept = budget.choose(found, unit.full, unit.name)
    return Selection(kept, unit.context.tokens[kept], found)


def _scores(method: Method, unit: Unit, options: Mapping[str, object]) -> Tensor:
    """(L,) what a method gave, if that can rank."""
    found, count = method.scores(unit.context, **options), len(unit.context)
    if not isinstance(found, Tensor):
        raise RedlibError(
            f"{method.name} gave scores as {type(found).__name__}: return a tensor ({count},)"
        )
    if found.shape != (count,):
        raise RedlibError(
            f"{method.name} gave scores of shape {tuple(found.shape)} for {count} visual tokens"
        )
    if not found.dtype.is_signed or found.is_complex():  # a redundancy is minus the score
        raise RedlibError(
            f"{method.name} gave scores of {found.dtype}, which cannot rank: return numbers with a "
            "sign, e.g. scores.float()"
        )
    return found


def _selected(method: Method, unit: Unit, found: object) -> Selection:
    """What a method gave, if it is a selection from this unit."""
    count, width = unit.context.tokens.shape
    parts = [getattr(found, name, None) for name in ("kept", "tokens", "scores")]
    if not all(isinstance(part, Tensor) for part in parts):
        raise RedlibError(
            f"{method.name} gave {type(found).__name__}: its select must return a "
            "redlib.prune.context.Selection of tensors"
        )
    kept, shapes = parts[0], [tuple(part.shape) for part in parts]
    if shapes != [(kept.numel(),), (kept.numel(), width), (count,)]:
        raise RedlibError(
            f"{method.name} gave kept, tokens and scores of shapes {shapes}: they must be (K,), "
            f"(K, {width}) and ({count},)"
        )
    lowest = MERGED if method.reorders else 0  # a merged row stands nowhere among the tokens
    if kept.dtype != torch.int64 or bool(((kept < lowest) | (kept >= count)).any()):
        raise RedlibError(
            f"{method.name} must give kept as int64 numbers from {lowest} to {count - 1}; got "
            f"{kept.dtype} {reprlib.repr(kept.tolist())}"
        )
    return found


def _offsets(seen: Seen, at: np.ndarray) -> Tensor:
    return torch.from_numpy(at if seen.view.packed else np.full(len(at), NOWHERE))


def _kept(seen: Seen, kept: Tensor, scores: Tensor) -> Kept:
    return Kept(seen.view.kind, kept, scores, torch.from_numpy(seen.patches))


def _blank(count: int) -> Tensor:
    return torch.full((count,), torch.nan, dtype=torch.float64)
