"""Kill a run at random moments, run it again, and see whether its table comes out the same.

    python tests/torture.py                      20 kills of a run that probes 8 scenes
    python tests/torture.py run FOLDER probe     the run that is killed

A moment is drawn as a place in the run, some way into the k-th image, and not as a second of the
clock: so kills fall into every part of the run, however busy the machine is.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from redlib.store import Store

UNITS = [f"image-{number}" for number in range(8)]
LIGHT_SECONDS = 0.05
PATIENCE = 1800  # seconds, for a machine that is busy with something else


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it.

    Attributes:
        begun: images that had been begun.
        kept: images whose rows were there after the kill.
        repeated: images measured more than once, by the killed run and the next one together.
        same: every file of the store holds the bytes of an undisturbed run, and no other is there.
    """

    begun: int
    kept: int
    repeated: int
    same: bool


def run(folder: Path, kind: str) -> pd.DataFrame:
    """Measure all images into folder/store, noting each one that is begun in folder/begun."""
    folder.mkdir(parents=True, exist_ok=True)
    measure = {"light": light, "probe": _probe}[kind]()

    def noted(unit: str) -> pd.DataFrame:
        note(folder, unit)
        return measure(unit)

    return Store(folder / "store", {"kind": kind}).compute(UNITS, noted, describe="images")


def note(folder: Path, unit: str) -> None:
    """Add a line to folder/begun, whole whoever else writes there."""
    with (folder / "begun").open("ab") as file:
        file.write(f"{unit} {os.getpid()}\n".encode())


def begun(folder: Path) -> list[str]:
    """The images that were begun, in order."""
    path = folder / "begun"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def files(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all that lies in folder/store."""
    return {path.name: path.read_bytes() for path in sorted((folder / "store").iterdir())}


def light() -> Callable[[str], pd.DataFrame]:
    """A measurement without a model: some waiting, then rows that take a while to write."""

    def measure(unit: str) -> pd.DataFrame:
        time.sleep(LIGHT_SECONDS)
        numbers = np.random.default_rng(UNITS.index(unit)).random(50_000)
        return pd.DataFrame({"image": unit, "patch": np.arange(len(numbers)), "score": numbers})

    return measure


def _probe() -> Callable[[str], pd.DataFrame]:
    from redlib import load, probe
    from redlib.params import ONE_WORD_PROMPT
    from redlib.tabletop import scenes

    vlm = load("tiny-llava-1.5", device="cpu")
    drawn = dict(zip(UNITS, scenes("test", len(UNITS)), strict=True))

    def measure(unit: str) -> pd.DataFrame:
        tokens = vlm.encode([drawn[unit].image]).tokens[0]
        return probe.single(vlm, tokens, range(0, len(tokens), 96), prompt=ONE_WORD_PROMPT)

    return measure


def torture(folder: Path, kills: int, kind: str, *, seed: int = 0) -> Iterator[Kill]:
    """Kill `kills` runs, each in a folder of its own, and finish each with a second run."""
    rng = np.random.default_rng(seed)
    intact = folder / "intact"
    run(intact, kind)
    ends = sorted(path.stat().st_mtime for path in (intact / "store").glob("*.parquet"))
    shortest = float(np.diff(ends).min())  # so that few kills come after the last image
    for number in range(kills):
        place = folder / f"kill-{number}"
        images, share = int(rng.integers(1, len(UNITS) + 1)), rng.random()
        kill(place, kind, images, share * shortest)
        before, kept = len(begun(place)), len(Store(place / "store", {"kind": kind}))
        run(place, kind)
        again = len(begun(place)) - len(set(begun(place)))
        yield Kill(before, kept, again, files(place) == files(intact))


def kill(folder: Path, kind: str, images: int, seconds: float) -> None:
    """Start a run in a process of its own and kill it `seconds` into its `images`-th image."""
    process = start(folder, kind)
    until = time.monotonic() + PATIENCE
    while len(begun(folder)) < images and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.wait()


def start(folder: Path, kind: str) -> subprocess.Popen:
    """A run in a process of its own."""
    command = [sys.executable, __file__, "run", str(folder), kind]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a run at random moments.")
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("run")
    one.add_argument("folder", type=Path)
    one.add_argument("kind")
    chosen = parser.parse_args()
    if chosen.command == "run":
        run(chosen.folder, chosen.kind)
        return 0
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for number, found in enumerate(torture(Path(folder), 20, "probe"), 1):
            good &= found.same and found.repeated <= 1
            print(
                f"kill {number:2}: in image {found.begun} of {len(UNITS)}, {found.kept} kept, "
                f"{found.repeated} measured again, {'same' if found.same else 'OTHER'} bytes",
                flush=True,
            )
    print("every table as undisturbed" if good else "the store does not survive a kill")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
