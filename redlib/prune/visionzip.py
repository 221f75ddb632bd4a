"""VisionZip: the patches that [cls] looks at, and a few that sum up the others.

Most of a budget goes to *dominant* tokens: [cls] itself, which LLaVA otherwise throws away, and the
patches with its highest attention, summed over heads, in raster order. The rest goes to
*contextual* tokens. Of the patches left, every so-many-th is a target; each other one joins the
target whose key is most like its own; and a target's token is its feature plus the mean feature of
those that joined it. The language model gets [cls], the dominant patches, the contextual tokens.

Attention and keys are those of the tower's last layer but one, whose output are LLaVA-1.5's
features. The published budgets 64, 128 and 192 are split 54 + 10, 108 + 20 and 162 + 30; any other
one is split in the same ratio.

A tower without [cls] has the attention that patches receive, averaged over heads and queries, and
no [cls] among its tokens, as ports of the method to SigLIP do.

All tiles of a context are one list, with the [cls] of every tile in front. The authors prune tile
by tile, each with its share of the budget: give each tile its own context for that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from redlib.prune.attention import keys_of_patches, to_patches
from redlib.prune.context import MERGED, Context, Selection, highest, precise, unchosen
from redlib.prune.method import Method

LAYER = -2
DOMINANT, CONTEXTUAL = 54, 10


def split(keep: int) -> tuple[int, int]:
    """(dominant, contextual) of a budget, 54 to 10, rounded; [cls] is one of the dominant.

    Budgets up to 3 have no contextual token; a budget of 1 is [cls] alone.
    """
    whole = DOMINANT + CONTEXTUAL
    contextual = (keep * CONTEXTUAL + whole // 2) // whole
    return keep - contextual, contextual


def visionzip(context: Context, keep: int) -> Selection:
    """VisionZip with `keep` rows.

    In `kept`, [cls] is MERGED, for it is no visual token, and a contextual token bears the number
    of its target. Several tiles whose [cls] are more than the dominant tokens give the first ones.

    Raises:
        RedlibError: `keep` is out of range, or the layer is not traced.
    """
    trace = context.trace(LAYER)
    attention = to_patches(context, trace)  # (H, L)
    scores = attention.mean(dim=0) if context.cls is None else attention.sum(dim=0)
    dominant, contextual = split(context.budget(keep))

    cls = context.features[:0] if context.cls is None else context.cls[:dominant]
    patches = highest(scores, dominant - len(cls)).sort().values
    left = unchosen(patches, len(context))
    keys = F.normalize(keys_of_patches(context, trace).mean(dim=0), dim=-1)
    targets, rows = _sum_up(left, contextual, keys, precise(context.features))

    # What is not merged stays the stock token, to the last bit.
    made = context.project(torch.cat([cls, rows.to(cls.dtype)]))
    return Selection(
        kept=torch.cat([patches.new_full((len(cls),), MERGED), patches, targets]),
        tokens=torch.cat([made[: len(cls)], context.tokens[patches], made[len(cls) :]]),
        scores=scores,
    )


def _sum_up(left: Tensor, count: int, keys: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Targets (count,) among the tokens `left`, and their contextual features (count, C)."""
    if count == 0:
        return left[:0], features[:0]
    at = torch.arange(count, device=left.device) * (len(left) // count)
    joins = torch.ones(len(left), dtype=torch.bool, device=left.device)
    joins[at] = False
    targets, others = left[at], left[joins]
    nearest = (keys[others] @ keys[targets].T).argmax(dim=-1)  # of equal ones, the first
    members = F.one_hot(nearest, count).T.to(features.dtype)  # (count, others)
    sizes = members.sum(dim=-1, keepdim=True).clamp(min=1)
    return targets, features[targets] + members @ features[others] / sizes


METHOD = Method(
    name="visionzip",
    title="VisionZip",
    select=visionzip,
    layers=(LAYER,),
    order="own",
    merges=True,
)
