"""Table 2 (notebook 06): several images in one prompt, and films, with the texts beside it.

A column is a set of questions, and each needs two things to be read: what guessing reaches, since a
model at chance keeps "100 %" of it without any image, and how many visual tokens a whole sample
has, since a budget holds for each image or frame and a sample has many. So the last rows give
chance and n, and every cell its mean tokens, as in the paper. On the small model a part of what
films lose is of its own making; the caption says so (CLOCKS).
"""

import pandas as pd

from redlib.study.several import FURTHER, METHODS, TOKENS
from redlib.tables import with_interval

_HEADS = {"mantis": "Mantis", "muir": "MuirBench", "film": "MVBench"}


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 2 for readers: a row per method, a column per set; rows of `study.several.summary`.

    A cell holds accuracy, interval, deviation over seeds and, as in the paper, the mean visual
    tokens of a sample; the last rows what guessing reaches, and n.
    """
    shown = summary.assign(
        cell=[
            f"{cell}{'' if pd.isna(std) else f' ±{std:.3f}'} ({kept:.0f}×)"
            for cell, std, kept in zip(
                with_interval(summary, "accuracy"), summary["std"], summary["kept"], strict=True
            )
        ]
    )
    per = shown.pivot(index="method", columns="set", values="tokens")
    cells = shown.pivot(index="method", columns="set", values="cell")
    rows = []
    for method, title in METHODS.items():
        if method == FURTHER[0]:
            rows.append(dict.fromkeys(_columns(), "") | {"Method": "Not in the paper's Table 2:"})
        budgets = {"Per image": str(per["mantis"][method]), "Per frame": str(per["film"][method])}
        told = {head: cells[name][method] for name, head in _HEADS.items()}
        rows.append({"Method": title} | budgets | told)
    full = summary[summary["method"] == "unpruned"].set_index("set")
    blank = {"Per image": "", "Per frame": ""}
    rows.append(
        {"Method": "by chance"}
        | blank
        | {head: f"{full['chance'][name]:.2f}" for name, head in _HEADS.items()}
    )
    rows.append(
        {"Method": "n questions (pairs, films)"}
        | blank
        | {head: f"{full['n'][name]} ({full['images'][name]})" for name, head in _HEADS.items()}
    )
    return pd.DataFrame(rows, columns=_columns())


def _columns() -> list[str]:
    return ["Method", "Per image", "Mantis", "MuirBench", "Per frame", "MVBench"]


CLOCKS = (
    " The small model knows early from late frames by the positions of their tokens, through "
    "clocks set by hand (`redlib/tabletop/marks.py`). What stays is numbered anew, so with a "
    "twelfth of the tokens its clocks run a twelfth as far: a part of what films lose here."
)


def table_note(summary: pd.DataFrame, *, model: str, seeds: int, real: bool = False) -> dict:
    """Texts of Table 2. real: of photographs, not of scenes."""
    shown = (
        "Accuracy on samples of Mantis-Eval, MuirBench and MVBench (16 frames of a film; mean over "
        "its subtasks)"
        if real
        else "Accuracy on pairs of tabletop scenes, asked and judged as Mantis-Eval and MuirBench "
        "are, and on films of 16 frames, as MVBench is (mean over its subtasks)"
    )
    at = summary.set_index(["set", "method"])["accuracy"]
    told = "; ".join(
        f"{head} {at[name, 'unpruned']:.2f} with all tokens, {at[name, 'ours']:.2f} Ours, "
        f"{at[name, 'random']:.2f} Random"
        for name, head in _HEADS.items()
    )
    return {
        "title": "Several images, and films",
        "caption": (
            f"{shown}, with 95 % "
            "intervals from resampling pairs and films; in brackets the mean visual tokens of a "
            f"sample. Every image keeps {TOKENS['mantis']} of 729 tokens, every frame "
            f"{TOKENS['film']} of the 196 that its 729 are pooled to. The codebook is that of "
            "notebook 05, made of unpooled tokens of single images. Ours is the paper's rule, the "
            "largest cosine with a prototype; the release prunes LLaVA-OneVision by a double "
            "softmax instead, a row of its own. PruMerge and VisionZip go by the attention that a "
            "patch receives, as SigLIP has no class token. Random: "
            f"{'one draw' if seeds == 1 else f'mean of {seeds} draws, ± their deviation'}. "
            f"Computed with {model}; the paper's Table 2 has LLaVA-OneVision-7B."
        )
        + ("" if real else CLOCKS),
        "reading": (
            "First compare all tokens with chance: where its interval reaches down to it, the "
            "set decides nothing on pruning. The threshold comes from calibration samples: where "
            "its tokens miss the budget by more than 2 %, R lowest is the fair comparison. The "
            "paper's claim needs Ours above Random, and above all tokens on Mantis and MuirBench."
        ),
        "alt": f"Accuracies: {told}.",
        "paper_item": "Table 2",
    }
