"""What pruning preserves of what the masks know.

The paper's reasons for its criteria, and its remarks on single pictures, are about *tokens*: that
small clusters reduce "the risk of removing informative visual tokens" (section 8.1), that a pruned
flowchart keeps "all textual content" while its background goes (section 9.3.1). Where masks are
known such sentences need no answers of a language model: what is kept is held against what there
is.

    kept = by_criterion(session, books, 300)     # informative tokens kept, per image and codebook
    criterion_verdict(kept, resamples=2000, seed=0)                # does tau_out protect them?
    text_verdict(of_text(described, sight), 280, resamples=2000, seed=0)
"""

from collections.abc import Mapping

import pandas as pd
import torch

from redlib.bench import interval
from redlib.codebook import Codebook
from redlib.geometry import Sight
from redlib.notebook import Session
from redlib.prune import keep_lowest, redundancy
from redlib.study.ablation import NOTHING, kept_tokens
from redlib.study.asking import exam
from redlib.study.pruning import INFORMATIVE
from redlib.study.qualitative import mask
from redlib.study.verdict import Verdict, above, bounds, percent, untold
from redlib.tabletop.world import redraw

ALL_TEXT = 0.95
"""Share of the written word's tokens from which all textual content is said to be kept. Ours: the
paper shows one flowchart and gives no number."""


def by_criterion(
    session: Session, books: Mapping[str, Codebook | None], limit: int
) -> pd.DataFrame:
    """Share of its informative tokens that each codebook keeps of a test image, at the number of
    tokens that Table 3 keeps.

    books: as `ablation.ablated` names them. limit: as `ablation.judge` takes it; the images are
    those that it asks about. Returns left_out, image and kept, none of photographs.
    """
    rows: list[tuple[str, str, float]] = []
    if session.source.real:
        return pd.DataFrame(rows, columns=["left_out", "image", "kept"])
    vlm, keep = session.model, kept_tokens(session)
    drawn, _ = exam(session.params, limit)
    for scene in drawn:
        covered = scene.coverage(vlm.sight).sum(axis=0) + scene.word_coverage(vlm.sight)
        shown = torch.from_numpy(covered >= INFORMATIVE)
        if shown.any():
            tokens = vlm.encode([scene.image]).tokens[0]
            for name, book in books.items():
                if book is not None:
                    stays = keep_lowest(redundancy(tokens, book), keep).cpu()
                    rows.append((name, scene.id, float(stays[shown].float().mean())))
    return pd.DataFrame(rows, columns=["left_out", "image", "kept"])


def criterion_verdict(kept: pd.DataFrame, *, resamples: int, seed: int) -> Verdict:
    """Section 8.1's reason for tau_out. kept: rows of `by_criterion`."""
    statement = "With tau_out the codebook keeps more of the tokens that show an object or the word"
    if kept.empty:
        return untold(statement, "Section 8.1")
    per_image = kept.pivot(index="image", columns="left_out", values="kept")
    if not {NOTHING, "tau_out"} <= set(per_image):
        told = "a codebook with it, or without it, has no prototype"
        return Verdict(statement, None, told, "Section 8.1")
    draws = {"resamples": resamples, "seed": seed}
    images = per_image.index
    found = interval(per_image[NOTHING] - per_image["tau_out"], images, **draws)
    with_, without = (interval(per_image[name], images, **draws) for name in (NOTHING, "tau_out"))
    return Verdict(
        statement,
        above(found, 0),
        f"{percent(with_)} with it, {percent(without)} without; difference "
        f"{100 * found.mean:+z.1f} percentage points (95% interval "
        f"{bounds(found.low, found.high)}) over {found.clusters} test images",
        "Section 8.1",
    )


def of_text(described: pd.DataFrame, sight: Sight) -> pd.DataFrame:
    """What stays of the written word, and of bare ground, in scenes with a word.

    described: rows of `describing.describe`. Returns image, word (share of the tokens whose patch
    the word half covers) and ground (of those with neither object nor word), none of photographs.
    """
    rows = []
    part = described[(described["scenes"] == "text-rich") & (described["side"] == "pruned")]
    for row in part.itertuples() if described["said"].notna().all() else ():
        scene = redraw(row.image)
        written = scene.word_coverage(sight)
        bare = (scene.coverage(sight).sum(axis=0) + written) == 0
        kept = mask([int(number) for number in row.kept.split()], sight.cells**2)
        if (written >= INFORMATIVE).any():
            rows.append((row.image, kept[written >= INFORMATIVE].mean(), kept[bare].mean()))
    return pd.DataFrame(rows, columns=["image", "word", "ground"])


def text_verdict(kept: pd.DataFrame, tokens: int, *, resamples: int, seed: int) -> Verdict:
    """Section 9.3.1's remark on Figure 12. kept: rows of `of_text`; tokens: the budget."""
    statement = (
        "On text-rich images pruning keeps all textual content (over "
        f"{ALL_TEXT:.0%} of the tokens that show the word) while background goes"
    )
    if kept.empty:
        return untold(statement, "Figure 12")
    draws = {"resamples": resamples, "seed": seed}
    word, ground = (interval(kept[name], kept["image"], **draws) for name in ("word", "ground"))
    more = above(interval(kept["word"] - kept["ground"], kept["image"], **draws), 0)
    both = above(word, ALL_TEXT), more
    return Verdict(
        statement,
        False if False in both else None if None in both else True,
        f"at {tokens} tokens {percent(word)} of the word's stay, of bare ground's {percent(ground)}"
        f"; {word.clusters} scenes",
        "Figure 12",
    )
