"""How far the codebook depends on choices that should not matter.

Three of them:

* which training images: codebooks from disjoint fifths of them (`samples`), how far the tokens that
  they keep overlap (`overlaps`) and how their scores spread;
* what a token is replaced by when it is ablated (`replacements`): the embedding of the pad token as
  in the paper, the image's mean token, zeros, or a token of another image;
* how the one-word question is put (`paraphrases`).

The last two are judged by rank correlation, since the criteria are thresholds: another order makes
other candidates, another scale does not (`verdicts`). Nothing here chooses anything; all of it is
reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from redlib import answers, leave_one_out, probe
from redlib.bench import Interval, interval
from redlib.codebook import Codebook, Criteria, NoPrototype
from redlib.notebook import MEASURING, Session
from redlib.prune import keep_lowest, random_scores, redundancy
from redlib.study import LEAST_IMAGES, codebooks
from redlib.study.ablation import kept_tokens
from redlib.study.judged import Scored
from redlib.study.patches import sample, spearman
from redlib.study.verdict import Verdict

SAMPLES = 5
"""Disjoint samples of the training images."""

PATCHES = 25
"""Patches of an image that the replacements are compared on, evenly over the grid."""

REPLACED = ("pad", "mean", "zero", "another image")

PARAPHRASES = (
    "Describe the image with a single word.",
    "What is in this picture? Answer with one word.",
    "Answer the question using a single word or phrase. What does the image show?",
)
"""The one-word question put otherwise, in words that the embedded models know too."""

BAR = 0.5
"""The least rank correlation of "much the same". Set when runs with three images had been seen."""

_CODE = (*MEASURING, "clustering", "study/stability", "tabletop/world")


def samples(
    session: Session, table: pd.DataFrame, criteria: Criteria
) -> dict[str, Codebook | None]:
    """Codebooks from disjoint samples of the training images, "sample 0", ...; None where no
    prototype is left. tau_in follows the number of images.

    table: rows of `codebooks.cascade_images`.
    """
    names = list(dict.fromkeys(table["image"]))
    found: dict[str, Codebook | None] = {}
    for number in range(min(SAMPLES, len(names))):
        own = names[number :: min(SAMPLES, len(names))]
        part = table[table["image"].isin(own)].reset_index(drop=True)
        try:
            built = codebooks.build(session, part, criteria.for_images(len(own), of=len(names)))
            found[f"sample {number}"] = built.codebook
        except NoPrototype:
            found[f"sample {number}"] = None
    return found


def spread(
    judged: Scored, books: Mapping[str, Codebook | None], ours: str, *, tokens: int
) -> pd.DataFrame:
    """What the codebook of each sample keeps, after Ours.

    tokens: how many were kept.

    Returns sample, prototypes (0: none left), share, share_low, share_high, ahead, low, high (Ours
    minus the sample, paired), questions, images, answers (those of all samples, in their order).
    """
    rows = []
    for name, book in books.items():
        mean, found = judged.share(name), judged.gap(ours, name)
        row = {"sample": name, "prototypes": len(book) if book else 0}
        rule = answers.rule(name.split()[0], tokens)
        row |= {"share": mean.mean, "share_low": mean.low, "share_high": mean.high}
        if name != ours:
            row |= {"ahead": found.mean, "low": found.low, "high": found.high}
        row |= {"questions": judged.questions, "images": judged.images}
        rows.append(row | {"answers": answers.address([rule], ["mean"]) if book else ""})
    return pd.DataFrame(rows)


def overlaps(
    session: Session, books: Mapping[str, Codebook], images: Mapping[str, Tensor]
) -> pd.DataFrame:
    """Jaccard overlap of the tokens that codebooks keep of the same images.

    images: (L, D) visual tokens by name. Returns image, pairs ("samples", "sample and Ours",
    "by lot": two random subsets) and overlap, the mean over such pairs in that image.
    """
    keep = kept_tokens(session)
    rows = []
    for name, tokens in images.items():
        masks = {
            book: keep_lowest(redundancy(tokens, each), keep).cpu().numpy()
            for book, each in books.items()
        }
        lot = [
            keep_lowest(random_scores(len(tokens), [n, *name.encode()]), keep).numpy()
            for n in range(2)
        ]
        parts = [mask for book, mask in masks.items() if book.startswith("sample")]
        ours = [mask for book, mask in masks.items() if not book.startswith("sample")]
        for pairs, found in (
            ("samples", list(combinations(parts, 2))),
            ("sample and Ours", [(a, b) for a in ours for b in parts]),
            ("by lot", [tuple(lot)]),
        ):
            if found:
                rows.append((name, pairs, np.mean([jaccard(a, b) for a, b in found])))
    return pd.DataFrame(rows, columns=["image", "pairs", "overlap"])


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Common over all tokens of two masks (L,); NaN where both are empty."""
    either = (first | second).sum()
    return float((first & second).sum() / either) if either else float("nan")


