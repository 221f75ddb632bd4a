"""What single tokens and leave-one-out show over several scenes (notebooks 01 to 03).

One image shows what can happen; a claim needs several. The functions here take the rows that
`redlib.study.subjects` measures and boil them down to tidy tables with intervals and to verdicts.
Values within one image are alike, so every interval draws whole images.

    by_coverage(table, resamples=2000, seed=0)     # how often the word is right, beside chance
    ratio_verdict(table, resamples=2000, seed=0)   # Figure 6, as a tested statement
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from redlib.bench.intervals import Interval, interval
from redlib.data.photographs import Picture
from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.study import LEAST_IMAGES, SILENT
from redlib.study.subjects import DEPTHS, Subject, is_named
from redlib.study.verdict import Verdict, above, number, percent, untold
from redlib.tabletop import Scene

TOP_SHARE = 0.25
"""What counts as the top of a ranking: the upper quarter of an image's patches."""

GROUPS = ("low states, surest", "high states, least sure")
"""The groups of `select`."""

COVERAGE_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
REFERENCES = 24
FAR_QUANTILE, FAR_SHARE, FAR_MEDIAN = 0.99, 0.05, 1.25
"""An image lies outside when more than FAR_SHARE of its tokens are farther from the reference than
that quantile of the reference's own, or its median token is FAR_MEDIAN times as far as that of the
farthest reference scene: few strange tokens, or all of them a little strange."""


# --- intervals and ranks -------------------------------------------------------------------------


def resampled(
    frame: pd.DataFrame,
    statistic: Callable[[np.ndarray], float],
    columns: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> Interval:
    """A statistic of the rows of several images with its bootstrap interval over images.

    For statistics that are no mean (`bench.intervals.interval` is faster for those): `statistic`
    takes (rows, columns) numbers. Images are drawn with replacement, all their rows at once.
    """
    groups = [part[list(columns)].to_numpy(float) for _, part in frame.groupby("image", sort=True)]
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(groups), size=(resamples, len(groups)))
    found = [statistic(np.concatenate([groups[at] for at in draw])) for draw in draws]
    low, high = np.nanquantile(found, [0.025, 0.975])
    value = float(statistic(np.concatenate(groups)))
    return Interval(value, float(low), float(high), len(frame), len(groups))


