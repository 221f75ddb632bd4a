"""The copies of data sets in `data_dir`: are all there that a run reads, and are they as they were?

    check(params, ["04", "06"])      # raises RedlibError, naming the first folder that is missing
    state(params, ["04", "06"])      # names, sizes and times of change: what a result depends on

Both look at names alone, and read no file.
"""

from collections.abc import Sequence
from pathlib import Path

from redlib.data import benchmarks, sources
from redlib.data.reading import copied
from redlib.data.several import FOLDERS
from redlib.params import Params, local

_FILM = benchmarks.BENCHMARKS["film"]


def check(params: Params, notebooks: Sequence[str]) -> None:
    """Raises RedlibError, one line, where the folder of a data set that these notebooks read is
    missing or may not be read; see `needed`."""
    for source in needed(params, notebooks):
        copied(source, params.data_dir)


def needed(params: Params, notebooks: Sequence[str]) -> list[sources.Source]:
    """The data sets that these notebooks read from `data_dir` in any case; none without it.

    07 reads COCO only where there is no codebook yet, so it does not count here.
    """
    if params.data != "real" or params.data_dir is None:
        return []
    photographs = sources.needed(params, [number for number in notebooks if number != "07"])
    asked = benchmarks.needed(params, notebooks)
    return [*photographs, *(benchmarks.BENCHMARKS[name] for name in asked)]


def state(params: Params, notebooks: Sequence[str]) -> list[tuple[str, int, int]]:
    """What tells the copies that these notebooks read from others of the same name.

    Returns name, size in bytes and time of change in nanoseconds of every file of questions or of
    rows; of folders of single pictures or films, which may be 80,000, the folder's with size 0.
    Raises RedlibError for a folder that may not be read.
    """
    found = []
    for source in needed(params, notebooks):
        folder = local(Path(params.data_dir, source.folder))
        files = [*folder.glob(source.files.replace("{}", "*")), *folder.glob("*.json")]
        below = [name for name in source.published if name.endswith("/")]
        places = [place / name for name in below for place in source.beside(folder)]
        if source is _FILM:
            places += [folder / name for name in dict.fromkeys(FOLDERS.values())]
        for path in [*sorted(files), *places]:
            if path.exists():
                seen = path.stat()
                size = 0 if path.is_dir() else seen.st_size
                found.append((f"{source.name}/{path.name}", size, seen.st_mtime_ns))
    return found
