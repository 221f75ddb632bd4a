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

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from redlib.engine import ablate, extend, forward
from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.probe import check_patches, end_image, skip_articles

LEVELS = ("region", "global", "token")
DEFINITIONS = ("paper", "released")
TOP = 20
TOP_RELEASED = 10
WEIGHTS = (1.0, 16.0)


def jsd(intact: Tensor, ablated: Tensor, *, top: int = TOP, definition: str = "paper") -> Tensor:
    """Divergence (...) between the readings of two runs, in nats, float64 on the CPU.

    Args:
        intact: (..., V) logits before ablation; its `top` best candidates are compared.
        ablated: (..., V) logits after it.
        top: candidates.
        definition: "paper" (eq. 7) or "released".
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
    _released.
    """
    chosen = _levels(levels)
    if definition not in (*DEFINITIONS, "both"):
        raise RedlibError(f"definition must be paper, released or both; got {definition!r}")
    patches = check_patches(patches, tokens)
    frame = pd.DataFrame({"patch": patches})
    runs = Runs(vlm, tokens, prompt=prompt, batch=batch)
    logits = {level: runs.pair(level, patches) for level in chosen}
    for name in DEFINITIONS if definition == "both" else (definition,):
        suffix = f"_{name}" if definition == "both" else ""
        candidates_of = {"paper": top, "released": top_released}[name]
        for level, (intact, ablated) in logits.items():
            value = jsd(intact, ablated, top=candidates_of, definition=name)
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
    tokens had contributed.
    """
    (level,) = _levels([level])
    patches = check_patches([patch], tokens)
    intact, ablated = Runs(vlm, tokens, prompt=prompt).pair(level, patches)
    if not 1 <= top <= intact.shape[1]:
        raise RedlibError(f"top must lie in 1..{intact.shape[1]}; got {top!r}")
    before, ids = intact[0].topk(top)  # (top,)
    after = ablated[0, ids]
    return pd.DataFrame(
        {
            "word": [vlm.word(token) for token in ids.tolist()],
            "token_id": ids.cpu().numpy(),
            "logit_before": before.cpu().numpy(),
            "logit_after": after.cpu().numpy(),
            "diff": (before - after).cpu().numpy(),
        }
    )


class Runs:
    """The intact and ablated runs over one image, each computed when it is asked for.

    A region's intact run is shared by all targets that share its window, the image's by all
    patches, and the text before the image by everything.
    """

    def __init__(self, vlm: VLM, tokens: Tensor, *, prompt: str, batch: int | None = None) -> None:
        if len(tokens) != vlm.grid.size:
            raise RedlibError(
                f"leave-one-out needs all {vlm.grid.size} tokens of the image; got {len(tokens)}"
            )
        self.vlm, self.tokens, self.batch = vlm, tokens, batch
        self.before, self.after = (vlm.embed(ids) for ids in vlm.prompt(prompt))
        self.text = extend(vlm, self.before)

    def pair(self, level: str, patches: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits (B, V) before and after ablating each patch at a level, at the step read."""
        if level == "region":
            return self._region(patches)
        grid = self.vlm.grid
        return self._image(
            [grid.window(patch) if level == "global" else [patch] for patch in patches]
        )

    def _image(self, changes: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Sets of visual tokens ablated in the whole image."""
        vlm, offset = self.vlm, len(self.before)
        rows = end_image(vlm, self.tokens[None], self.after)  # (1, L + T2, D)
        intact, article, first = skip_articles(vlm, self.text, rows)
        tail = rows[0]
        if article[0]:
            tail = torch.cat([tail, vlm.embed(first)])
        chain = extend(vlm, tail[: len(self.tokens)], after=self.text)
        ablated = ablate(
            vlm,
            chain,
            torch.cat([self.before, tail]),
            [[offset + int(index) for index in change] for change in changes],
            fill=vlm.pad,
            batch=self.batch,
        )
        return intact.expand(len(changes), -1), ablated

    def _region(self, patches: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One token ablated in its 3 x 3 window, which is the whole visual input."""
        vlm = self.vlm
        windows = np.stack([vlm.grid.window(patch) for patch in patches])  # (B, 9)
        distinct, of = np.unique(windows, axis=0, return_inverse=True)
        of = torch.as_tensor(of.reshape(-1))  # (B,)
        rows = end_image(vlm, self.tokens[torch.as_tensor(distinct)], self.after)  # (windows, n, D)
        intact, article, first = skip_articles(vlm, self.text, rows, batch=self.batch)
        lengths = rows.shape[1] + article.long()
        if article.any():
            # Every row gets room for an article; `lengths` says whether a row uses it.
            rows = torch.cat([rows, vlm.embed(first)[:, None]], dim=1)
        rows, lengths = rows[of], lengths[of]
        target = np.argmax(windows == np.asarray(patches)[:, None], axis=1)  # (B,) place in window
        rows[torch.arange(len(rows)), torch.as_tensor(target)] = vlm.pad
        ablated = forward(vlm, self.text, rows, lengths=lengths, batch=self.batch)
        return intact[of], ablated


def _levels(levels: Sequence[str]) -> list[str]:
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise RedlibError(f"levels must be some of {', '.join(LEVELS)}; got {list(levels)!r}")
    return list(levels)
