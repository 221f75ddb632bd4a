"""What a run says beforehand: what is fetched, what of it is cached, what is computed."""

import re

import pandas as pd
import pytest
import yaml
from throwaway import project

from redlib import costs, forecast
from redlib.__main__ import main
from redlib.data.benchmarks import BENCHMARKS
from redlib.params import check, load_set

SEVEN = "llava-hf/llava-1.5-7b-hf"


def cached(cache, kind, name, files):
    """Write a repository into a hub cache as the hub's client does where links are not allowed."""
    for path, size in files.items():
        place = cache / f"{kind}s--{name.replace('/', '--')}" / "snapshots" / ("0" * 40) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            file.truncate(size)  # takes no room on the disk


def test_what_is_cached_is_not_fetched_again(tmp_path):
    one = check({"model": SEVEN, "data": "real", "preset": "paper"})
    empty = forecast.fetches([one], ["01", "02"], cache=tmp_path / "none").set_index("name")
    assert (empty["cached"] == 0).all()
    assert empty.loc["model weights", "gigabytes"] == costs.memory(one) > 14
    cached(tmp_path, "model", SEVEN, {"model-1.safetensors": 5 * 10**9, "README.md": 10**9})
    # under the organisation's former name, with files of another split
    files = {"data/validation-00000-of-00068.parquet": 2 * 10**9, "data/test-0.parquet": 10**9}
    cached(tmp_path, "dataset", "lmms-lab/VQAv2", files)
    found = forecast.fetches([one], ["01", "02"], cache=tmp_path).set_index("name")
    assert found.loc["model weights", "cached"] == pytest.approx(5.0)
    assert found.loc["VQAv2 validation", "cached"] == pytest.approx(2.0)
    assert found["gigabytes"].equals(empty["gigabytes"])
    for revision, there in (("0" * 40, 5.0), ("f" * 40, 0.0)):
        pinned = check({"model": SEVEN, "revision": revision})
        (held,) = forecast.fetches([pinned], cache=tmp_path)["cached"]
        assert held == pytest.approx(there), "weights of another commit are others"
    told = forecast.lines([one], ["01", "02"], cache=tmp_path)
    total = found["gigabytes"].sum()
    said = f"in all {total:.1f} GB, 7.0 of them cached already: {total - 7:.1f} to fetch"
    assert any(line.startswith(said) for line in told)


def test_a_file_that_runs_some_notebooks_is_forecast_for_these(tmp_path):
    part = check({"notebooks": ["05", "06"], "run_name": "part"})
    told = forecast.lines([part], cache=tmp_path)
    assert {line[:3] for line in told if re.match(r"0\d ", line)} == {"05 ", "06 "}
    told = forecast.lines([part], ["04", "06"], cache=tmp_path)
    assert {line[:3] for line in told if re.match(r"0\d ", line)} == {"06 "}


def test_the_members_of_a_set_share_their_data_sets(tmp_path):
    common = {"data": "real", "preset": "paper"}
    models = [SEVEN, "llava-hf/llama3-llava-next-8b-hf"]
    runs = [check({"model": name, "run_name": f"r{n}"} | common) for n, name in enumerate(models)]
    table = forecast.fetches(runs, ["05", "06"], cache=tmp_path)
    assert table["id"].is_unique and set(models) < set(table["id"])
    more = [check({"model": SEVEN, "codebook_images": n} | common) for n in (10, 500)]
    (row,) = forecast.fetches(more, ["05"], cache=tmp_path).query("id.str.contains('coco')").index
    both = forecast.fetches(more, ["05"], cache=tmp_path)
    assert (
        both.loc[row, "gigabytes"]
        == forecast.fetches(more[1:], ["05"], cache=tmp_path).loc[row, "gigabytes"]
    )


