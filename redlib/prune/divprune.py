"""DivPrune: keep tokens that are far from each other.

No attention, no text: of all sets of K visual tokens, take one whose two closest members are as far
apart as can be. That max-min problem is hard, and its usual greedy answer is taken instead. Begin
with the token that is farthest from its nearest neighbour; then, again and again, add the token
that is farthest from everything picked so far. Distance is 1 - cosine, at the language model's
input. The tokens that stay keep their raster order.

All tiles of a context are one list, as in the authors' own use, which counts newline embeddings as
tokens too; here those are never candidates.
"""

import torch
import torch.nn.functional as F

from redlib.prune.context import Context, Selection, precise
from redlib.prune.method import Method

FARTHEST = 2.0
"""The largest value of 1 - cosine."""


def divprune(context: Context, keep: int) -> Selection:
    """DivPrune with `keep` tokens.

    The score of a token that was picked is its distance to those picked before it; of another one,
    its distance to what was picked; the first pick has FARTHEST.

    Raises:
        RedlibError: `keep` is out of range.
    """
    keep = context.budget(keep)
    directions = F.normalize(precise(context.tokens), dim=-1)
    distance = 1 - directions @ directions.T  # (L, L)
    distance.fill_diagonal_(torch.inf)
    pick = distance.amin(dim=0).argmax(keepdim=True)  # farthest from its nearest neighbour
    scores = torch.full_like(distance[0], FARTHEST)
    gap = torch.full_like(scores, torch.inf)  # distance to the picked; -inf: picked itself
    picked = [pick]
    for _ in range(keep - 1):  # on the device throughout: no pick is waited for
        gap = torch.minimum(gap, distance[pick[0]]).index_fill(0, pick, -torch.inf)
        pick = gap.argmax(keepdim=True)  # of equal ones, the first
        scores.index_copy_(0, pick, gap[pick])
        picked.append(pick)
    gap = torch.minimum(gap, distance[pick[0]])
    kept = torch.cat(picked).sort().values
    rest = torch.ones_like(scores, dtype=torch.bool).index_fill(0, kept, False)
    return Selection(kept=kept, tokens=context.tokens[kept], scores=torch.where(rest, gap, scores))


METHOD = Method(name="divprune", title="DivPrune", select=divprune)
