"""The store: whole parts or none, nothing computed twice, nothing mixed."""

import errno
import os
import re
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from redlib import store as store_module
from redlib.errors import RedlibError
from redlib.store import (
    Missing,
    Store,
    atomic,
    read_csv,
    read_json,
    write_json,
)

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
        ({"prompt": "x"}, "made with prompt = nothing, now 'x'"),
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


def test_of_two_runs_that_both_saw_an_empty_folder_one_is_refused(tmp_path, monkeypatch):
    Store(tmp_path, KEY)
    monkeypatch.setattr(store_module, "_is_there", lambda path: False)
    Store(tmp_path, KEY)
    with pytest.raises(RedlibError, match="made with dtype = 'float32', now 'float64'"):
        Store(tmp_path, {**KEY, "dtype": "float64"})
    assert [path.name for path in tmp_path.iterdir()] == ["key.json"]


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fill_up(path, data):
        path.open("wb").close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module.Path, "write_bytes", fill_up)
    with pytest.raises(RedlibError, match="cannot be written .*free some space") as caught:
        Store(tmp_path / "t", KEY)
    assert str(caught.value).startswith(f"{tmp_path / 't'}: ")
    assert list((tmp_path / "t").iterdir()) == []


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    Store(tmp_path, KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["key.json"]
    with pytest.raises(RedlibError, match="made with dtype"):
        Store(tmp_path, {**KEY, "dtype": "float64"})


def test_numpy_values_make_the_same_key(tmp_path):
    import numpy as np

    Store(tmp_path, {"patches": np.array([1, 4]), "scale": np.float64(0.5)})
    assert Store(tmp_path, {"patches": [1, 4], "scale": 0.5}).key["patches"] == [1, 4]


def test_a_value_that_is_no_number_makes_the_same_key(tmp_path):
    Store(tmp_path, {"scale": float("nan")})
    Store(tmp_path, {"scale": float("nan")})
    with pytest.raises(RedlibError, match=r"made with scale = nan, now 0\.5"):
        Store(tmp_path, {"scale": 0.5})


def test_units_of_any_name(tmp_path):
    store = Store(tmp_path, KEY)
    for unit in (3, "a/b", "../up", "ü", "a:b"):
        store.write(unit, rows(str(unit)))
        assert store.read(unit)["image"][0] == str(unit)
    assert len(store) == 5
    assert not (tmp_path.parent / "up.parquet").exists()


def test_a_name_longer_than_a_file_may_have_is_cut_and_stays_one_of_its_own(tmp_path):
    """Each letter of another script takes nine in the name of a part."""
    store, names = Store(tmp_path, KEY), ["图" * 40 + ".png", "图" * 40 + ".jpg", "a" * 201]
    table = store.compute([*names, "a" * 200], rows)
    assert table["image"].unique().tolist() == [*names, "a" * 200]
    assert len(store) == 4 and not store.missing(names)
    parts = sorted(path.name for path in tmp_path.glob("*.parquet"))
    assert [len(name) for name in parts] == [208] * 4
    # the first 32 digits of sha256sum of what urllib.parse.quote makes of the name
    assert parts == [
        "%E5%9B%BE" * 18 + "%E5%9-638f30b3b701b8abf351057d3fea50b9.parquet",
        "%E5%9B%BE" * 18 + "%E5%9-dc1cf383bf966097084a5ce77215d1f4.parquet",
        "a" * 167 + "-a92efd82109373e58f9a2056dee01e80.parquet",
        "a" * 200 + ".parquet",
    ]


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


@pytest.mark.parametrize("content", [b'a,b\n1,"2', b"a\n\xff\n", b"a\n1,2\n3,4,5\n"])
def test_damaged_tables(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(RedlibError, match=r"table\.csv: damaged; delete it and run again"):
        read_csv(path)


def test_tables_that_are_missing_or_empty(tmp_path):
    with pytest.raises(Missing, match=r"table\.csv: no such file"):
        read_csv(tmp_path / "table.csv")
    (tmp_path / "table.csv").touch()
    assert read_csv(tmp_path / "table.csv").empty


def test_what_lies_there_but_cannot_be_read_is_not_called_damaged(tmp_path):
    store = Store(tmp_path, KEY)
    (tmp_path / "a.parquet").mkdir()
    with pytest.raises(RedlibError, match=r"a\.parquet: cannot be read \(Is a directory\)"):
        store.read("a")
    with pytest.raises(RedlibError, match=r"cannot be read \(File name too long\)"):
        Store(tmp_path / ("a" * 300), KEY)
    (tmp_path / "key.json").unlink()
    (tmp_path / "key.json").mkdir()
    with pytest.raises(RedlibError, match=r"key\.json: cannot be read"):
        Store(tmp_path, KEY)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"a"', "[" * 100_000])
def test_a_key_that_is_no_mapping_is_damaged(tmp_path, text: str):
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(RedlibError, match=r"key\.json: damaged; delete it"):
        Store(tmp_path, KEY)


def test_a_damaged_block_is_seen(tmp_path):
    store = Store(tmp_path, KEY)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"patch": range(576), "top1": rng.random(576)})
    store.write("a", frame)
    pd.testing.assert_frame_equal(store.read("a"), frame)
    path = tmp_path / "a.parquet"
    whole = path.read_bytes()
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # behind them no checksum is
    assert pages > 4_000
    for start in range(0, pages - 256, 256):
        blank = whole[:start] + bytes(256) + whole[start + 256 :]
        path.write_bytes(blank)
        with pytest.raises(RedlibError, match="damaged; delete it"):
            store.read("a")


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


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes to set")
def test_a_disk_that_fills_up_in_the_middle_of_a_part(tmp_path):
    """The operating system refuses to write on, as it does when no space is left."""
    import resource

    def measure(unit):
        return pd.DataFrame({"image": unit, "score": np.random.default_rng(unit).random(10**unit)})

    store = Store(tmp_path, KEY)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(RedlibError, match=r"4\.parquet: cannot be written .*free some space"):
            store.compute([1, 2, 3, 4, 5], measure)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1.parquet", "2.parquet", "3.parquet", "key.json"
    ]  # fmt: skip
    assert len(Store(tmp_path, KEY).table()) == 1110
    assert len(store.compute([1, 2, 3, 4, 5], measure)) == 111_110


