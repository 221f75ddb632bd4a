"""Captions, readings and text alternatives of notebooks 01 to 03, built from the numbers drawn.

Each function returns the keywords of `session.save` for the figure of the same name in
`redlib.figures.probes` (or for a table): title, caption, reading, alt, paper_item. The text
alternative states what this run found; nothing in it is written by hand. Captions name the model
drawn with and the model of the paper's figure, or that it has none.
"""

from collections.abc import Sequence

import pandas as pd

from redlib.models import VLM
from redlib.study.probing import CHANCE, GROUPS, high_states, low_states

PAPER_MODEL = "LLaVA-Next, base tile only"


def _note(title: str, caption: str, reading: str, alt: str, paper_item: str = "") -> dict[str, str]:
    return {
        "title": title,
        "caption": caption,
        "reading": reading,
        "alt": alt,
        "paper_item": paper_item,
    }


def _models(vlm: VLM, item: str = "") -> str:
    drawn = f"Drawn with {vlm.name}"
    shown = f"the paper's {item} shows {PAPER_MODEL}" if item else "the paper has no such figure"
    return f"{drawn}; {shown}."


def rankings(vlm: VLM, table: pd.DataFrame, shares: pd.DataFrame) -> dict[str, str]:
    """table: rows of one image with votes; shares: rows of `probing.disagreement`."""
    row = shares.set_index("top_of").loc["disagree"]
    split = int(table["votes"].isin([1, 2]).sum())
    return _note(
        "Three rankings of the same patches",
        f"Every third row and column of {table['image'].iloc[0]} ({len(table)} patches, each drawn "
        "over its 3 x 3 window), ranked by the text-to-image attention score, by the norm of what "
        "the token adds through the output projection (both summed over the shallow, middle and "
        "deep layer, mean and sum over heads), and by the divergence when the token is ablated; "
        f"last panel: {row['patches']:.0f} patches of {row['images']:.0f} scenes with 95% "
        f"intervals over scenes. {_models(vlm)}",
        "Bright patches rank high. If attention told what a token contributes, the three maps "
        "would look alike and the last panel would hold two bars, 0 and 3. Diamonds show what "
        "three unrelated rankings would give.",
        f"Three rank maps of one scene and a map of their agreement: the rankings disagree about "
        f"{split} of {len(table)} patches there. Over {row['images']:.0f} scenes they disagree "
        f"about {row['share']:.0%} of patches (95% interval {row['low']:.0%} to "
        f"{row['high']:.0%}); unrelated rankings would about {CHANCE:.0%}.",
        "Equations 3-4",
    )


def agreement(vlm: VLM, table: pd.DataFrame) -> dict[str, str]:
    """table: rows of `probing.agreement`."""
    total = table[table["layer"] == "sum"].set_index("pair")
    parts = "; ".join(
        f"{pair} {row['rho']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        for pair, row in total.iterrows()
    )
    return _note(
        "Rank correlation of the three rankings",
        "Spearman correlation within an image, mean over "
        f"{table['images'].max()} scenes with 95% intervals over scenes, for a shallow, a middle "
        f"and a deep layer and for their sum. {_models(vlm)}",
        "At 1 two rankings are the same, at 0 they are unrelated. Attention would be a stand-in "
        "for removal if the squares lay near 1 in the layers used for pruning.",
        f"Rank correlations, summed over three layers: {parts}.",
        "Section 3.1",
    )


