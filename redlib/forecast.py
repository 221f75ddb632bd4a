"""What a run will fetch and what it will cost, said before it begins.

A parameter file of a real model asks for some hundred gigabytes and for hours of a GPU, and
papermill would tell neither. Both are known beforehand: what is fetched, from what the publishers
state of their files (`redlib.data`) and from config.json (`redlib.costs.memory`); what is computed,
from the engine's own plan (`redlib.costs.plan`). What the hub's cache holds already is seen there.

    print("\\n".join(lines(load_set("params/7b.yaml"))))

`redlib run FILE --dry-run` prints this and does nothing else; a run on real data prints it first.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from redlib.params import NOTEBOOKS, Params, embedded, local

HUB = "Hugging Face hub"
WEIGHTS = "*.safetensors"
NEWEST = "newest"


def lines(
    runs: Sequence[Params],
    notebooks: Sequence[str] = tuple(NOTEBOOKS),
    *,
    cache: Path | None = None,
) -> list[str]:
    """The forecast of a parameter file or set, for printing.

    Args:
        runs: what the file or set holds.
        notebooks: numbers of those that run, as far as a run's own file has them.
        cache: the hub's cache folder; None: where huggingface_hub has it.

    Raises:
        RedlibError: a model of which nothing is known, as `redlib.costs.plan`.
    """
    from redlib import costs  # torch

    told, hours = _fetch_lines(fetches(runs, notebooks, cache=cache)), 0.0
    for one in runs:
        table = costs.plan(one, _of(one, notebooks))
        told += ["", *_cost_lines(one, table, costs.memory(one), costs.CARD)]
        hours += table["hours"].sum()
    if len(runs) > 1:
        told += ["", f"all {len(runs)} runs: {hours:.1f} GPU-hours on {costs.CARD}"]
    return told


def fetches(
    runs: Sequence[Params],
    notebooks: Sequence[str] = tuple(NOTEBOOKS),
    *,
    cache: Path | None = None,
) -> pd.DataFrame:
    """What the runs fetch between them, each thing once.

    Returns name, id, split, gigabytes (at most), cached (gigabytes of them that lie in the hub's
    cache), source (the hub, a folder, or "here already"), and disk, gigabytes more that `datasets`
    takes for its own copy. The arguments are those of `lines`.
    """
    tables = [_fetched_by(one, _of(one, notebooks)) for one in runs]
    table = pd.concat(tables, ignore_index=True)
    # Runs of one set may want more and fewer images of one data set.
    table = table.groupby(["name", "id", "split", "source"], sort=False, as_index=False).max()
    table["cached"] = table["gigabytes"].clip(upper=pd.Series(_cached(table, cache)))
    return table[["name", "id", "split", "gigabytes", "cached", "source", "disk"]]


def _of(one: Params, notebooks: Sequence[str]) -> list[str]:
    return [number for number in one.notebooks or NOTEBOOKS if number in notebooks]


def _fetched_by(one: Params, notebooks: Sequence[str]) -> pd.DataFrame:
    from redlib import costs, data
    from redlib.data import benchmarks

    here = one.model in embedded() or local(one.model).is_dir()
    row = {
        "name": "model weights",
        "id": one.model,
        "split": one.revision or ("" if here else NEWEST),
        "gigabytes": 0.0 if here else costs.memory(one),
        "source": "here already" if here else HUB,
        "disk": 0.0,
    }
    tables = [pd.DataFrame([row])]
    tables += [found for source in (data, benchmarks)
               if len(found := source.fetches(one, notebooks=notebooks))]  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _cached(table: pd.DataFrame, cache: Path | None) -> list[float]:
    """Gigabytes that the hub's cache holds of each row."""
    if not table["source"].str.startswith(HUB).any():
        return [0.0] * len(table)
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from redlib.data import COCO, VQAV2
    from redlib.data.benchmarks import BENCHMARKS

    try:
        repos = {(repo.repo_type, repo.repo_id): repo for repo in scan_cache_dir(cache).repos}
    except CacheNotFound:
        return [0.0] * len(table)
    sources = {source.ids[0]: source for source in (VQAV2, COCO, *BENCHMARKS.values())}
    held = []
    for row in table.itertuples():
        source = sources.get(row.id)
        kind, ids = ("dataset", source.ids) if source else ("model", (row.id,))
        pattern = source.files if source else WEIGHTS
        if "{" in pattern:  # files that are named as they are drawn
            pattern = "*"
        commit = None if source or row.split == NEWEST else row.split
        found = [repos[kind, name] for name in ids if (kind, name) in repos]
        # Of a data set with two names the run goes on with the first that it finds.
        held.append(_size(found[0], pattern, commit) if found else 0.0)
    return held


def _size(repo: object, pattern: str, commit: str | None) -> float:
    """Gigabytes of a cached repository's files of that pattern; of a commit, branch or tag, or else
    of whichever has most."""
    sizes = [
        sum(
            file.size_on_disk
            for file in revision.files
            if fnmatch(file.file_path.relative_to(revision.snapshot_path).as_posix(), pattern)
        )
        for revision in repo.revisions
        if commit in (None, revision.commit_hash, *revision.refs)
    ]
    return max(sizes, default=0) / 1e9


def _fetch_lines(table: pd.DataFrame) -> list[str]:
    rows = [("to fetch", "from", "GB", "cached")]
    rows += [
        (
            row.name,
            f"{row.id} {row.split}".strip() if row.source.startswith(HUB) else row.source,
            f"{row.gigabytes:.2f}" + (" (estimated)" if "estimated" in row.source else ""),
            f"{row.cached:.2f}",
        )
        for row in table.itertuples(index=False)
    ]
    total, cached, disk = (table[name].sum() for name in ("gigabytes", "cached", "disk"))
    told = (
        f"in all {total:.1f} GB, {cached:.1f} of them cached already: {total - cached:.1f} to fetch"
    )
    if disk:
        told += f"; datasets unpacks its own copies, up to {disk:.0f} GB more on disk"
    return [*_columns(rows, "llrr"), told]


def _cost_lines(one: Params, table: pd.DataFrame, gigabytes: float, card: str) -> list[str]:
    rows = [(one.run_name, "images", "inputs", "tokens", "10^15 operations", f"hours on {card}")]
    rows += [
        (
            f"{row.notebook} {row.stage}",
            f"{row.images:,}",
            f"{row.forwards:,}",
            f"{row.tokens:,}",
            f"{row.pflop:.3g}",
            f"{row.hours:.2f}",
        )
        for row in table.itertuples()
    ]
    told = (
        f"in all {table['forwards'].sum():,} inputs, {table['tokens'].sum():,} tokens, "
        f"{table['hours'].sum():.1f} GPU-hours on {card} for the model's part; "
        f"its weights take {gigabytes:.3g} GB of memory in half precision"
    )
    return [*_columns(rows, "lrrrrr"), told]


def _columns(rows: Sequence[tuple[str, ...]], sides: str) -> list[str]:
    """Rows of text in columns, each to its left (l) or right (r)."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]