def test_a_full_disk_has_no_room_for_a_lock_either(tmp_path, monkeypatch):
    store = Store(tmp_path, KEY)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module.Path, "open", full)
    with pytest.raises(RedlibError, match="No space left on device.; free some space"):
        store.compute(["a"], rows)


def test_a_unit_in_other_hands_is_left_to_them(tmp_path):
    mine, other = Store(tmp_path, KEY), Store(tmp_path, KEY)

    def measure(unit):
        assert not other.make(unit, pytest.fail)
        return rows(unit)

    assert mine.make("a", measure)
    assert other.make("a", pytest.fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "key.json"]


def test_runs_at_once_share_the_units(tmp_path):
    asked = []

    def measure(unit):
        asked.append(unit)
        time.sleep(0.01)
        return rows(unit)

    def work():
        tables.append(Store(tmp_path, KEY).compute("abcdefgh", measure))

    tables = []
    runs = [threading.Thread(target=work) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert sorted(asked) == list("abcdefgh")
    assert len(tables) == 3
    assert all(table.equals(tables[0]) for table in tables)


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(store_module, "lock_descriptor", refuse)
    assert len(Store(tmp_path, KEY).compute("ab", rows)) == 4


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    store = Store(tmp_path, KEY)
    (tmp_path / ".a.lock").touch()
    (tmp_path / ".a.parquet.0123.tmp").write_bytes(b"PAR1")
    (tmp_path / ".b.parquet.0123.tmp").write_bytes(b"PAR1")
    store.compute(["a"], rows)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [".b.parquet.0123.tmp", "a.parquet", "key.json"], "b may be at work"


def test_progress_says_how_many_how_fast_and_how_long(tmp_path, capsys):
    def measure(unit):
        time.sleep(0.15)
        return rows(unit)

    store = Store(tmp_path, KEY)
    store.write("a", rows("a"))
    store.compute("abcd", measure, describe="images")
    bars = capsys.readouterr().err
    assert re.search(r"images: +25%\|[^|]*\| 1/4 \[00:00<\?, \?image/s\]", bars)
    assert re.search(
        r"images: +75%\|[^|]*\| 3/4 \[00:\d\d<00:\d\d, +[\d.]+(image/s|s/image)\]", bars
    )
    store.compute("abcd", measure, describe="images")
    assert capsys.readouterr().err == ""


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "t").write_text("")
    for folder in (tmp_path / "t", tmp_path / "t" / "below"):
        with pytest.raises(RedlibError, match="cannot be written") as caught:
            Store(folder, KEY)
        assert str(caught.value).startswith(f"{folder}: ")


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


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes among its files")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_atomic_replaces_nothing_but_files(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(RedlibError, match="x: there, and no file; choose another name"):
        with atomic(tmp_path / "x"):
            pytest.fail("the work would be for nothing")
    assert list(tmp_path.iterdir()) == [tmp_path / "x"] and not (tmp_path / "x").is_file()