def within(frame: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Spearman's rank correlation of two columns within each image: image, rho.

    An image in which one of them does not vary has no ranks to correlate and is left out.
    """
    rows = []
    for image, part in frame.groupby("image", sort=False):
        one, two = part[first].rank(), part[second].rank()
        if one.std() > 0 and two.std() > 0:
            rows.append({"image": image, "rho": one.corr(two)})
    return pd.DataFrame(rows, columns=["image", "rho"])


def correlation(
    frame: pd.DataFrame, first: str, second: str, *, resamples: int, seed: int
) -> Interval:
    """Mean over images of the rank correlation within an image, with its interval.

    Raises RedlibError if there is no image within which both vary.
    """
    found = within(frame, first, second)
    if found.empty:
        raise RedlibError(f"{first} and {second} vary within no image: nothing to correlate")
    return interval(found["rho"], found["image"], resamples=resamples, seed=seed)


def share_rank(frame: pd.DataFrame, column: str) -> pd.Series:
    """Rank within the image as a share: 1 for the largest value, near 0 for the smallest."""
    return frame.groupby("image", sort=False)[column].rank(pct=True)


# --- 01: attention, contribution, removal --------------------------------------------------------

RANKINGS = {
    "attention": "attention_rank",
    "contribution": "contribution_rank",
    "jsd_token": "removal_rank",
}
"""Columns of the three rankings, and of their ranks as shares of the image."""

CHANCE = 1 - TOP_SHARE**3 - (1 - TOP_SHARE) ** 3
"""Share of patches that three unrelated rankings would disagree about."""


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the ranks of RANKINGS, and votes: how many put the patch into the upper
    quarter of its image (0..3). The rankings disagree about a patch with 1 or 2 votes."""
    ranks = {name: share_rank(table, column) for column, name in RANKINGS.items()}
    votes = sum((rank > 1 - TOP_SHARE).astype(int) for rank in ranks.values())
    return table.assign(**ranks, votes=votes)


def agreement(table: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """Mean rank correlation of each pair of rankings, for each layer and their sum.

    Columns: layer (shallow, middle, deep, sum), pair, rho, low, high, images.
    """
    rows = []
    for depth in (*DEPTHS, "sum"):
        end = "" if depth == "sum" else f"_{depth}"
        one, two = f"attention{end}", f"contribution{end}"
        pairs = {
            "attention and what it adds": (one, two),
            "attention and removal": (one, "jsd_token"),
            "what it adds and removal": (two, "jsd_token"),
        }
        for pair, (first, second) in pairs.items():
            found = correlation(table, first, second, resamples=resamples, seed=seed)
            rows.append(
                {"layer": depth, "pair": pair, "rho": found.mean, "low": found.low,
                 "high": found.high, "images": found.clusters}
            )  # fmt: skip
    return pd.DataFrame(rows)


def disagreement(table: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """Share of patches in the upper quarter of 0, 1, 2, 3 rankings; "disagree" is 1 or 2.

    Columns: top_of ("0".."3", "disagree"), share, low, high, chance, patches, images.
    """
    count = ranked(table)["votes"]
    p = TOP_SHARE
    chance = [(1 - p) ** 3, 3 * p * (1 - p) ** 2, 3 * p**2 * (1 - p), p**3]
    cases = {str(k): (count == k, chance[k]) for k in range(4)}
    cases["disagree"] = (count.isin([1, 2]), CHANCE)
    rows = []
    for name, (flag, expected) in cases.items():
        found = interval(flag, table["image"], resamples=resamples, seed=seed)
        rows.append(
            {"top_of": name, "share": found.mean, "low": found.low, "high": found.high,
             "chance": expected, "patches": found.n, "images": found.clusters}
        )  # fmt: skip
    return pd.DataFrame(rows)


def proxy_verdict(table: pd.DataFrame, *, resamples: int, seed: int, bound: float = 0.7) -> Verdict:
    """Attention is no stand-in for removal: their rank correlation lies below `bound`."""
    found = correlation(table, "attention", "jsd_token", resamples=resamples, seed=seed)
    split = ranked(table)["votes"].isin([1, 2])
    shares = interval(split, table["image"], resamples=resamples, seed=seed)
    lower = above(found, bound)
    return Verdict(
        statement=(
            "Attention scores do not say what removing a token would change (rank correlation "
            f"below {bound:g})."
        ),
        holds=None if lower is None else not lower,
        evidence=(
            f"Spearman correlation within an image {number(found)}; the rankings by attention, "
            f"by contribution and by removal disagree about "
            f"{percent(shares)} of the patches, unrelated ones would about {CHANCE:.0%}; "
            f"{shares.n} patches of {shares.clusters} scenes."
        ),
        paper_item="Section 3.1",
    )


def rank_summary(ranks: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """Per layer, with intervals: median rank of the current and of the next token, and lead.

    Columns: layer, quantity (rank_current, rank_next: medians; lead: share of positions at which
    the next token outranks the current one), value, low, high, positions, images.
    """
    rows = []
    for layer, part in ranks.groupby("layer"):
        lead = np.sign(part["rank_current"] - part["rank_next"]) / 2 + 0.5  # a tie counts half
        cases = {
            "rank_current": (part, np.median, ["rank_current"]),
            "rank_next": (part, np.median, ["rank_next"]),
            "lead": (part.assign(lead=lead), np.mean, ["lead"]),
        }
        for name, (rows_of, statistic, columns) in cases.items():
            found = resampled(rows_of, statistic, columns, resamples=resamples, seed=seed)
            rows.append(
                {"layer": layer, "quantity": name, "value": found.mean, "low": found.low,
                 "high": found.high, "positions": found.n, "images": found.clusters}
            )  # fmt: skip
    return pd.DataFrame(rows)


def transition_verdict(summary: pd.DataFrame) -> Verdict:
    """Section 7.1: below, a state speaks for its own token; at the top, for the next one."""
    lead = summary[summary["quantity"] == "lead"].set_index("layer")
    first, last = lead.iloc[0], lead.iloc[-1]
    between = lead.iloc[1:-1]
    mixed = int(((between["value"] > 0.1) & (between["value"] < 0.9)).sum())
    across = first["low"] <= 0.5 <= first["high"] or last["low"] <= 0.5 <= last["high"]
    turns = bool(first["high"] < 0.5 < last["low"])
    undecided = first["images"] < LEAST_IMAGES or (across and not turns)
    return Verdict(
        statement=(
            "The state of a token turns into that of the next one: before the first layer the "
            "current token leads under the head, after the last one the next token does."
        ),
        holds=None if undecided else turns,
        evidence=(
            f"the next token leads at {first['value']:.0%} of {first['positions']:.0f} positions "
            f"before the first layer (95% interval {first['low']:.0%} to {first['high']:.0%}) and "
            f"at {last['value']:.0%} after the last ({last['low']:.0%} to {last['high']:.0%}); "
            f"after {mixed} of the {len(between)} layers between, each of the two leads at more "
            f"than a tenth of the positions; {first['images']:.0f} scenes."
        ),
        paper_item="Section 7.1",
    )


# --- 02: what a token says -----------------------------------------------------------------------


def by_coverage(table: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """How often the word is right, by how much of the patch the object covers; and by chance.

    The control keeps everything but the link between token and image: the token at the same place
    of every other image is asked instead. (A single-token probe sees nothing but its token, so no
    new forward is needed.) Needs the same patches of at least two images, else raises RedlibError.

    Columns: bin, low_edge, high_edge, asked ("noun of the object there", "any noun of the image"),
    tokens ("own", "shuffled"), share, low, high, patches, images. The bin "0" are patches that no
    object covers.
    """
    images = table["image"].unique()
    if len(images) < 2:
        raise RedlibError("shuffling tokens across images needs at least two; raise probe_scenes")
    bins = [("0", -1.0, 0.0)]
    edges = zip(COVERAGE_EDGES[:-1], COVERAGE_EDGES[1:], strict=True)
    bins += [(f"{100 * low:g}-{100 * high:g}%", low, high) for low, high in edges]
    table = table.assign(**_shuffled(table))
    rows = []
    for asked, own, other in (
        ("noun of the object there", "right", "right_shuffled"),
        ("any noun of the image", "named", "named_shuffled"),
    ):
        for name, low, high in bins:
            part = table[(table["coverage"] > low) & (table["coverage"] <= high)]
            if part.empty or (name == "0" and own == "right"):
                continue
            for tokens, column in (("own", own), ("shuffled", other)):
                found = interval(part[column], part["image"], resamples=resamples, seed=seed)
                rows.append(
                    {"bin": name, "low_edge": max(low, 0.0), "high_edge": high, "asked": asked,
                     "tokens": tokens, "share": found.mean, "low": found.low, "high": found.high,
                     "patches": found.n, "images": found.clusters}
                )  # fmt: skip
    return pd.DataFrame(rows)


def _shuffled(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Per row, the share of the other images whose token at that place names the truth here."""
    words = {patch: part for patch, part in table.groupby("patch")[["image", "word"]]}
    right, named = [], []
    for row in table.itertuples():
        part = words[row.patch]
        others = part["word"].to_numpy()[part["image"].to_numpy() != row.image]
        present = row.present.split()
        right.append([bool(row.noun) and is_named(word, row.noun) for word in others])
        named.append([any(is_named(word, noun) for noun in present) for word in others])
    return {
        "right_shuffled": np.array([np.mean(hits) for hits in right]),
        "named_shuffled": np.array([np.mean(hits) for hits in named]),
    }


def low_states(table: pd.DataFrame) -> pd.Series:
    """Patches in the lower half of their image by [cls] similarity and by attention."""
    return (share_rank(table, "cls_similarity") <= 0.5) & (share_rank(table, "attention") <= 0.5)


def high_states(table: pd.DataFrame) -> pd.Series:
    """Patches in the upper quarter of their image by [cls] similarity and by attention."""
    bound = 1 - TOP_SHARE
    return (share_rank(table, "cls_similarity") > bound) & (share_rank(table, "attention") > bound)


def select(table: pd.DataFrame, *, each: int = 7, per_word: int = 2) -> pd.DataFrame:
    """Patches of one image for the table of Figure 1, by rule.

    The first of GROUPS: of the lower half by [cls] similarity and by attention, the highest top-1
    probabilities, no word more than `per_word` times. The second: of the upper quarter by both, the
    lowest top-1 probabilities. At most `each` rows a group, by patch.
    """
    low = table[low_states(table)].sort_values("top1", ascending=False, kind="stable")
    low = low[low.groupby("word").cumcount() < per_word].head(each).sort_values("patch")
    high = table[high_states(table)].sort_values("top1", kind="stable")
    high = high.head(each).sort_values("patch")
    named = zip(GROUPS, (low, high), strict=True)
    return pd.concat([part.assign(group=name) for name, part in named], ignore_index=True)


def finding_one(table: pd.DataFrame, *, resamples: int, seed: int) -> list[Verdict]:
    """The two halves of finding 1 and what both rest on, over the patches of several images.

    The second half twice: that there are such patches, as the paper says, and that they are no
    surer on average than the others, which is more. Of photographs (no column `coverage`) only the
    last can be decided.
    """
    return [
        _sure_where_something_is(table, resamples=resamples, seed=seed),
        _low_but_right(table, resamples=resamples, seed=seed),
        _high_but_empty(table, resamples=resamples, seed=seed),
        _high_but_unsure(table, resamples=resamples, seed=seed),
    ]


def _contrast(
    table: pd.DataFrame,
    first: pd.Series,
    second: pd.Series,
    column: str,
    *,
    resamples: int,
    seed: int,
) -> Interval | None:
    """Mean of `column` over the rows `first` minus over the rows `second`; None without both."""
    sides = table.assign(side=np.where(first, 1.0, np.where(second, 0.0, np.nan)))
    sides = sides.dropna(subset=["side"])
    if sides["side"].nunique() < 2:
        return None

    def difference(rows: np.ndarray) -> float:
        side, value = rows.T
        if side.min() == side.max():  # a draw without one of the kinds says nothing
            return np.nan
        return value[side == 1].mean() - value[side == 0].mean()

    return resampled(sides, difference, ["side", column], resamples=resamples, seed=seed)


def _sure_where_something_is(table: pd.DataFrame, *, resamples: int, seed: int) -> Verdict:
    statement = (
        "The top-1 probability is higher where an object covers the patch than on bare ground."
    )
    if "coverage" not in table:
        return untold(statement, "Section 3.1.1")
    covered, bare = table["coverage"] >= 0.5, (table["coverage"] == 0) & (table["card"] == 0)
    found = _contrast(table, covered, bare, "top1", resamples=resamples, seed=seed)
    if found is None:
        return Verdict(statement, None, "no patch of one of the two kinds.", "Section 3.1.1")
    return Verdict(
        statement,
        above(found, 0.0),
        f"mean {table.loc[covered, 'top1'].mean():.2f} at {int(covered.sum())} patches covered by "
        f"half or more, {table.loc[bare, 'top1'].mean():.2f} at {int(bare.sum())} bare ones; "
        f"difference {number(found)}; {found.clusters} scenes.",
        "Section 3.1.1",
    )


def _low_but_right(table: pd.DataFrame, *, resamples: int, seed: int) -> Verdict:
    statement = (
        "Tokens with low [cls] similarity and low attention can carry information that the model "
        "recognises (they name their object more often than another image's token does)."
    )
    if "coverage" not in table:
        return untold(statement, "Finding 1")
    chosen = low_states(table) & (table["coverage"] >= 0.5)
    part = table[chosen]
    if part.empty:
        return Verdict(statement, None, _none_covered(table), "Finding 1")
    if table["image"].nunique() < 2:
        return Verdict(statement, None, "one image: no other to shuffle with.", "Finding 1")
    shuffled = pd.Series(_shuffled(table)["right_shuffled"], index=table.index)[chosen]
    gain = interval(part["right"] - shuffled, part["image"], resamples=resamples, seed=seed)
    share = interval(part["right"], part["image"], resamples=resamples, seed=seed)
    return Verdict(
        statement,
        above(gain, 0.0),
        f"right at {percent(share)} of {share.n} such patches that an object covers by half or "
        f"more, {shuffled.mean():.0%} with shuffled tokens; difference {percent(gain)}; "
        f"{share.clusters} scenes have such patches.",
        "Finding 1",
    )


def _none_covered(table: pd.DataFrame) -> str:
    """Why no token low in both states can name its object: what is there instead."""
    low = table[low_states(table)]
    rank = share_rank(table, "attention")[table["coverage"] >= 0.5]
    told = f"no such patch that an object covers by half; of the {len(low)} low in both an object "
    told += f"touches {int((low['coverage'] > 0).sum())}"
    if len(low):
        told += f", and the surest has a top-1 probability of {low['top1'].max():.2f}"
    if len(rank):
        told += f"; of the {len(rank)} covered ones none gets less attention than {rank.min():.0%} "
        told += "of its image"
    return f"{told}; {table['image'].nunique()} scenes."


def _high_but_empty(
    table: pd.DataFrame, *, resamples: int, seed: int, bound: float = 0.05
) -> Verdict:
    statement = (
        "Some tokens with high [cls] similarity and high attention hold nothing that the model "
        f"recognises (over {bound:.0%} of them: a top-1 probability below {SILENT:.0%}, and no "
        "object touches them)."
    )
    if "coverage" not in table:
        return untold(statement, "Finding 1")
    part = table[high_states(table)]
    if part.empty:
        return Verdict(statement, None, "no such patch.", "Finding 1")
    silent = part["top1"] < SILENT
    empty = silent & (part["coverage"] == 0) & (part["card"] == 0)
    found = interval(empty, part["image"], resamples=resamples, seed=seed)
    return Verdict(
        statement,
        above(found, bound),
        f"{percent(found)} of {found.n} such patches; with those that an object touches "
        f"{silent.mean():.0%} are below {SILENT:.0%}; {found.clusters} scenes.",
        "Finding 1",
    )


def _high_but_unsure(table: pd.DataFrame, *, resamples: int, seed: int) -> Verdict:
    statement = (
        "Tokens with high [cls] similarity and high attention are not recognised more surely than "
        "tokens with low ones (mean top-1 probability)."
    )
    high, low = high_states(table), low_states(table)
    found = _contrast(table, high, low, "top1", resamples=resamples, seed=seed)
    if found is None:
        return Verdict(statement, None, "no patch of one of the two kinds.", "Finding 1")
    surer = above(found, 0.0)
    bare = ""
    if "coverage" in table:
        share = (table.loc[high, "coverage"] == 0).mean()
        bare = f" no object touches {share:.0%} of the high ones;"
    return Verdict(
        statement,
        None if surer is None else not surer,
        f"mean {table.loc[high, 'top1'].mean():.2f} at {int(high.sum())} patches high in both, "
        f"{table.loc[low, 'top1'].mean():.2f} at {int(low.sum())} low in both; difference "
        f"{number(found)};{bare} {found.clusters} scenes.",
        "Finding 1",
    )


@dataclass(frozen=True)
class Familiarity:
    """How close the tokens of an image lie to those of the model's own world.

    Attributes:
        distance: (L,) cosine distance of each token to its nearest reference token.
        threshold: the 99th percentile of that distance among the reference's own tokens.
        share: share of the image's tokens beyond the threshold; 0.01 is usual.
        median: median distance of the image's tokens.
        usual: the largest such median among the reference scenes.
        outside: whether share or median is above its bound.
        alarms: of the reference scenes, how many would be called outside.
        reference: number of reference images.
    """

    distance: np.ndarray
    threshold: float
    share: float
    median: float
    usual: float
    outside: bool
    alarms: int
    reference: int

    def __str__(self) -> str:
        where = "OUTSIDE the model's world" if self.outside else "inside the model's world"
        return (
            f"{where}: {self.share:.1%} of its tokens lie farther from every reference token than "
            f"the 99th percentile of the reference's own ({1 - FAR_QUANTILE:.0%} is usual, above "
            f"{FAR_SHARE:.0%} counts as outside), and the median distance is {self.median:.3f} "
            f"(up to {self.usual:.3f} among the reference scenes, above {FAR_MEDIAN:g} times that "
            f"counts as outside). By this rule {self.alarms} of the {self.reference} reference "
            "scenes would be called outside too"
        )


def familiarity(vlm: VLM, subject: Subject, reference: Sequence[Scene | Picture]) -> Familiarity:
    """Whether an image lies outside the world that a model knows, given images of that world.

    reference: images that no other analysis uses. The nearest neighbour of one of their own tokens
    is searched in the others, as it must be for a new image.
    """
    references = len(reference)
    tokens = vlm.encode([one.image for one in reference]).tokens.float()  # (S, L, D)
    tokens = torch.nn.functional.normalize(tokens, dim=-1)
    pool = tokens.flatten(0, 1)  # (S * L, D)
    own = []
    for at in range(references):
        cosine = tokens[at] @ pool.T  # (L, S * L)
        cosine[:, at * tokens.shape[1] : (at + 1) * tokens.shape[1]] = -2.0
        own.append(1 - cosine.max(dim=1).values)
    own = torch.stack(own).cpu().numpy()  # (S, L)
    threshold = float(np.quantile(own, FAR_QUANTILE))
    asked = torch.nn.functional.normalize(subject.tokens.float(), dim=-1)
    distance = (1 - (asked @ pool.T).max(dim=1).values).cpu().numpy()
    share, median = float((distance > threshold).mean()), float(np.median(distance))
    medians = np.median(own, axis=1)  # (S,)
    outside = bool(share > FAR_SHARE or median > FAR_MEDIAN * medians.max())
    # A scene's own median counts against the others', as a new image's does.
    others = np.array([np.delete(medians, at).max() for at in range(references)])
    alarms = ((own > threshold).mean(axis=1) > FAR_SHARE) | (medians > FAR_MEDIAN * others)
    return Familiarity(
        distance, threshold, share, median, float(medians.max()), outside, int(alarms.sum()),
        references,
    )  # fmt: skip


# --- 03: what a token's absence changes ----------------------------------------------------------


def contrast_pair(table: pd.DataFrame) -> tuple[int, int]:
    """Two patches of one image that contradict their intermediate states (Figure 3).

    First the most influential (JSD final) among those in the lower half by [cls] similarity and by
    attention; then the least influential in the upper quarter of both. Where an image has no patch
    of the second kind, the least influential of its upper halves stands in, else of all.
    """
    low = table[low_states(table)]
    low = table if low.empty else low
    first = int(low.loc[low["jsd_final"].idxmax(), "patch"])
    upper = (share_rank(table, "cls_similarity") > 0.5) & (share_rank(table, "attention") > 0.5)
    rest = table["patch"] != first
    kinds = (high_states(table) & rest, upper & rest, rest)
    high = next(table[kind] for kind in kinds if kind.any())
    return first, int(high.loc[high["jsd_final"].idxmin(), "patch"])


def most_contrasting(table: pd.DataFrame) -> str:
    """The image whose pair (see `contrast_pair`) differs most in JSD final, as a ratio."""
    ratios = {}
    for image, part in table.groupby("image", sort=False):
        first, second = part.set_index("patch").loc[list(contrast_pair(part)), "jsd_final"]
        ratios[image] = first / second if second > 0 else np.inf
    return max(ratios, key=ratios.__getitem__)


def token_ratio(table: pd.DataFrame, *, resamples: int, seed: int) -> Interval:
    """Median divergence of the region over that of the one token, both in the whole image."""

    def ratio(rows: np.ndarray) -> float:
        region, token = np.median(rows, axis=0)
        return region / token if token > 0 else np.inf

    return resampled(table, ratio, ["jsd_global", "jsd_token"], resamples=resamples, seed=seed)


def ratio_verdict(table: pd.DataFrame, *, resamples: int, seed: int, bound: float = 3.0) -> Verdict:
    """Figure 6: one token of the whole image moves the output far less than its region does."""
    found = token_ratio(table, resamples=resamples, seed=seed)
    median = table[["jsd_token", "jsd_global"]].median()
    return Verdict(
        statement=(
            "Ablating one token of the whole image changes the output much less than ablating its "
            f"3 x 3 region (ratio of medians above {bound:g})."
        ),
        holds=above(found, bound),
        evidence=(
            f"median divergence {median['jsd_token']:.1e} for the token, "
            f"{median['jsd_global']:.1e} for the region; ratio {number(found, 1)}; "
            f"{found.n} patches of {found.clusters} scenes."
        ),
        paper_item="Figure 6",
    )


def influence_verdict(
    table: pd.DataFrame, *, resamples: int, seed: int, bound: float = 0.05
) -> Verdict:
    """Finding 2: low intermediate states do not rule out a strong influence."""
    statement = (
        "Tokens with low [cls] similarity and low attention can substantially influence their "
        f"context (over {bound:.0%} of them are in their image's upper quarter by divergence)."
    )
    part = table.assign(top=share_rank(table, "jsd_final") > 1 - TOP_SHARE)[low_states(table)]
    if part.empty:
        return Verdict(statement, None, "no such patch.", "Finding 2")
    found = interval(part["top"], part["image"], resamples=resamples, seed=seed)
    rho = {
        name: correlation(table, name, "jsd_final", resamples=resamples, seed=seed)
        for name in ("cls_similarity", "attention")
    }
    return Verdict(
        statement,
        above(found, bound),
        f"{percent(found)} of {found.n} such patches ({TOP_SHARE:.0%} if the states said nothing); "
        f"rank correlation with the divergence within an image: [cls] similarity "
        f"{number(rho['cls_similarity'])}, attention {number(rho['attention'])}; "
        f"{found.clusters} scenes.",
        "Finding 2",
    )


def idle_verdict(table: pd.DataFrame, *, resamples: int, seed: int, bound: float = 0.05) -> Verdict:
    """Finding 2 the other way round, as patch #523 of Figure 3: high states promise nothing."""
    statement = (
        "Some tokens with high [cls] similarity and high attention hardly influence their context "
        f"(over {bound:.0%} of them are in their image's lower quarter by divergence)."
    )
    part = table.assign(idle=share_rank(table, "jsd_final") <= TOP_SHARE)[high_states(table)]
    if part.empty:
        return Verdict(statement, None, "no such patch.", "Finding 2")
    found = interval(part["idle"], part["image"], resamples=resamples, seed=seed)
    return Verdict(
        statement,
        above(found, bound),
        f"{percent(found)} of {found.n} such patches ({TOP_SHARE:.0%} if the states said nothing); "
        f"{found.clusters} scenes.",
        "Finding 2",
    )


DEFINITIONS = {
    "": ("paper (eq. 7-10)", "20", "half of KL(M‖Q) + KL(N‖Q), summed"),
    "_row6": ("paper, candidates as released", "10", "half of KL(M‖Q) + KL(N‖Q), summed"),
    "_row7": ("paper, formula as released", "20", "half of KL(Q‖M) + KL(Q‖N), mean"),
    "_released": ("released", "10", "half of KL(Q‖M) + KL(Q‖N), mean"),
}


def definitions(
    table: pd.DataFrame, *, tau_jsd: float, top_jsd: int, resamples: int, seed: int
) -> pd.DataFrame:
    """The paper's and the released divergence beside each other, and each change alone.

    Columns: definition, candidates, formula, median (of JSD final), over_paper (ratio of medians),
    rho, rho_low, rho_high (rank correlation with the paper's within an image), below_tau (share of
    patches under `tau_jsd`).
    """
    rows = []
    for suffix, (name, top, formula) in DEFINITIONS.items():
        column = f"jsd_final{suffix}"
        rho = correlation(table, "jsd_final", column, resamples=resamples, seed=seed)
        median = table[column].median()
        rows.append(
            {"definition": name, "candidates": top_jsd if top == "20" else int(top),
             "formula": formula, "median": median,
             "over_paper": median / table["jsd_final"].median(), "rho": rho.mean,
             "rho_low": rho.low, "rho_high": rho.high,
             "below_tau": (table[column] < tau_jsd).mean()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def choices(vlm: VLM, *, prompt: str) -> pd.DataFrame:
    """What the paper leaves open in the leave-one-out, and what is done here: topic, paper,
    released, here (with the numbers of this model)."""
    grid = vlm.grid
    windows = {tuple(grid.window(patch)) for patch in range(grid.size)}
    centred = sum(int(grid.window(patch)[4]) == patch for patch in range(grid.size))
    before, after = vlm.prompt(prompt)
    rows = [
        ("candidates", "20 best of the intact run", "10 best of the intact run",
         "both, side by side"),
        ("formula", "half of KL(M‖Q) + KL(N‖Q), summed", "arguments swapped, mean",
         "both, side by side"),
        ("window at the border", "not said", "moved inside the grid",
         f"moved inside: {len(windows)} distinct windows for {grid.size} patches, target central "
         f"in {centred}"),
        ("input of the region", "not said", "9 tokens, positions compact",
         f"{len(before)} text + 9 visual + {len(after)} text tokens at positions 0.."
         f"{len(before) + 9 + len(after) - 1}"),
        ("prompt", "not said for leave-one-out", "the one-word prompt of the probe",
         "the parameter `prompt`, by default that one"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["topic", "paper", "released", "here"])


def weights_verdict(
    table: pd.DataFrame, weights: Sequence[float], *, resamples: int, seed: int
) -> Verdict:
    """Eq. 11: the weights keep either level from drowning the other."""
    region, whole = table["jsd_region"], table["jsd_global"]
    k_region, k_global = weights
    shares = pd.DataFrame(
        {
            "image": table["image"],
            "alone": region / (region + whole),
            "weighted": k_region * region / (k_region * region + k_global * whole),
        }
    ).fillna(0.5)
    alone, weighted = (
        resampled(shares, np.median, [name], resamples=resamples, seed=seed)
        for name in ("alone", "weighted")
    )
    low, high = above(weighted, 0.2), above(weighted, 0.8)
    inside = None if None in (low, high) else low and not high
    return Verdict(
        statement=(
            f"With the weights {k_region:g} and {k_global:g} neither level drowns the other "
            "(at the median patch the region makes up between 20% and 80% of JSD final)."
        ),
        holds=inside,
        evidence=(
            f"the region's share is {percent(alone)} without weights and {percent(weighted)} with "
            f"them; {weighted.n} patches of {weighted.clusters} scenes."
        ),
        paper_item="Equation 11",
    )