def layer_ranks(vlm: VLM, summary: pd.DataFrame) -> dict[str, str]:
    """summary: rows of `probing.rank_summary`."""
    lead = summary[summary["quantity"] == "lead"]
    first, last = lead.iloc[0], lead.iloc[-1]
    crossing = lead.loc[lead["value"] > 0.5, "layer"]
    where = (
        f"The next token leads at most positions from after layer {crossing.iloc[0]} on."
        if len(crossing)
        else "The next token leads at most positions after no layer."
    )
    return _note(
        "From the current token to the next",
        f"{first['positions']:.0f} caption positions of {first['images']:.0f} held-out scenes: the "
        "state after each layer, under the final norm and the head. Bands: 95% intervals over "
        f"scenes. {_models(vlm)}",
        "Left: rank 1 means that the head would say this token first. Right: above the dashed "
        "line the state speaks rather for the next token. A layer with both ranks far from 1, or "
        "with a lead between 10 and 90%, is one whose attention scores belong to neither "
        "token alone. The claim would be wrong if the next token led from the first layer on, or "
        "never did.",
        f"The next token outranks the current one at {first['value']:.0%} of positions before the "
        f"first layer and at {last['value']:.0%} after the last. {where}",
        "Section 7.1",
    )


def pipeline(vlm: VLM, row: pd.Series) -> dict[str, str]:
    """row: the row of `subjects.measure` of the token drawn."""
    return _note(
        "The two experiments on one real token",
        f"Patch {row['patch']} of {row['image']}, the one of the 64 sampled patches with the "
        "highest top-1 probability. A: the token is the whole visual input. B: its 3 x 3 region "
        "is, with and without the token (dark: replaced by the pad embedding). C: the image, with "
        "and without the region. Bars: the leading candidates of the run as it is. "
        f"{_models(vlm, 'Figure 2')}",
        "Read each row from left to right. A long first bar in A means that the model recognises "
        "the token; bars that change between blue and orange in B and C mean that the picture "
        "depends on it.",
        f"Alone, the token is read as {row['word']} with probability {row['top1']:.2f}. Without it "
        f"its region's reading changes by {row['jsd_region']:.2g} nats, without the region the "
        f"image's by {row['jsd_global']:.2g}; the weighted sum is {row['jsd_final']:.2g}.",
        "Figure 2",
    )


def words(vlm: VLM, table: pd.DataFrame) -> dict[str, str]:
    """table: rows of `subjects.describe` of one image."""
    common = table["word"].value_counts()
    listed = ", ".join(f"{word} ({count})" for word, count in common.head(5).items())
    sure = (table["top1"] > 0.5).mean()
    truth = ""
    if "right" in table:
        covered = table[table["coverage"] >= 0.5]
        truth = (
            f" Where an object covers half or more of the patch the word is its noun in "
            f"{covered['right'].sum()} of {len(covered)} cases."
        )
    return _note(
        "What each token says on its own",
        f"The word decoded from each of the {len(table)} visual tokens of {table['image'].iloc[0]} "
        "given alone, cut after five letters, over its top-1 probability in percent (eq. 6, whole "
        f"vocabulary). {_models(vlm, 'Figure 1')}",
        "Dark cells are tokens that the model is sure about. The claim that a token holds "
        "recognisable information needs dark cells with the right word on objects; dark cells "
        "with a word on empty ground would speak against reading probability as information.",
        f"Map of {len(table)} words; the most frequent are {listed}. {sure:.0%} of the tokens have "
        f"a top-1 probability above one half.{truth}",
        "Figure 1",
    )


def state_maps(vlm: VLM, table: pd.DataFrame, selected: pd.DataFrame) -> dict[str, str]:
    """table: rows of `subjects.describe` of one image; selected: rows of `probing.select`."""
    ranks = table[["top1", "cls_similarity", "attention"]].corr(method="spearman")["top1"]
    layers = ", ".join(str(layer + 1) for layer in vlm.layers)
    return _note(
        "What intermediate states say of the same tokens",
        "Top-1 probability of the single token, its cosine with [cls] at the feature layer, and "
        f"the attention that the last prompt position gives it in layers {layers} of "
        f"{len(vlm.decoder.layers)} (one logarithmic scale). The frames are the rows of the table "
        f"below. {_models(vlm, 'Figure 1')}",
        "If [cls] similarity or attention told where information is, their maps would resemble "
        "the second panel.",
        f"Six maps of {table['image'].iloc[0]}. Rank correlation with the top-1 probability: "
        f"{ranks['cls_similarity']:.2f} for [cls] similarity, {ranks['attention']:.2f} for "
        f"attention; {len(selected)} patches are framed.",
        "Figure 1",
    )


