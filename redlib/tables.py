"""Tables for readers: the columns that matter, in words, with the digits that mean something.

Analyses return tidy frames with short column names and all digits; a reader wants neither. One
function turns the first into the second, and one function per table says which columns:

    readable(frame, {"top1": ("Top-1 probability", ".3f"), "patch": "Patch"})

The result is a data frame of text, so a notebook, the page and the CSV file show the same.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from redlib.errors import RedlibError

DIGITS = ".3g"


def readable(frame: pd.DataFrame, columns: Mapping[str, str | tuple[str, str]]) -> pd.DataFrame:
    """The named columns in that order, with readable heads and formatted values.

    columns: column -> head, or (head, format) for numbers; DIGITS by default. Whole numbers and
    text stay as they are, a missing number becomes "-".
    Raises RedlibError for a column that the frame does not have.
    """
    missing = [name for name in columns if name not in frame]
    if missing:
        raise RedlibError(f"no column {missing[0]!r}; there are {', '.join(map(str, frame))}")
    shown = {}
    for name, wish in columns.items():
        head, digits = (wish, DIGITS) if isinstance(wish, str) else wish
        values = frame[name]
        if pd.api.types.is_float_dtype(values):
            values = ["-" if pd.isna(value) else format(value, digits) for value in values]
        shown[head] = list(values)
    return pd.DataFrame(shown)


def with_interval(
    frame: pd.DataFrame, value: str, low: str = "low", high: str = "high", digits: str = ".2f"
) -> list[str]:
    """Each row's value with its interval as text, e.g. "0.31 [0.22, 0.40]"."""
    rows = frame[[value, low, high]].itertuples(index=False)
    return [f"{v:{digits}} [{a:{digits}}, {b:{digits}}]" for v, a, b in rows]


def selected_patches(frame: pd.DataFrame, *, layers: Sequence[int]) -> pd.DataFrame:
    """The table of Figure 1; rows of `study.probing.select`, layers counted from 0."""
    depths = zip(("shallow", "middle", "deep"), layers, strict=True)
    attention = {
        f"attention_{depth}": (f"Attention, layer {layer + 1}", ".2e") for depth, layer in depths
    }
    return readable(
        frame,
        {
            "group": "Group",
            "patch": "Patch",
            "word": "Word",
            "top1": ("Top-1 probability", ".4f"),
            "top1_head": ("Top-1 among the 50 best", ".4f"),
            "logit": ("Top-1 logit", ".3f"),
            "cls_similarity": ("[cls] similarity", ".4f"),
            **attention,
        },
    )


def definitions(frame: pd.DataFrame) -> pd.DataFrame:
    """The definitions of the divergence side by side; rows of `study.probing.definitions`."""
    frame = frame.assign(alike=with_interval(frame, "rho", "rho_low", "rho_high", ".3f"))
    return readable(
        frame,
        {
            "definition": "Definition",
            "candidates": "Candidates",
            "formula": "Formula",
            "median": ("Median JSD final", ".2e"),
            "over_paper": ("Over the paper's", ".3f"),
            "alike": "Rank correlation with the paper's",
            "below_tau": ("Share under the threshold", ".0%"),
        },
    )


def choices(frame: pd.DataFrame) -> pd.DataFrame:
    """What the paper leaves open; rows of `study.probing.choices`."""
    heads = {"topic": "Topic", "paper": "Paper", "released": "Released", "here": "Here"}
    return readable(frame, heads)
