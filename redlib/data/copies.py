"""The copies of data sets in `data_dir`: are all there that a run reads, and are they as they were?

    check(params, ["04", "06"])      # raises RedlibError, naming the first that is missing
    state(params, ["04", "06"])      # names, sizes and times of change: what a result depends on

Both look at names and sizes alone, and read no file.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from redlib.data import benchmarks, sources
from redlib.data.photographs import image_folder
from redlib.data.reading import check_complete, copied
from redlib.data.several import FOLDERS
from redlib.errors import RedlibError
from redlib.params import Params, local

_FILM = benchmarks.BENCHMARKS["film"]


def check(params: Params, notebooks: Sequence[str]) -> None:
    """Raises RedlibError, one line, where what these notebooks read of a data set is missing or may
    not be read: its folder, a file of its split, or the folder of its images; see `needed`."""
    for source in needed(params, notebooks):
        _check_held(source, copied(source, params.data_dir))


def _check_held(source: sources.Source, folder: Path) -> None:
    """Whether a folder holds one of the forms of a data set. Which films there are is found out
    when they are drawn: MVBench lacks some even where it is published."""
    files = [name for name in source.published if not name.endswith("/")]
    makers = bool(files) and (folder / files[0]).is_file()  # as `photographs` tells the forms apart
    if makers:
        for name in files:
            if not (folder / name).is_file():
                raise RedlibError(
                    f"data_dir: no file {name!r} in {str(folder)!r}; it belongs beside {files[0]}"
                )
    elif source is _FILM:
        for task in FOLDERS:
            check_complete(folder, replace(source, files=source.files.format(task)))
    else:
        check_complete(folder, source)
    if makers or source.per_image:  # the repository of VQAv2 holds its images, that of COCO none
        image_folder(folder, source.published[-1].rstrip("/"), source)


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
    rows, and of every picture or film, since a folder keeps its time when a file in it is written
    over; of the folders themselves with size 0. Which pictures a run draws is known only once the
    set's list is read, so all count. Raises RedlibError for a folder that may not be read.
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
        for place in filter(Path.is_dir, places):
            found += [(f"{source.name}/{place.name}/{name}", *of) for name, *of in _below(place)]
    return found


def _below(place: Path, above: str = "") -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of each file below a folder, 80,000 of them in a second or
    two."""
    with os.scandir(local(place)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry), f"{above}{entry.name}/")
                continue
            with suppress(OSError):  # a link to nowhere is no picture, and told when it is drawn
                seen = entry.stat()
                yield f"{above}{entry.name}", seen.st_size, seen.st_mtime_ns
