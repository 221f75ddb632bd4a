"""Resumable result tables: one part file per unit of work.

A study asks thousands of questions of a model and may take hours; a kernel may be stopped, a disk
may fill, a laptop may be closed. So a table is never held in memory until the end. Its rows are
grouped in units (usually one image), and each unit is written to a part file of its own the moment
it is done, under a temporary name first, so that a part file is either whole or absent. Doing the
work again computes what is missing and nothing else:

    store = Store("runs/smoke/store/04/study", {"model": "tiny-llava-1.5", "dtype": "float32"})
    table = store.compute(["test-0", "test-1"], measure, describe="images")

where `measure(unit)` returns the unit's rows as a data frame. A process that is killed loses the
unit in its hands. Two runs on one store share its units: whoever measures one holds a lock on a
file of that unit, which the operating system lets go of when the process ends, however it ends.
`redlib.scale.Workers` spreads the units over many processes, each of which writes its own parts.

What must not happen is that rows made with one setting end up beside rows made with another. The
key says what the rows depend on; it lies beside them in `key.json`, and opening the folder with
any other key is an error that names the field.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import time
import uuid
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import pandas as pd
from filelock import lock_descriptor

from redlib.errors import RedlibError
from redlib.scale import Workers

_PART = ".parquet"
_NOTHING = object()  # what stands for a field that a key does not have
_BUSY = 0.5  # seconds between two looks at what another run measures
_DELAY = 60.0  # seconds after which a network folder shows a file that another machine wrote
_NAME = 200  # letters of a part's name; 255 are allowed, of which a temporary file adds 46
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors that mean that nothing more fits."""


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write `path` completely or not at all.

    Yields a temporary path in the same folder (made if need be); when the block ends well it takes
    the final name, otherwise it is removed. Raises RedlibError, one line, for a folder that is
    read-only or full, and for a name that a folder, a device or a pipe has.
    """
    path = Path(path)
    # Not the process's number: processes of two machines, or two threads, may have the same.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with writing(path):
        if path.exists() and not path.is_file():
            raise RedlibError(f"{path}: there, and no file; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn a failure of the file system while writing `path` into one line of RedlibError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not from the file system, e.g. a picture that cannot be encoded
            raise
        advice = (
            "free some space; what was finished is kept, and the same command goes on from there"
            if error.errno in FULL
            else "choose a folder that can be written, or set REDLIB_RUNS to one"
        )
        raise RedlibError(
            f"{path}: cannot be written ({os.strerror(error.errno)}); {advice}"
        ) from None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8 with "\\n" line ends on every platform."""
    with atomic(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically, as JSON with the order of its keys kept."""
    write_text(path, _json(value))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n"


def _write_first(path: Path, value: Any) -> None:
    """Write the JSON file at `path` unless another process has been there a moment before."""
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            mine.write_bytes(_json(value).encode("utf-8"))
            try:
                os.link(mine, path)  # refuses to replace a file, in one step
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                os.replace(mine, path)
        finally:
            mine.unlink(missing_ok=True)


class Missing(RedlibError):
    """A file that is not there."""


def read_json(path: str | Path) -> Any:
    """Read the JSON file at `path`. Raises RedlibError if damaged or not to be read, Missing if not
    there."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Missing(f"{path}: no such file") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise damaged(path) from None


def read_mapping(path: str | Path, *fields: str) -> dict[str, Any]:
    """Read the JSON file at `path`, which holds a mapping with `fields` at least.

    Raises RedlibError as `read_json` does, and if it holds anything else.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not found.keys() >= set(fields):
        raise damaged(path)
    return found


def read_csv(source: str | Path | TextIO, **how: Any) -> pd.DataFrame:
    """Read the CSV file (or stream) `source` as `pandas.read_csv` does; an empty one has no column.

    Raises RedlibError if damaged or not to be read, Missing if not there.
    """
    try:
        return pd.read_csv(source, **how)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except FileNotFoundError:
        raise Missing(f"{source}: no such file; run its notebook again") from None
    except OSError as error:
        raise _unreadable(source, error) from None
    except ValueError:  # torn, or not UTF-8
        raise damaged(source) from None


def _unreadable(path: str | Path, error: OSError) -> RedlibError:
    """What lies there may be whole, so nobody is told to delete it."""
    reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
    return RedlibError(f"{path}: cannot be read ({reason}); see who may read it, and where it lies")


def damaged(path: str | Path) -> RedlibError:
    """What to say of a file that does not hold what was written there."""
    return RedlibError(f"{path}: damaged; delete it and run again")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise _unreadable(path, error) from None


class Store:
    """A folder of part files that were all made under one key.

    folder: where the part files lie; made when missing.
    key: field -> plain value (text, number, list, mapping, None) that the rows depend on.
    workers: the processes that `compute` measures in; by default this one.
    Raises RedlibError if the folder holds parts of another key (naming the field, its old and its
    new value), or cannot be written.
    """

    def __init__(
        self, folder: str | Path, key: Mapping[str, Any], *, workers: Workers | None = None
    ) -> None:
        self.folder = Path(folder)
        self.workers = workers
        self.key: dict[str, Any] = json.loads(json.dumps(dict(key), default=_plain))
        note = self.folder / "key.json"
        if not _is_there(note):
            _write_first(note, self.key)
        old = read_mapping(note)
        for field in [*self.key, *old]:
            before, now = old.get(field, _NOTHING), self.key.get(field, _NOTHING)
            if before != now and repr(before) != repr(now):  # NaN is unequal to itself
                raise RedlibError(
                    f"{self.folder}: made with {field} = {_short(before)}, now {_short(now)}; "
                    "run again with --force, delete the folder, or use another run_name"
                )

    def has(self, unit: Hashable) -> bool:
        """Whether the rows of `unit` are there."""
        return _is_there(self._path(unit))

    def missing(self, units: Iterable[Hashable]) -> list[Hashable]:
        """Those of `units` whose rows are not there yet, in order."""
        return [unit for unit in units if not self.has(unit)]

    def write(self, unit: Hashable, frame: pd.DataFrame) -> None:
        """Keep `frame` as the rows of `unit`, replacing earlier ones."""
        with atomic(self._path(unit)) as temporary:
            frame.to_parquet(temporary, index=False, write_page_checksum=True)

    def read(self, unit: Hashable) -> pd.DataFrame:
        """The rows of `unit`. Raises RedlibError if not there, damaged, or not to be read."""
        if not self.has(unit):
            raise RedlibError(f"{self.folder}: no rows of {unit!r} yet")
        return _read_part(self._path(unit))

    def table(self, units: Iterable[Hashable] | None = None) -> pd.DataFrame:
        """All rows as one tidy table: of `units` in their order, or of every part by file name."""
        if units is None:
            frames = [_read_part(path) for path in sorted(self.folder.glob(f"*{_PART}"))]
        else:
            frames = [self.read(unit) for unit in units]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def compute(
        self,
        units: Iterable[Hashable],
        fn: Callable[[Any], pd.DataFrame],
        *,
        describe: str = "units",
    ) -> pd.DataFrame:
        """Make the rows of every missing unit with `fn(unit)`, and return the table of `units`.

        describe: what the progress bar counts, in the plural. An interrupt loses the units in
        progress only. Units that another run is at are left to it, and waited for at the end.
        """
        units = list(units)
        missing = self.missing(units)
        with _bar(len(units), len(missing), describe) as bar:
            while missing:
                left = []
                for unit, done in self._each(missing, fn, bar):
                    if done:
                        bar.update()
                    else:
                        left.append(unit)
                if left:
                    bar.set_postfix_str("another run is at the rest")
                    time.sleep(_BUSY)
                missing = left
        return self.table(units)

    def make(self, unit: Hashable, fn: Callable[[Any], pd.DataFrame]) -> bool:
        """See to it that the rows of `unit` are there; False if another process is at them."""
        if self.has(unit):
            return True
        with self._claim(unit) as mine:
            if mine and not self.has(unit):  # it may have been finished a moment ago
                self.write(unit, fn(unit))
        return mine

    def _each(
        self, missing: list[Hashable], fn: Callable[[Any], pd.DataFrame], bar: Any
    ) -> Iterator[tuple[Hashable, bool]]:
        """`make` of each unit, here or by the workers: (unit, whether it is there)."""
        if self.workers is None or not self.workers.several:
            yield from ((unit, self.make(unit, fn)) for unit in missing)
            return
        bar.set_postfix_str(self.workers.note())
        task = functools.partial(_make_there, self.folder.absolute(), self.key, fn)
        for unit, done in self.workers.each(task, missing):
            if done:
                self._see(unit)
            yield unit, done
            bar.set_postfix_str(self.workers.note(), refresh=False)

    def _see(self, unit: Hashable) -> None:
        """Wait until a part that a worker wrote is seen here too."""
        until = time.monotonic() + _DELAY
        while not self.has(unit) and time.monotonic() < until:
            time.sleep(_BUSY)

    @contextlib.contextmanager
    def _claim(self, unit: Hashable) -> Iterator[bool]:
        """Hold the unit's lock while its rows are made: yields whether it was free.

        Where a file system knows no locks the answer is always yes: two runs may then measure the
        same unit, to the same bytes.
        """
        part = self._path(unit)
        lock = part.with_name(f".{part.stem}.lock")
        with writing(lock):
            used = lock.exists()  # by one that is at work, or that was killed
            file = lock.open("ab")
        mine = False
        try:
            with file:
                try:
                    mine = sure = lock_descriptor(file.fileno(), blocking=False)
                except OSError:
                    mine, sure = True, False
                if sure and used:
                    for half in self.folder.glob(f".{part.name}.*.tmp"):
                        half.unlink(missing_ok=True)
                yield mine
        finally:
            if mine:
                with contextlib.suppress(OSError):  # closed before, because Windows insists
                    lock.unlink()

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob(f"*{_PART}"))

    def _path(self, unit: Hashable) -> Path:
        name = quote(str(unit), safe=" ")
        if len(name) > _NAME:
            name = f"{name[: _NAME - 33]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        return self.folder / f"{name}{_PART}"


def _read_part(path: Path) -> pd.DataFrame:
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None
    with file:
        try:
            return pd.read_parquet(file, page_checksum_verification=True)
        except MemoryError:
            raise
        except Exception:  # a flipped bit may end in any error of the libraries that read it
            raise damaged(path) from None


def _make_there(
    folder: Path, key: Mapping[str, Any], fn: Callable[[Any], pd.DataFrame], unit: Hashable
) -> bool:
    """`Store.make` in a worker, which may be on another machine."""
    if not (folder / "key.json").exists():
        raise RedlibError(
            f"{folder}: not seen from the worker on {platform.node()}; all machines need to share "
            "this folder, so set REDLIB_RUNS to one that they do"
        )
    return Store(folder, key).make(unit, fn)


def _bar(total: int, missing: int, describe: str) -> Any:
    """A progress bar: units done of all, the rate at which they come, the time left."""
    with warnings.catch_warnings():
        # Without ipywidgets tqdm.auto draws a text bar, and warns about it at its first import.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm(
        total=total,
        initial=total - missing,
        desc=describe,
        unit=describe.removesuffix("s"),
        disable=not missing,
        leave=False,
    )


def _plain(value: Any) -> Any:
    """A plain value for JSON: numpy scalars and arrays, paths, sets, model dumps."""
    for name in ("tolist", "model_dump"):
        if hasattr(value, name):
            return getattr(value, name)()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def _short(value: Any) -> str:
    text = "nothing" if value is _NOTHING else repr(value)
    if len(text) <= 40:
        return text
    return f"{text[:30]}... (hash {hashlib.sha256(text.encode()).hexdigest()[:6]})"