def calibration_tokens(session: Session) -> dict[str, Tensor]:
    """(L, D) visual tokens of the calibration images, by name."""
    vlm = session.model
    drawn = session.images("calibration", session.params.n_calibration)
    return {scene.id: vlm.encode([scene.image]).tokens[0] for scene in drawn}


def replacements(session: Session) -> pd.DataFrame:
    """The final divergence (eq. 11) of some patches under every replacement.

    Returns image, patch and a column per name of REPLACED, for PATCHES patches (fewer on a smaller
    grid) of `stability_images` calibration images.
    """
    p, vlm = session.params, session.model
    drawn = session.images("calibration", p.stability_images + 1)
    following = {a.id: b for a, b in zip(drawn, drawn[1:], strict=False)}
    own = {scene.id: scene for scene in drawn[:-1]}
    at = sample(vlm.grid, min(PATCHES, min(vlm.grid.height, vlm.grid.width) ** 2))

    def measure(name: str) -> pd.DataFrame:
        tokens, other = (vlm.encode([s.image]).tokens[0] for s in (own[name], following[name]))
        token = int(np.random.default_rng([p.seed, *name.encode()]).integers(len(other)))
        vectors = (vlm.pad, tokens.mean(dim=0), torch.zeros_like(vlm.pad), other[token])
        frame = pd.DataFrame({"image": name, "patch": at})
        for kind, vector in zip(REPLACED, vectors, strict=True):
            found = leave_one_out.cascade(
                replace(vlm, pad=vector.to(vlm.pad)), tokens, at.tolist(), prompt=p.prompt,
                top=p.top_jsd, weights=(p.k_region, p.k_global), top_released=p.top_jsd,
                definition=p.jsd_definition,
            )  # fmt: skip
            frame[kind] = found["jsd_final"].to_numpy()
        return frame

    store = session.store(
        "replacements", code=_CODE, prompt=p.prompt, top=p.top_jsd, seed=p.seed,
        definition=p.jsd_definition, weights=[p.k_region, p.k_global], patches=len(at),
        **session.of_images("calibration"),
    )  # fmt: skip
    return store.compute(own, measure, describe="images")


def paraphrases(session: Session, table: pd.DataFrame) -> pd.DataFrame:
    """The top-1 probability of probed tokens under other wordings of the one-word question.

    table: rows of `codebooks.cascade_images`; of its first `stability_images` images the probed
    rows are read again. Returns them with a column per paraphrase, "paraphrase 1", ....
    """
    p, vlm = session.params, session.model
    drawn = codebooks.training_scenes(session)
    names = list(drawn)[: p.stability_images]
    rows = table[table["top1_head"].notna() & table["image"].isin(names)].drop(columns="vector")
    own = {name: rows.loc[rows["image"] == name, "patch"].tolist() for name in names}

    def measure(name: str) -> pd.DataFrame:
        tokens, frame = vlm.encode([drawn[name].image]).tokens[0], {"patch": own[name]}
        for number, text in enumerate(PARAPHRASES, 1):
            found = probe.single(vlm, tokens, own[name], prompt=text, top=p.top_prob)
            frame[f"paraphrase {number}"] = found["top1_head"].to_numpy()
        return pd.DataFrame(frame).assign(image=name)

    store = session.store(
        "paraphrases", code=_CODE, texts=list(PARAPHRASES), top=p.top_prob, patches=own,
        **session.of_images("training"),
    )  # fmt: skip
    read = store.compute(own, measure, describe="images")
    return rows.merge(read, on=["image", "patch"], validate="one_to_one")


