"""The store: whole parts or none, nothing computed twice, nothing mixed."""

import errno
import os

import pandas as pd
import pytest

from redlib import store as store_module
from redlib.errors import RedlibError
from redlib.store import Store, atomic, code_version, read_json, write_json

KEY = {"model": "m", "dtype": "float32", "patches": [1, 4, 7]}


def rows(unit):
    return pd.DataFrame({"image": [unit] * 2, "patch": [0, 1], "score": [0.5, 1 / 3]})


def test_computes_what_is_missing_and_nothing_else(tmp_path):
    asked = []

    def measure(unit):
        asked.append(unit)
        return rows(unit)

    store = Store(tmp_path / "t", KEY)
    first = store.compute(["a", "b"], measure)
    again = Store(tmp_path / "t", KEY)
    table = again.compute(["b", "c", "a"], measure)
    assert asked == ["a", "b", "c"]
    assert list(table["image"]) == ["b", "b", "c", "c", "a", "a"]
    pd.testing.assert_frame_equal(first, again.table(["a", "b"]))
    assert len(again) == 3
    assert list(again.table()["image"].unique()) == ["a", "b", "c"]


def test_an_interrupt_keeps_finished_parts(tmp_path):
    def measure(unit):
        if unit == "c":
            raise KeyboardInterrupt
        return rows(unit)

    store = Store(tmp_path, KEY)
    with pytest.raises(KeyboardInterrupt):
        store.compute(["a", "b", "c", "d"], measure)
    assert store.missing(["a", "b", "c", "d"]) == ["c", "d"]
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_kill_in_the_middle_of_a_part_leaves_no_part(tmp_path, monkeypatch):
    store = Store(tmp_path, KEY)

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        store.write("a", rows("a"))
    assert not store.has("a")
    assert list(tmp_path.iterdir()) == [tmp_path / "key.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "float64"}, "made with dtype = 'float32', now 'float64'"),
        ({"patches": [1]}, "made with patches = [1, 4, 7], now [1]"),
        ({"prompt": "x"}, "made with prompt = 'nothing', now 'x'"),
    ],
)
def test_another_key_is_refused_by_field(tmp_path, change, words):
    Store(tmp_path, KEY).write("a", rows("a"))
    with pytest.raises(RedlibError, match="--force") as caught:
        Store(tmp_path, KEY | change)
    assert words in str(caught.value)
    assert Store(tmp_path, KEY).has("a")


def test_a_dropped_field_is_refused_too(tmp_path):
    Store(tmp_path, KEY)
    with pytest.raises(RedlibError, match="made with patches"):
        Store(tmp_path, {"model": "m", "dtype": "float32"})


def test_numpy_values_make_the_same_key(tmp_path):
    import numpy as np

    Store(tmp_path, {"patches": np.array([1, 4]), "scale": np.float64(0.5)})
    assert Store(tmp_path, {"patches": [1, 4], "scale": 0.5}).key["patches"] == [1, 4]


def test_units_of_any_name(tmp_path):
    store = Store(tmp_path, KEY)
    for unit in (3, "a/b", "../up", "ü", "a:b"):
        store.write(unit, rows(str(unit)))
        assert store.read(unit)["image"][0] == str(unit)
    assert len(store) == 5
    assert not (tmp_path.parent / "up.parquet").exists()


def test_missing_and_damaged_parts(tmp_path):
    store = Store(tmp_path, KEY)
    with pytest.raises(RedlibError, match="no rows of 'a' yet"):
        store.read("a")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for call in (lambda: store.read("a"), store.table):
        with pytest.raises(RedlibError, match="damaged; delete it"):
            call()
    (tmp_path / "key.json").write_text("{")
    with pytest.raises(RedlibError, match=r"key\.json: damaged"):
        Store(tmp_path, KEY)


def test_an_empty_table(tmp_path):
    assert Store(tmp_path, KEY).compute([], rows).empty


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "choose a folder"),
        (errno.EROFS, "choose a folder"),
    ],
)
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, number, words):
    store = Store(tmp_path / "t", KEY)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store_module.os, "replace", refuse)
    with pytest.raises(RedlibError, match="cannot be written") as caught:
        store.write("a", rows("a"))
    assert words in str(caught.value)
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["key.json"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "t").write_text("")
    with pytest.raises(RedlibError, match="cannot be written"):
        Store(tmp_path / "t", KEY)


def test_atomic_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def half():
        with atomic(path) as temporary:
            temporary.write_text("{")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        half()
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_code_version_sees_code_and_not_prose(tmp_path):
    module = tmp_path / "m.py"
    module.write_text('"""One."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    before = code_version(["m"], package=tmp_path)
    module.write_text('"""Two."""\n\n\ndef f(x):  # why\n    return x + 1\n')
    assert code_version(["m"], package=tmp_path) == before
    module.write_text("def f(x):\n    return x + 2\n")
    assert code_version(["m"], package=tmp_path) != before
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text("x = 1\n")
    assert code_version(["p"], package=tmp_path) != code_version(package=tmp_path)
    with pytest.raises(RedlibError, match="no module 'q'"):
        code_version(["q"], package=tmp_path)