def test_a_copy_in_a_folder_is_not_fetched(tmp_path):
    values = {"model": SEVEN, "data": "real", "data_dir": str(tmp_path), "preset": "paper"}
    table = forecast.fetches([check(values)], cache=tmp_path)
    assert table.loc[table["source"] == forecast.HUB, "id"].tolist() == [SEVEN]
    assert table["gigabytes"].sum() == pytest.approx(costs.memory(check(values)))


def test_what_is_copied_is_unpacked_as_what_is_fetched(tmp_path):
    """A benchmark in a folder is a copy of the hub's files, which `datasets` reads as it reads its
    own."""
    values = {"model": SEVEN, "data": "real", "preset": "paper"}
    fetched, copied = (
        forecast.fetches([check(values | more)], ["06", "07"], cache=tmp_path).set_index("name")
        for more in ({}, {"data_dir": str(tmp_path)})
    )
    held = [of.name for of in BENCHMARKS.values() if of.name in fetched.index]
    assert fetched.loc[held, "disk"].sum() > 30
    assert copied.loc[held, "disk"].equals(fetched.loc[held, "disk"])
    assert copied.loc["COCO Karpathy train", "disk"] == 0, "which has another form"


def test_the_set_of_real_models_states_the_full_plan(capsys):
    assert main(["run", "params/7b.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    hours = 0.0
    for one in load_set("params/7b.yaml"):
        table = costs.plan(one)
        assert re.search(rf"^model weights +{one.model} ", out, re.MULTILINE)
        part = out.partition(f"\n{one.run_name} ")[2].partition("\n\n")[0].splitlines()
        assert [line.split()[0] for line in part[1:-1]] == table["notebook"].tolist()
        assert all(row.stage in line for row, line in zip(table.itertuples(), part[1:-1],
                                                          strict=True))  # fmt: skip
        assert part[-1].startswith(
            f"in all {table['forwards'].sum():,} inputs, {table['tokens'].sum():,} tokens, "
            f"{table['hours'].sum():.1f} GPU-hours on RTX 3090"
        )
        hours += table["hours"].sum()
    assert out.endswith(f"all 3 runs: {hours:.1f} GPU-hours on RTX 3090\n")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    project(tmp_path, {"02": ["seed: int = 0"], "07": ["seed: int = 0"]})
    return tmp_path


def test_a_dry_run_runs_nothing(home, capsys):
    file = home / "params" / "one.yaml"
    file.write_text("model: tiny-llava-1.5\nn_described: 7\n")
    assert main(["run", str(file), "--dry-run", "--only", "07"]) == 0
    out = capsys.readouterr().out
    assert "here already" in out and "in all 0.0 GB" in out
    assert re.search(r"^07 plain scenes described +7 ", out, re.MULTILINE)
    assert "\n02 " not in out
    assert not (home / "runs").exists() and not (home / "figures").exists()
    assert main(["run", str(file), "--dry-run", "--only", "2"]) == 2
    assert "--only: no notebook '2'" in capsys.readouterr().err


def test_a_run_on_real_data_says_first_what_it_will_cost(home, capsys):
    values = {"model": "tiny-llava-1.5", "data": "real", "data_dir": str(home), "preset": "paper"}
    file = home / "params" / "one.yaml"
    file.write_text(yaml.safe_dump(values))
    (home / "VQAv2" / "data").mkdir(parents=True)
    (home / "VQAv2" / "data" / "validation-00000-of-00001.parquet").write_bytes(b"looked at later")
    assert main(["run", str(file), "--only", "02"]) == 0
    out = capsys.readouterr().out
    assert out.index("VQAv2 validation") < out.index("GPU-hours")
    assert out.index("GPU-hours") < out.index("02_single_token_probe: ")


def test_columns_are_aligned():
    rows = [("a", "1"), ("long", "1,000")]
    assert forecast._columns(rows, "lr") == ["a         1", "long  1,000"]
    assert pd.Series(forecast._columns(rows, "lr")).str.len().nunique() == 1
