"""A prompt with fewer placeholders.

The processor writes one placeholder for every visual token, so a prompt of LLaVA-1.5 is mostly 576
times `<image>`. When some tokens go, as many placeholders go, the text closes up behind them, and
rows of a batch that have become shorter than others are padded:

    before   <s> USER: <image> <image> <image> <image> what is this
    after    <s> USER: <image> <image> what is this

Everything else that is aligned with the ids, mask and labels, goes along. `origin` remembers from
which position of the old prompt each position comes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redlib.errors import RedlibError

NOWHERE = -1


@dataclass(frozen=True)
class Place:
    """Where the placeholders of one view stand: `row`, first position `start`, `length`."""

    row: int
    start: int
    length: int


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of prompts.

    Attributes:
        ids: (B, T) int64.
        mask: (B, T) int64, 0 where it is padded.
        origin: (B, T) int64, positions in the old prompt, NOWHERE for padding and for visual rows
            that stand for no single old one.
        places: where each view stands now, in the order of the views.
    """

    ids: Tensor
    mask: Tensor
    origin: Tensor
    places: tuple[Place, ...]

    def along(self, values: Tensor, fill: int) -> Tensor:
        """(B, T_old) values of the old positions as values of the new ones, (B, T)."""
        found = values.gather(1, self.origin.clamp(min=0))
        return found.masked_fill(self.origin == NOWHERE, fill)


def places(
    ids: Tensor, lengths: Mapping[str, Sequence[int]], tokens: Mapping[str, int]
) -> list[Place]:
    """Which placeholders belong to which view.

    Args:
        ids: (B, T).
        lengths: per kind, how many placeholders each view of that kind has, in order.
        tokens: per kind, the id of its placeholder.

    Raises:
        RedlibError: a row whose placeholders are not those of the next views.
    """
    found = []
    for kind, wanted in lengths.items():
        left = list(wanted)
        for row, line in enumerate(ids == tokens[kind]):
            at = line.nonzero().flatten().tolist()
            total = len(at)
            while at:
                if not wanted:
                    raise RedlibError(f"prompt {row} holds {kind} placeholders but no {kind} came")
                length = left.pop(0) if left else 0
                if not 0 < length <= len(at):
                    raise RedlibError(
                        f"prompt {row} has {total} {kind} placeholders, which are not those of its "
                        f"{kind}s ({_list(wanted)} in this batch); pass ids and pixels as the "
                        "processor made them, not truncated"
                    )
                if at[length - 1] - at[0] != length - 1:
                    raise RedlibError(
                        f"prompt {row}: other tokens stand among the placeholders of one {kind}"
                    )
                found.append(Place(row, at[0], length))
                at = at[length:]
        if left:
            raise RedlibError(
                f"{len(wanted)} {kind}s were given, but the prompts hold placeholders of only "
                f"{len(wanted) - len(left)}"
            )
    return found


def shorten(
    ids: Tensor,
    mask: Tensor,
    old: Sequence[Place],
    offsets: Sequence[Tensor],
    *,
    placeholder: int,
    pad: int,
    side: str,
) -> Prompt:
    """The prompts with as many placeholders as rows are left.

    Args:
        ids, mask: (B, T).
        old: where the views stand.
        offsets: per view, (n,) for each row that is left which of the view's old placeholders it
            stands for, NOWHERE if none.
        placeholder: the id to write for every row, of an image or a film.
        pad, side: the id to pad with, and where: "left" or "right".
    """
    real = mask.bool().tolist()
    lines, where = [], {}
    for row, line in enumerate(ids.tolist()):
        here = sorted((p.start, k) for k, p in enumerate(old) if p.row == row)
        new: list[tuple[int, int]] = []  # (id, origin)
        end = 0
        for start, k in here:
            new += [(line[t], t) for t in range(end, start) if real[row][t]]
            where[k] = (row, len(new))
            new += [
                (placeholder, start + o if o != NOWHERE else NOWHERE) for o in offsets[k].tolist()
            ]
            end = start + old[k].length
        new += [(line[t], t) for t in range(end, len(line)) if real[row][t]]
        lines.append(new)
    longest = max(len(new) for new in lines)
    blanks = [[(pad, NOWHERE)] * (longest - len(new)) for new in lines]
    before = side == "left"
    padded = [
        blank + new if before else new + blank for blank, new in zip(blanks, lines, strict=True)
    ]
    full = torch.tensor(padded, dtype=torch.int64, device=ids.device).reshape(len(ids), longest, 2)
    lengths = torch.tensor([[len(new)] for new in lines], device=ids.device)
    column = torch.arange(longest, device=ids.device)
    kept = column >= longest - lengths if before else column < lengths
    now = tuple(
        Place(row, at + (len(blanks[row]) if before else 0), len(offsets[k]))
        for k, (row, at) in sorted(where.items())
    )
    return Prompt(full[..., 0], kept.long(), full[..., 1], now)


def _list(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths[:6])) + (", ..." if len(lengths) > 6 else "")
