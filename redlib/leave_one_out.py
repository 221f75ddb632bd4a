"""How much the picture changes when a token is taken away (sections 3.1.2 and 7.3).

To ablate a visual token is to overwrite it with the embedding of the pad token. Overwriting one of
576 barely moves the output (Figure 6), so the paper goes in two steps that each move it clearly:

    region   the input is the 3 x 3 window alone; its target token is ablated       JSD_region
    global   the input is the whole image; all nine tokens of the window are        JSD_global

and adds them up with weights 1 and 16 (eq. 11). A third level, `token`, is the direct experiment
that the paper starts from: one token ablated in the whole image.

The change is a Jensen-Shannon divergence between the distributions before (M) and after (N), both
renormalised over the candidates that lead before: `jsd`. Two definitions of it exist:

    paper      half of KL(M||Q) + KL(N||Q), summed over 20 candidates (eq. 7-10)
    released   half of KL(Q||M) + KL(Q||N), averaged over 10 candidates

where Q is the mean of M and N.

Both sides are read at the same step. If the intact run begins with an article, that article is fed
to both runs and the step after it is read, whatever the ablated run would have said first.

    frame = cascade(vlm, encoded.tokens[0], grid.stride(), prompt="What does this image show? ...")
    frame[["patch", "jsd_region", "jsd_global", "jsd_final"]]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor

from redlib.engine import TOP as KEPT
from redlib.engine import Pieces, budget, run
from redlib.errors import RedlibError
from redlib.geometry import Grid
from redlib.models import VLM
from redlib.planner import Plan, plan
from redlib.probe import check_patches, is_article

LEVELS = ("region", "global", "token")
DEFINITIONS = ("paper", "released")
TOP = 20
TOP_RELEASED = 10
WEIGHTS = (1.0, 16.0)


def jsd(intact: Tensor, ablated: Tensor, *, top: int = TOP, definition: str = "paper") -> Tensor:
    """Divergence (...) between the readings of two runs, in nats, float64 on the CPU.

    Args:
        intact: (..., V) logits before ablation, of the vocabulary or of its best candidates; the
            `top` best are compared.
        ablated: (..., V) logits after it, of the same.
        top: candidates.
        definition: "paper" (eq. 7) or "released".

    Raises RedlibError for another definition, or a `top` outside 1..V.
    """
    if definition not in DEFINITIONS:
        raise RedlibError(f"definition must be paper or released; got {definition!r}")
    if not 1 <= top <= intact.shape[-1]:
        raise RedlibError(f"top must lie in 1..{intact.shape[-1]}; got {top!r}")
    head, ids = intact.topk(top, dim=-1)  # (..., m)
    # The terms of a small divergence nearly cancel: float32 would leave no correct digit at 1e-7.
    # (On the CPU, because Apple's MPS knows no float64.)
    log_m = head.cpu().double().log_softmax(dim=-1)
    log_n = ablated.gather(-1, ids).cpu().double().log_softmax(dim=-1)
    m, n = log_m.exp(), log_n.exp()
    q = (m + n) / 2
    log_q = q.log()
    if definition == "paper":
        value = (m * (log_m - log_q) + n * (log_n - log_q)).sum(dim=-1) / 2
    else:
        value = (q * (2 * log_q - log_m - log_n)).mean(dim=-1) / 2
    return value.clamp(min=0)  # rounding alone can bring it below


def cascade(
    vlm: VLM,
    tokens: Tensor,
    patches: Sequence[int],
    *,
    prompt: str,
    top: int = TOP,
    top_released: int = TOP_RELEASED,
    weights: tuple[float, float] = WEIGHTS,
    definition: str = "paper",
    levels: Sequence[str] = ("region", "global"),
    batch: int | None = None,
) -> pd.DataFrame:
    """Leave-one-out divergences of visual tokens.

    Args:
        tokens: (L, D) visual tokens of one image.
        patches: raster indices of the targets.
        prompt: the instruction that follows the image.
        top: candidates of the paper's divergence.
        top_released: candidates of the released one.
        weights: of region and global in jsd_final (eq. 11).
        definition: "paper", "released", or "both" for the columns of both from one computation.
        levels: any of "region", "global", "token".
        batch: rows a forward; by default as many as suit the device.

    Returns one row a patch: patch, a column jsd_<level> for each level asked, and jsd_final where
    region and global both are. With "both" every jsd column comes twice, ending in _paper and
    _released. Raises RedlibError as `ablations` and `jsd` do, and for weights that are not two.
    """
    chosen = _levels(levels)
    if definition not in (*DEFINITIONS, "both"):
        raise RedlibError(f"definition must be paper, released or both; got {definition!r}")
    if len(weights) != 2:
        raise RedlibError(f"weights must be two numbers, of region and global; got {weights!r}")
    names = DEFINITIONS if definition == "both" else (definition,)
    of = {"paper": top, "released": top_released}
    for name in names:
        _check_top(vlm, of[name])
    patches = check_patches(patches, tokens)
    frame = pd.DataFrame({"patch": patches})
    kept = max(of.values())
    changes = ablations(vlm, tokens, patches, prompt=prompt, levels=chosen, top=kept, batch=batch)
    for name in names:
        suffix = f"_{name}" if definition == "both" else ""
        for level, change in changes.items():
            value = jsd(change.intact, change.ablated, top=of[name], definition=name)
            frame[f"jsd_{level}{suffix}"] = value.numpy()
        if {"region", "global"} <= set(chosen):
            frame[f"jsd_final{suffix}"] = (
                weights[0] * frame[f"jsd_region{suffix}"]
                + weights[1] * frame[f"jsd_global{suffix}"]
            )
    return frame


def candidates(
    vlm: VLM,
    tokens: Tensor,
    patch: int,
    *,
    prompt: str,
    level: str,
    top: int = TOP,
) -> pd.DataFrame:
    """Leading candidates before and after one patch is ablated, as in Figure 3.

    Returns one row for each of the `top` best candidates of the intact run, best first: word,
    token_id, logit_before, logit_after, diff. `diff` is before minus after, what the ablated
    tokens had contributed. Raises RedlibError as `ablations` does, or for a `top` outside 1..V.
    """
    _check_top(vlm, top)
    change = ablations(vlm, tokens, [patch], prompt=prompt, levels=[level], top=top)[level]
    ids, before, after = change.ids[0], change.intact[0], change.ablated[0]  # (top,)
    return pd.DataFrame(
        {
            "word": [vlm.word(token) for token in ids.tolist()],
            "token_id": ids.cpu().numpy(),
            "logit_before": before.cpu().numpy(),
            "logit_after": after.cpu().numpy(),
            "diff": (before - after).cpu().numpy(),
        }
    )


@dataclass(frozen=True)
class Change:
    """What B ablations did to the leading candidates of their intact runs.

    Attributes:
        ids: (B, k) the candidates, best first.
        intact: (B, k) their logits before.
        ablated: (B, k) and after.
    """

    ids: Tensor
    intact: Tensor
    ablated: Tensor


def ablations(
    vlm: VLM,
    tokens: Tensor,
    patches: Sequence[int],
    *,
    prompt: str,
    levels: Sequence[str],
    top: int = KEPT,
    batch: int | None = None,
) -> dict[str, Change]:
    """The logits before and after each patch is ablated, at each level, at the step that is read.

    Arguments as in `cascade`; `top` candidates are kept, at most the vocabulary. Raises RedlibError
    for an unknown level, a patch outside the image, or other than all L tokens of one.
    """
    levels = _levels(levels)
    patches = check_patches(patches, tokens)
    if len(tokens) != vlm.grid.size:
        raise RedlibError(
            f"leave-one-out needs all {vlm.grid.size} tokens of the image; got {len(tokens)}"
        )
    pieces = Pieces(vlm, tokens, prompt)
    made, pairs = ablation_plan(vlm, pieces, patches, levels, batch=batch)
    said = run(vlm, made, pieces.table, top=top, skip=partial(is_article, vlm))
    return {
        level: Change(said.ids[after], said.logits[before], said.logits[after])
        for level, (before, after) in pairs.items()
    }


def ablation_plan(
    vlm: VLM,
    pieces: Pieces,
    patches: Sequence[int],
    levels: Sequence[str],
    *,
    batch: int | None = None,
) -> tuple[Plan, dict[str, tuple[list[int], list[int]]]]:
    """One plan for all levels, and per level the numbers of the intact and the ablated paths.

    A level that shows the whole image asks for one intact path, the region level for one per patch;
    the planner finds those that are equal.
    """
    paths, like, pairs = ablation_paths(vlm.grid, pieces, patches, levels)
    return plan(paths, shared=pieces.shared, budget=budget(vlm, batch), like=like), pairs


def ablation_paths(
    grid: Grid, pieces: Pieces, patches: Sequence[int], levels: Sequence[str]
) -> tuple[list[np.ndarray], list[int | None], dict[str, tuple[list[int], list[int]]]]:
    """The paths of `ablation_plan`, (T,) each, which intact path each is read like, and the numbers
    per level.

    Of the pieces only the numbers are needed, no embedding.
    """
    windows = [grid.window(patch) for patch in patches]
    paths: list[np.ndarray] = []
    like: list[int | None] = []

    def add(visual: np.ndarray, intact: int | None = None) -> int:
        paths.append(pieces.path(visual))
        like.append(intact)
        return len(paths) - 1

    whole = np.arange(grid.size)
    image = add(whole) if set(levels) & {"global", "token"} else None
    pairs: dict[str, tuple[list[int], list[int]]] = {}
    for level in levels:
        before, after = [], []
        for patch, window in zip(patches, windows, strict=True):
            if level == "region":
                shown, ablated = window, window == patch
                before.append(add(shown))
            else:
                shown = whole
                ablated = np.isin(whole, window if level == "global" else patch)
                before.append(image)
            after.append(add(np.where(ablated, pieces.pad, shown), before[-1]))
        pairs[level] = before, after
    return paths, like, pairs


def _check_top(vlm: VLM, top: int) -> None:
    size = vlm.model.config.text_config.vocab_size
    if not 1 <= top <= size:
        raise RedlibError(f"top must lie in 1..{size}; got {top!r}")


def _levels(levels: Sequence[str]) -> list[str]:
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise RedlibError(f"levels must be some of {', '.join(LEVELS)}; got {list(levels)!r}")
    return list(levels)
