"""A data set through `datasets.load_dataset`, and the pictures in it that cannot be read.

    found = table(VQAV2, data_dir, columns=("image", "image_id", "question"))
    image = decode(row(found, 0)["image"], "row 0")    # raises Unreadable
    bad = Skipped("VQAv2 validation")
    bad.add("row 0", "is truncated")                   # counted and named; over 1 % stops the run

Three habits of `load_dataset` decide how it is called. Asked for one split, it still fetches the
files of all; so the files of the split are named. When they are, it does not find them again in its
own cache without a connection; so the hub's cache is asked for them, and `load_dataset` is given
that folder, or the reader's, in one and the same way. And it decodes pictures when a row is read,
so that a single damaged one would end the run; so rows are read as they are stored, a picture being
the bytes of its file.
"""

import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from redlib.data.sources import Source
from redlib.errors import RedlibError, first_line
from redlib.params import local
from redlib.pictures import read_image
from redlib.store import FULL

MOST_UNREADABLE = 0.01
"""Share of the pictures read that may be damaged: with more, what is left is another data set. A
single one may be bad luck and never stops a run."""

_SHARD = re.compile(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.")  # the hub puts a hash behind some


class Unreadable(Exception):
    """One picture of a data set cannot be read; the message says which and why."""


class Skipped:
    """The pictures or films of one data set that could not be read.

    Attributes:
        name: of the data set.
        what: "pictures" or "films".
        reasons: which of them -> why.
        read: how many could be read.
    """

    def __init__(self, name: str, what: str = "pictures") -> None:
        self.name, self.what = name, what
        self.reasons: dict[str, str] = {}
        self.read = 0

    def add(self, which: str, why: str) -> None:
        """Note one that could not be read, and why; named twice, it counts once."""
        self.reasons[which] = why

    def check(self) -> None:
        """Raises RedlibError if several, and over 1 % of those read, are damaged."""
        seen = self.read + len(self.reasons)
        if len(self.reasons) > max(1, MOST_UNREADABLE * seen):
            raise RedlibError(
                f"{self.name}: {self}; over {MOST_UNREADABLE:.0%} means a damaged copy: delete it "
                "and fetch it again"
            )

    def __str__(self) -> str:
        named = ", ".join(f"{which} ({why})" for which, why in list(self.reasons.items())[:5])
        more = len(self.reasons) - 5
        tail = f" and {more} more" if more > 0 else ""
        return (
            f"{len(self.reasons)} of {self.read + len(self.reasons)} {self.what} cannot be read: "
            f"{named}{tail}"
        )


def table(source: Source, data_dir: str | None, *, columns: Sequence[str]) -> Any:
    """The split of a data set as a `datasets.Dataset`, for `row` and `column`.

    data_dir: folder in which a folder `source.folder` is a copy of the repository; None: the hub,
    or with HF_DATASETS_OFFLINE=1 what is cached of it, under any of its names.
    columns: those that must be there.
    Raises RedlibError, one line, if there is no such folder or split, if the hub cannot be reached
    and nothing is cached, if the data set is gated, if a file is damaged or missing, or without a
    column.
    """
    folder = _on_hub(source) if data_dir is None else copied(source, data_dir)
    found = _load(folder, source)
    missing = [name for name in columns if name not in found.column_names]
    if missing:
        raise RedlibError(
            f"{source.name}: no column {missing[0]!r}; there are {', '.join(found.column_names)}. "
            f"Expected is the form of {source.ids[0]}"
        )
    return found.with_format("arrow")


def copied(source: Source, data_dir: str) -> Path:
    """The folder of a data set below `data_dir`. Raises RedlibError, one line, if there is none or
    the reader may not look into it."""
    folder = local(Path(local(data_dir), source.folder))
    if folder.is_dir():
        return folder
    remedy = (
        f"copy it there with `hf download --repo-type dataset {source.ids[0]} --local-dir {folder}`"
    )
    if source.published:
        remedy = _form(source)
    raise RedlibError(f"data_dir: no folder {str(folder)!r} for {source.name}; {remedy}")


def _form(source: Source) -> str:
    """What a folder should hold to be the copy of a data set."""
    repository = f"be a copy of the repository {source.ids[0]}"
    if not source.published:
        return f"it should {repository}"
    *files, images = source.published
    if source.per_image:  # the repository has no images
        return (
            f"it should hold {', '.join(files)}, or {repository}, and in either form {images} with "
            "the images"
        )
    return f"it should hold {', '.join(files)} and {images}, or {repository}"


def revision(source: Source, data_dir: str | None) -> str:
    """Which edition of a data set `table` reads: "lmms-lab/POPE@<commit>" of the hub, or "folder
    POPE", of which nobody keeps a commit. Asks the cache alone, so the data set has to be read
    first."""
    if data_dir is not None:
        return f"folder {source.folder}"
    snapshot = _on_hub(source, offline=True)  # .../datasets--lmms-lab--POPE/snapshots/<commit>
    name = snapshot.parents[1].name.removeprefix("datasets--").replace("--", "/")
    return f"{name}@{snapshot.name}"


def row(found: Any, number: int) -> dict[str, Any]:
    """One row of a `table`, as it is stored, pictures as {"bytes": ..., "path": ...}; but a class
    by its name, since its number says nothing outside the file, and None for -1, no label."""
    from datasets import ClassLabel

    stored = found[number].to_pylist()[0]
    for name, feature in found.features.items():
        if isinstance(feature, ClassLabel):
            stored[name] = dict(enumerate(feature.names)).get(stored[name])
    return stored


def column(found: Any, name: str) -> list[Any]:
    """One column of a `table`, without reading the others."""
    return found.select_columns([name])[:].column(name).to_pylist()


def _on_hub(source: Source, *, offline: bool = False) -> Path:
    """The folder in which the hub's cache keeps the split, fetched if need be and not `offline`.

    Its names are tried in turn, one with files in the cache first: what was fetched under a former
    name is not fetched again under the new one. Of several complaints the one is told that a reader
    can act on: a licence to accept, else that about the first name.
    """
    from huggingface_hub.errors import HTTPError

    complaints = []
    for name in sorted(source.ids, key=lambda name: not _begun(name)):
        try:
            return _snapshot(name, source, offline)
        except RedlibError as error:
            complaints.append(error)
        except HTTPError as error:  # under another name it would be fetched from the start
            raise cut_off(f"{source.name}: {name}", error) from None
    raise min(complaints, key=lambda error: "is gated" not in str(error))


def cut_off(what: str, error: Exception) -> RedlibError:
    """What to say where a connection to the hub broke off, of which httpx complains in errors of
    its own that are no OSError."""
    return RedlibError(
        f"{what}: the connection to the hub was lost ({type(error).__name__}: "
        f"{first_line(error)}); see to the connection and run the same command again, which goes "
        "on with what is not cached yet"
    )


def _begun(name: str) -> bool:
    """Whether the hub's cache has a folder for the data set."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name, repo_type="dataset")
    return Path(constants.HF_HUB_CACHE, folder, "snapshots").is_dir()


def _snapshot(name: str, source: Source, offline: bool) -> Path:
    from datasets import config
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, GatedRepoError, RepositoryNotFoundError

    offline = offline or config.HF_HUB_OFFLINE  # by HF_DATASETS_OFFLINE or HF_HUB_OFFLINE
    fetch = partial(
        snapshot_download,
        name,
        repo_type="dataset",
        revision=source.revision,
        allow_patterns=[source.files, "README.md"],
        local_files_only=offline,
    )
    try:
        if not offline:
            with suppress(DryRunError):  # no connection; it may be cached all the same
                _announce(source, name, fetch(dry_run=True))
        return Path(fetch())
    except GatedRepoError:
        raise RedlibError(
            f"{source.name}: {name} is gated: accept its terms at "
            f"https://huggingface.co/datasets/{name}, then log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise RedlibError(
            f"{source.name}: the hub has no data set {name} that you may read; set data_dir to a "
            "folder that holds it"
        ) from None
    except OSError as error:
        raise RedlibError(
            f"{source.name}: {name} is not cached and cannot be fetched ({first_line(error)}); "
            "connect once, or set data_dir to a folder that holds it"
        ) from None


def _announce(source: Source, name: str, files: Sequence[Any]) -> None:
    """Say what is about to be fetched, if anything is."""
    wanted = [file for file in files if file.will_download]
    if wanted:
        size = sum(file.file_size for file in wanted) / 1e9
        print(
            f"{source.name}: fetching {size:.3g} GB in {len(wanted)} files from {name}; datasets "
            f"unpacks them into {source.disk:g} GB more"
        )


def _load(folder: Path, source: Source) -> Any:
    from datasets import load_dataset  # costs a second, and only `data: real` needs it
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid

    check_complete(folder, source)
    for path in sorted(folder.glob(source.files)):
        if path.suffix == ".json":
            _check_json(path)
    try:
        return load_dataset(
            str(folder), data_files={source.split: source.files}, split=source.split
        )
    except (ArrowInvalid, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise _refused(cause, source) from None
        raise RedlibError(
            f"{source.name}: a file in {folder} is damaged or half downloaded "
            f"({first_line(cause)}); delete it and fetch it again"
        ) from None
    except (OSError, ValueError) as error:
        # That no file matches datasets says itself, without a number of the operating system.
        if isinstance(error, FileNotFoundError | ValueError) and not getattr(error, "errno", None):
            raise RedlibError(
                f"{source.name}: {folder} holds no data set in {source.files} "
                f"({first_line(error)}); expected is a copy of {source.ids[0]}"
            ) from None
        raise _refused(error, source) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged card may end in any error of yaml and of `datasets`
        raise RedlibError(
            f"{source.name}: {folder} cannot be read ({type(error).__name__}: "
            f"{first_line(error)}); its README.md or another file in it is damaged, or none of "
            f"{source.ids[0]}: delete it and fetch it again"
        ) from None


def _check_json(path: Path) -> None:
    """Raises RedlibError for a JSON file that holds no list of rows, of some of which, a bare
    `null`, the reader of `datasets` dies."""
    held = parsed(path)
    if not isinstance(held, list) or not all(isinstance(one, dict) for one in held):
        raise RedlibError(f"{path}: another file, without a list of records; fetch it again")


def parsed(path: Path) -> Any:
    """What a JSON file of a data set holds. Raises RedlibError, one line, for one that cannot be
    read or is none."""
    try:
        return json.loads(local(path).read_text(encoding="utf-8-sig"))  # some editors add the mark
    except OSError as error:
        raise RedlibError(
            f"{path}: cannot be read ({error.strerror}); see who may read it, and where it lies"
        ) from None
    except (ValueError, RecursionError):
        raise RedlibError(f"{path}: damaged or half downloaded, no JSON; fetch it again") from None


def _refused(error: OSError, source: Source) -> RedlibError:
    """What to say where the file system refused to write the cache of `datasets`, or to read what
    lies there; in either case the data set may be whole."""
    from datasets import config

    why = first_line(error) if error.errno is None else os.strerror(error.errno)
    cache = Path(config.HF_DATASETS_CACHE).absolute()
    named = cache if error.filename is None else Path(error.filename).absolute()
    if error.errno in FULL or cache.is_relative_to(named) or named.is_relative_to(cache):
        return RedlibError(
            f"{source.name}: the cache folder of datasets, {cache}, cannot be written ({why}); "
            "make room there, or set HF_DATASETS_CACHE to another folder; the data set is whole"
        )
    return RedlibError(
        f"{source.name}: {named} cannot be read ({why}); see who may read it, and where it lies"
    )


def check_complete(folder: Path, source: Source) -> None:
    """Raises RedlibError unless `folder` has files of the split, none of them empty.

    Of a split in numbered files, "-00003-of-00068.parquet", all have to be there, once, and nothing
    else: fewer or more would make another sample, and nobody would notice. No file is read.
    """
    local((folder / source.files).parent)  # glob passes over what the reader may not look into
    files = sorted(path for path in folder.glob(source.files) if path.is_file())
    if not files:
        raise RedlibError(
            f"{source.name}: {folder} holds no data set in {source.files}; {_form(source)}"
        )
    for path in files:
        if path.stat().st_size == 0:
            raise RedlibError(f"{source.name}: {path} is empty; delete it and fetch it again")
    names = [path.name for path in files]
    shards = {name: (int(m[1]), int(m[2])) for name in names if (m := _SHARD.search(name))}
    if not shards:
        return
    where = f"{source.name}: {folder} holds"
    (first, (_, total)), *_ = shards.items()
    by_number: dict[int, str] = {}
    for name in names:
        number, of = shards.get(name, (-1, total))
        if of != total:
            raise RedlibError(
                f"{where} {first} beside {name}, of two editions; delete the files of the older one"
            )
        if not 0 <= number < total:
            raise RedlibError(f"{where} {name}, none of the {total} files; move it elsewhere")
        if number in by_number:
            raise RedlibError(
                f"{where} {by_number[number]} beside {name}, the same part twice; delete the older"
            )
        by_number[number] = name
    missing = [number for number in range(total) if number not in by_number]
    if missing:
        raise RedlibError(
            f"{where} {len(names)} of the {total} files {source.files}, not the one with "
            f"-{missing[0]:05}-of-{total:05}; fetch the others too"
        )


def decode(stored: Any, which: str) -> Image.Image:
    """A picture as the model may see it: RGB, upright, transparency on white.

    stored: {"bytes": ..., "path": ...} of an Image column, bytes, or a file's path.
    which: how to call it in a complaint.
    Raises Unreadable: nothing stored, no image, truncated, or of a form that no model reads.
    """
    data = encoded(stored, which)
    try:
        return read_image(io.BytesIO(data), which)
    except RedlibError as error:
        raise Unreadable(str(error)) from None


def encoded(stored: Any, which: str) -> bytes:
    """The bytes of a picture as they are stored; `decode` says of what.

    Raises Unreadable: nothing stored, or a file that cannot be read.
    """
    if isinstance(stored, dict):
        stored = stored.get("bytes") or stored.get("path")
    if isinstance(stored, str | os.PathLike):
        try:
            stored = Path(stored).read_bytes()
        except (OSError, ValueError) as error:  # the latter for a name with a NUL
            why = getattr(error, "strerror", None) or error
            raise Unreadable(f"{which}: {why}") from None
    if not isinstance(stored, bytes) or not stored:
        raise Unreadable(f"{which}: no picture is stored")
    return stored