def correlations(
    frame: pd.DataFrame, first: str, others: Sequence[str], **draws: int
) -> dict[str, Interval]:
    """Rank correlation of the column `first` with each of `others`, within images.

    The mean over images, with an interval from drawing images. Images where one side is constant
    are left out; NaN if that is all of them.
    """
    found = {}
    for name in others:
        each = {n: spearman(part[first], part[name]) for n, part in frame.groupby("image")}
        known = {n: value for n, value in each.items() if not np.isnan(value)}
        nothing = Interval(*[float("nan")] * 3, 0, 0)
        found[name] = interval(list(known.values()), list(known), **draws) if known else nothing
    return found


def agreement(frame: pd.DataFrame, criteria: Criteria, name: str) -> dict[str, tuple[float, int]]:
    """How far the single-token criterion and the candidates agree under a paraphrase.

    As many tokens count as silent as with the first prompt: those of the lowest probability. Of
    them are candidates those that the other two criteria, read with the first prompt, let pass.

    Returns "silent tokens" and "candidates": the Jaccard overlap with those of the first prompt,
    and how many these are.
    """
    before = criteria.passes("tau_prob", frame["top1_head"])
    order = np.argsort(frame[name].to_numpy(), kind="stable")
    after = np.isin(np.arange(len(frame)), order[: before.sum()])
    rest = criteria.passes("tau_out", frame["cluster_size"])
    rest &= criteria.passes("tau_jsd", frame["jsd_final"])
    first, second = before & rest, after & rest
    return {
        "silent tokens": (jaccard(before, after), int(before.sum())),
        "candidates": (jaccard(first, second), int(first.sum())),
    }


def summary(
    session: Session,
    overlap: pd.DataFrame,
    replaced: pd.DataFrame,
    put: pd.DataFrame,
    criteria: Criteria,
) -> pd.DataFrame:
    """Everything of the three experiments in one table.

    Returns what ("images", "replacement", "prompt"), compared, measure, value, low, high, n (images
    for overlaps of kept tokens, else tokens; of silent tokens and candidates those under the first
    prompt) and images.
    """
    p = session.params
    draws = {"resamples": p.bootstrap, "seed": p.seed}
    rows = []
    for pairs, part in overlap.groupby("pairs", sort=False):
        found = interval(part["overlap"], part["image"], **draws)
        rows.append(("images", pairs, "overlap of kept tokens", found, found.n))
    for name, found in correlations(replaced, REPLACED[0], REPLACED[1:], **draws).items():
        rows.append(("replacement", name, "rank correlation of JSD", found, len(replaced)))
    names = [f"paraphrase {n}" for n in range(1, len(PARAPHRASES) + 1)]
    for name, found in correlations(put, "top1_head", names, **draws).items():
        rows.append(("prompt", name, "rank correlation of top-1 probability", found, len(put)))
    frame = pd.DataFrame(
        [
            (what, name, measure, found.mean, found.low, found.high, n, found.clusters)
            for what, name, measure, found, n in rows
        ],
        columns=["what", "compared", "measure", "value", "low", "high", "n", "images"],
    )
    counted = [
        {"what": "prompt", "compared": name, "measure": f"overlap of {kind}",
         "value": value, "n": n, "images": put["image"].nunique()}
        for name in names
        for kind, (value, n) in agreement(put, criteria, name).items()
    ]  # fmt: skip
    return pd.concat([frame, pd.DataFrame(counted)], ignore_index=True)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Whether readings survive every other replacement, and every other wording: the whole interval
    above BAR. One that lies below it is enough to fail.

    frame: rows of `summary`.
    """
    found = []
    for what, statement in (
        ("replacement", "Another replacement of ablated tokens orders the patches of an image by "
                        "their divergence much the same"),
        ("prompt", "Another wording of the question orders the tokens of an image by their top-1 "
                   "probability much the same"),
    ):  # fmt: skip
        rows = frame[(frame["what"] == what) & frame["measure"].str.startswith("rank")]
        few = rows["images"].max() < LEAST_IMAGES
        enough = rows["low"].notna() & (rows["images"] >= LEAST_IMAGES)
        holds = None
        if (enough & (rows["high"] < BAR)).any():
            holds = False
        elif (enough & (rows["low"] > BAR)).all():
            holds = True
        told = "; ".join(
            f"{r.compared} {r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for r in rows.itertuples()
        )
        found.append(
            Verdict(
                f"{statement} (rank correlation over {BAR}).",
                holds,
                f"{told}; {int(rows['images'].max())} images"
                + (f", fewer than {LEAST_IMAGES} decide nothing." if few else "."),
                "Section 9.1, stability",
            )
        )
    return found