def selected(vlm: VLM, table: pd.DataFrame, chosen: pd.DataFrame) -> dict[str, str]:
    """table: all rows of the image; chosen: rows of `probing.select`."""
    counts = chosen["group"].value_counts()
    sure, unsure = (chosen.loc[chosen["group"] == name, "top1"] for name in GROUPS)
    parts = [
        f"{len(part)} {name} with top-1 probabilities from {part.min():.2f} to {part.max():.2f}"
        for name, part in (("with low states", sure), ("with high states", unsure))
        if len(part)
    ]
    rule = (
        f"Of the {int(low_states(table).sum())} patches in the lower half by [cls] similarity and "
        "by attention, the highest top-1 probabilities (no word more than twice); of the "
        f"{int(high_states(table).sum())} in the upper quarter by both, the lowest."
    )
    return _note(
        "Selected patches",
        f"{rule} Patches count from 0 in raster order; attention in three layers. "
        f"{_models(vlm, 'Figure 1')}",
        "The first group would be pruned by [cls] similarity or attention, the second kept. The "
        "rule shows the best there are: where the first is no surer than the second, or its words "
        "name nothing in the scene, the image has no patch that finding 1 speaks of.",
        f"{counts.sum()} patches: {' and '.join(parts) or 'none'}.",
        "Figure 1",
    )


def right_by_coverage(vlm: VLM, table: pd.DataFrame) -> dict[str, str]:
    """table: rows of `probing.by_coverage`."""
    there = table[table["asked"] == "noun of the object there"]
    widest = there[there["high_edge"] == there["high_edge"].max()].set_index("tokens")
    own, other = widest.loc["own"], widest.loc["shuffled"]
    return _note(
        "How often the word is right, by how much of the patch the object covers",
        f"All patches of {int(table['images'].max())} held-out scenes; the word of a token given "
        "alone against the exact mask. Shuffled: the token at the same place of every other "
        "image. Bars: 95% intervals over images. "
        f"{_models(vlm)} Its photographs have no masks.",
        "Left: the gap between blue and orange is what the token knows about its own place; no "
        "gap, no information. Right, at 0: a gap there means that tokens of bare ground know what "
        "is elsewhere in the image.",
        f"At patches that the object covers by {own['bin']} the word is right in "
        f"{own['share']:.0%} of cases ({own['low']:.0%} to {own['high']:.0%}), with another "
        f"image's token in {other['share']:.0%} ({other['low']:.0%} to {other['high']:.0%}).",
    )


def divergence_maps(vlm: VLM, table: pd.DataFrame, pair: Sequence[int]) -> dict[str, str]:
    """table: rows of `subjects.measure` of one image; pair: patches A and B."""
    rows = table.set_index("patch")["jsd_final"]
    return _note(
        "What each token's absence changes",
        f"Divergence (eq. 7, {len(table)} patches of {table['image'].iloc[0]}, each drawn over its "
        "3 x 3 window) when the token is ablated in its region, when the region is ablated in the "
        f"image, and the two with their weights. A and B are the patches of the next figure. "
        f"{_models(vlm, 'Figure 3')}",
        "Bright: the reading changes much. The first map asks what the token is worth to its "
        "neighbours, the second what the region is worth to the image.",
        f"Divergence maps. The final value is {rows.median():.1e} at the median patch, "
        f"{rows.min():.1e} at the least and {rows.max():.1e} at the most influential.",
        "Figure 3",
    )


