"""pyproject.toml, requirements.lock, environment.yml and what is installed say the same."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import redlib

ROOT = Path(__file__).parents[1]


def pins(lines):
    """name -> (version, marker) of exactly pinned requirements."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        match = re.fullmatch(r"==([\w.]+)", str(requirement.specifier))
        assert match, f"{line!r} is no exact pin"
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} twice"
        found[name] = (match[1], requirement.marker)
    return found


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def lock():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return pins(line for line in lines if line and not line.startswith("#"))


def test_direct_pins_stand_in_the_lock(project, lock):
    direct = pins(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert {name: lock.get(name) for name in direct} == direct


def test_the_lock_is_closed(lock):
    """Whatever a locked package needs here is locked too, in a version that it accepts."""
    for name, (_, marker) in lock.items():
        if marker is not None and not marker.evaluate():
            continue
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            key = canonicalize_name(needed.name)
            if re.match(r"nvidia|cuda|triton", key):
                continue  # what a GPU build of torch brings along is pinned by torch itself
            assert key in lock, f"{name} needs {line}, which is not locked"
            assert needed.specifier.contains(lock[key][0], prereleases=True), f"{name}: {line}"


def test_the_lock_is_plain_and_for_every_machine(lock):
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|--|\+cpu|@ |nvidia|cuda|triton", text)
    assert lock["torch"] == ("2.13.0", None)
    assert lock["transformers"] == ("5.23.0", None)


def test_what_is_installed_is_what_is_locked(lock):
    for name, (version, marker) in lock.items():
        if marker is None or marker.evaluate():
            assert metadata.version(name).split("+")[0] == version, name


def test_conda_installs_the_same_lock(project):
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *plain, pip = conda["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    python = next(entry for entry in plain if entry.startswith("python="))
    assert project["requires-python"] == ">=" + python.removeprefix("python=")


def test_versions_agree(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == redlib.__version__ == citation["version"]
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["title"].startswith("Beyond Intermediate States")


def test_the_build_tool_is_locked(lock):
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    for line in build["requires"]:
        needed = Requirement(line)
        assert needed.specifier.contains(lock[needed.name][0])


def test_make_help_names_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    for target in set(targets) - {"help"}:
        assert re.search(rf'@echo "make {target} ', text), target