def contrast(
    vlm: VLM, table: pd.DataFrame, pair: Sequence[int], *, searched: int = 1
) -> dict[str, str]:
    """table: rows of `subjects.measure` of one image; pair: patches A and B; searched: number of
    scenes among which the one with the greatest contrast was taken."""
    chosen = f"Of {searched} scenes, the one where A and B differ most." if searched > 1 else ""
    a, b = (table.set_index("patch").loc[patch] for patch in pair)
    more = "above" if a["jsd_final"] > b["jsd_final"] else "not above"
    return _note(
        "The strongest patch with low states, the weakest with high ones",
        f"A: the most influential of the sampled patches of {table['image'].iloc[0]} in the lower "
        "half by [cls] similarity and by attention. B: the least influential in the upper quarter "
        f"of both (or, if there is none, upper half, then all). {chosen} Logits of the leading "
        f"candidates before and after, and their change. {_models(vlm, 'Figure 3')}",
        "Long bars are candidates that the ablated tokens had held up (to the left) or down. The "
        "scale of a column is the same for A and B. Finding 2 expects longer bars for A. "
        "The pair was searched for and proves nothing; the statement below is tested on all "
        "scenes.",
        f"Patch {pair[0]}, [cls] similarity {a['cls_similarity']:.2f}, has a final divergence of "
        f"{a['jsd_final']:.1e}, {more} the {b['jsd_final']:.1e} of patch {pair[1]}, [cls] "
        f"similarity {b['cls_similarity']:.2f}.",
        "Figure 3",
    )


def token_against_region(
    vlm: VLM, one: pd.DataFrame, table: pd.DataFrame, ratio: tuple[float, float, float]
) -> dict[str, str]:
    """one: rows of `subjects.measure` of the drawn image; table: those of all scenes; ratio: value,
    low, high."""
    medians = table[["jsd_token", "jsd_global"]].median()
    value, low, high = ratio
    return _note(
        "One token against its region",
        f"Left: {one['image'].iloc[0]}, one token and its 3 x 3 region ablated in the whole "
        f"image, one scale. Right: {len(table)} patches of {table['image'].nunique()} scenes. "
        f"{_models(vlm, 'Figure 6')}",
        "The farther apart the two distributions, the more the cascade gains by ablating regions. "
        "The claim would be wrong if they lay on top of each other.",
        f"Median divergence {medians['jsd_token']:.1e} for one token and "
        f"{medians['jsd_global']:.1e} for its region, {value:.1f} times as much "
        f"({low:.1f} to {high:.1f}).",
        "Figure 6",
    )


def definitions(
    vlm: VLM, table: pd.DataFrame, summary: pd.DataFrame, *, tau_jsd: float
) -> dict[str, str]:
    """table: rows of `subjects.measure` of all scenes; summary: of `probing.definitions`."""
    rows = summary.set_index("definition")
    released, paper = rows.loc["released"], rows.loc["paper (eq. 7-10)"]
    return _note(
        "The paper's divergence and the released one",
        f"{len(table)} patches of {table['image'].nunique()} scenes: JSD final by the paper's "
        "definition against the release's two changes, alone and together. 10 candidates: the "
        f"divergence is taken over as many, not over {paper['candidates']}. Swapped, mean: the "
        "arguments of the Kullback-Leibler divergence change places, and the candidates' terms are "
        f"averaged, not summed. Dashed: the threshold {tau_jsd:g} that both give. {_models(vlm)}",
        "Points on the line are equal; parallel to it, only the scale differs and a scaled "
        "threshold would do the same. Points that are above one dashed line but below the other "
        "change sides when the definition changes.",
        f"The released definition gives {released['over_paper']:.3f} times the paper's median, and "
        f"ranks patches alike to {released['rho']:.3f}; {released['below_tau']:.0%} of patches lie "
        f"under {tau_jsd:g} by it, {paper['below_tau']:.0%} by the paper's.",
        "Equations 7-11",
    )


def choices(vlm: VLM, table: pd.DataFrame) -> dict[str, str]:
    """table: rows of `probing.choices`."""
    windows = table.set_index("topic")["here"].filter(like="window").iloc[0]
    return _note(
        "What the paper leaves open in the leave-one-out",
        "What the paper's text says, what the released code does and what this notebook does; "
        f"numbers are those of {vlm.name}.",
        "Where the last column names both, both are computed above; elsewhere the release was "
        "followed because the paper says nothing.",
        f"Table of {len(table)} choices. The window at the border is {windows}.",
        "Section 7.3",
    )
