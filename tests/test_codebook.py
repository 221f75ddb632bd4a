"""Algorithm 1, its presets and the codebook file."""

import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from redlib.codebook import Codebook, Criteria, candidates, prototypes
from redlib.errors import RedlibError

LOOSE = Criteria(tau_prob=0.5, tau_out=4, tau_in=2, tau_jsd=0.1)


def probed(n=200, seed=0):
    """A table of probed tokens in which every criterion passes some and fails some."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "image": rng.integers(0, 10, n).astype(str),
            "patch": np.arange(n),
            "top1": rng.random(n) * 0.9,
            "top1_head": rng.random(n),
            "cluster_size": rng.integers(1, 8, n),
            "jsd_final": rng.random(n) * 0.2,
        }
    )


def groups(sizes, seed=0, width=6):
    """Tight groups of candidates far apart: (vectors (n, D), group (n,))."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    centre = 10 * np.eye(max(len(sizes), width))[group][:, :width]
    return torch.from_numpy(centre + 0.1 * rng.normal(size=(len(group), width))), group


def codebook(n=5, width=4):
    vectors = torch.arange(n * width, dtype=torch.float32).reshape(n, width) + 1
    return Codebook(vectors, [f"scene-{i}" for i in range(n)], range(n), "tiny", "abc", LOOSE)


def test_presets_pin_the_paper_and_the_release():
    thresholds = ("tau_prob", "tau_out", "tau_in", "tau_jsd")

    def values(criteria):
        return tuple(asdict(criteria)[name] for name in thresholds)

    assert values(Criteria.paper()) == (0.1, 8, 64, 2e-3)
    assert values(Criteria.paper("llava-next")) == (0.1, 8, 64, 2e-3)
    assert values(Criteria.paper("llava-onevision")) == (0.08, 3, 16, 1.5e-3)
    assert values(Criteria.released()) == (0.15, 8, 64, 2e-3)
    assert values(Criteria.released("llava-next")) == (0.1, 8, 64, 2e-3)
    assert values(Criteria.released("llava-onevision")) == (0.08, 3, 16, 1.8e-3)
    assert (Criteria.paper().rule_in, Criteria.paper().rule_out) == ("size", "below")
    assert (Criteria.released().rule_in, Criteria.released().rule_out) == ("images", "at-most")
    with pytest.raises(RedlibError, match=r"family must be one of llava-1.5.*got 'blip'"):
        Criteria.paper("blip")


def test_tau_in_is_proportional_to_the_images():
    assert Criteria.paper().for_images(100).tau_in == 13
    assert Criteria.paper().for_images(500) == Criteria.paper()
    few = Criteria.paper("llava-onevision").for_images(3)
    assert few.tau_in == 1, "0 would switch it off"
    for off in (0, float("inf")):
        assert Criteria(0.1, 8, off, 2e-3).for_images(3).tau_in == off


def test_candidates_pass_all_three_criteria():
    table = probed()
    mask, survivors = candidates(table, LOOSE)
    expected, each = [], {"tau_prob": 0, "tau_out": 0, "tau_jsd": 0}
    for row in table.itertuples():
        flags = {
            "tau_prob": row.top1_head < 0.5,
            "tau_out": row.cluster_size < 4,
            "tau_jsd": row.jsd_final < 0.1,
        }
        for name, flag in flags.items():
            each[name] += flag
        expected.append(all(flags.values()))
    assert 0 < sum(expected) < min(each.values()) < len(table)
    assert mask.tolist() == expected
    assert survivors.to_dict() == {"probed": 200, **each, "candidates": sum(expected)}


def test_bounds_are_strict_in_the_paper_and_inclusive_in_the_release():
    table = pd.DataFrame(
        {"cluster_size": [7, 8, 9], "top1_head": [0.05, 0.05, 0.05], "jsd_final": 0.0}
    )
    assert candidates(table, Criteria.paper())[0].tolist() == [True, False, False]
    assert candidates(table, Criteria.released())[0].tolist() == [True, True, False]
    table = table.assign(cluster_size=1, top1_head=[0.1, 0.0999, 0.2])
    assert candidates(table, Criteria.paper())[0].tolist() == [False, True, False]
    table = table.assign(top1_head=0.0, jsd_final=[2e-3, 1.9e-3, np.nan])
    assert candidates(table, Criteria.paper())[0].tolist() == [False, True, False]


def test_columns_can_be_chosen_and_criteria_switched_off():
    table = probed()
    every = Criteria(tau_prob=math.inf, tau_out=math.inf, tau_in=0, tau_jsd=math.inf)
    assert candidates(table, every)[0].all()
    by_vocabulary, _ = candidates(table, LOOSE, probability="top1")
    by_head, _ = candidates(table, LOOSE)
    assert (by_vocabulary != by_head).any()
    with pytest.raises(RedlibError, match="no column 'jsd_released'"):
        candidates(table, LOOSE, jsd="jsd_released")


def test_prototypes_are_the_candidates_of_large_clusters():
    vectors, group = groups([9, 5, 3])
    images = np.arange(17)
    criteria = Criteria(0.1, 8, 4, 2e-3)
    mask, clusters = prototypes(vectors, images, criteria, neighbours=2, centres=3)
    assert mask.tolist() == (group <= 1).tolist()
    assert sorted(clusters.cluster_sizes) == [3, 5, 9]
    exactly = Criteria(0.1, 8, 5, 2e-3)
    assert prototypes(vectors, images, exactly, neighbours=2, centres=3)[0].sum() == 9


def test_the_released_rule_counts_distinct_images():
    vectors, group = groups([9, 5])
    images = np.where(group == 0, 0, np.arange(14))  # nine candidates of one image, five of five
    size = prototypes(vectors, images, Criteria(0.1, 8, 4, 2e-3), neighbours=2, centres=2)[0]
    rule = Criteria(0.1, 8, 4, 2e-3, rule_in="images")
    distinct = prototypes(vectors, images, rule, neighbours=2, centres=2)[0]
    assert size.all()
    assert distinct.tolist() == (group == 1).tolist()


def test_few_candidates_lower_the_settings_and_say_so():
    vectors, _ = groups([4])
    mask, clusters = prototypes(vectors, range(4), Criteria(1, 1, 0, 1), neighbours=64, centres=64)
    assert mask.all()
    assert (clusters.neighbours, len(clusters.centre_index)) == (3, 4)


def test_no_survivor_tells_how_many_passed_each():
    table = probed()
    strict = Criteria(tau_prob=0.5, tau_out=4, tau_in=2, tau_jsd=0)
    mask, survivors = candidates(table, strict)
    vectors = torch.zeros(len(table), 3)
    with pytest.raises(RedlibError) as caught:
        prototypes(
            vectors[mask], table.image[mask], strict, neighbours=4, centres=4, survivors=survivors
        )
    told = f"of 200 probed patches pass: tau_prob {survivors.tau_prob}, tau_out "
    assert str(caught.value).startswith(f"no patch survives the criteria ({told}")
    assert "tau_jsd 0; all three 0)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_large_cluster_tells_the_largest():
    vectors, _ = groups([9, 5])
    with pytest.raises(RedlibError, match=r"largest of 2 clusters has 9 candidates.* tau_in 64"):
        prototypes(vectors, range(14), Criteria.paper(), neighbours=2, centres=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau_prob": -0.1}, "tau_prob must be 0 or more; got -0.1"),
        ({"tau_in": float("nan")}, "tau_in must be a number; got nan"),
        ({"tau_jsd": "2e-3"}, "tau_jsd must be a number; got '2e-3'"),
        ({"rule_out": "within"}, "rule_out must be 'below' or 'at-most'; got 'within'"),
        ({"rule_in": "both"}, "rule_in must be 'size' or 'images'; got 'both'"),
    ],
)
def test_bad_criteria(change, message):
    with pytest.raises(RedlibError, match=message):
        Criteria(**(asdict(LOOSE) | change))


def test_a_saved_codebook_comes_back(tmp_path):
    book = codebook()
    path = book.save(tmp_path / "new" / "codebook.safetensors")
    back = Codebook.load(path, width=4, model="tiny", revision="abc")
    assert torch.equal(back.vectors, book.vectors)
    assert (back.image, back.patch) == (book.image, book.patch)
    assert (back.model, back.revision, back.criteria) == ("tiny", "abc", LOOSE)
    assert (len(back), back.width) == (5, 4)
    assert [file.name for file in path.parent.iterdir()] == ["codebook.safetensors"]


def test_the_same_codebook_gives_the_same_bytes(tmp_path):
    first = codebook().save(tmp_path / "a").read_bytes()
    assert codebook().save(tmp_path / "b").read_bytes() == first


def test_a_switched_off_criterion_survives_the_file(tmp_path):
    book = codebook()
    open_ended = Criteria(0.1, math.inf, 0, 1, rule_in="images", rule_out="at-most")
    changed = Codebook(book.vectors, book.image, book.patch, "tiny", "abc", open_ended)
    assert Codebook.load(changed.save(tmp_path / "c")).criteria == open_ended


def test_files_that_do_not_fit(tmp_path):
    path = codebook().save(tmp_path / "codebook.safetensors")
    with pytest.raises(RedlibError, match="has width 4, the model has 8"):
        Codebook.load(path, width=8)
    with pytest.raises(RedlibError, match="was made with model 'tiny', not 'large'"):
        Codebook.load(path, model="large")
    with pytest.raises(RedlibError, match="was made with revision 'abc', not 'def'"):
        Codebook.load(path, model="tiny", revision="def")
    with pytest.raises(RedlibError, match=r"no codebook at .*absent.* 05 .*codebook import"):
        Codebook.load(tmp_path / "absent")

    text = tmp_path / "text"
    text.write_text("tau_prob: 0.1\n")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for wrong in (text, empty):
        with pytest.raises(RedlibError, match="not a safetensors file"):
            Codebook.load(wrong)
    other = tmp_path / "other"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(RedlibError, match="not a codebook"):
        Codebook.load(other)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.zeros(0, 4), "empty"),
        (torch.full((5, 4), torch.nan), "NaN or infinite"),
        (torch.ones(5, 4) * torch.tensor([[1], [1], [0], [1], [1]]), "prototype 2 .* no direction"),
        (torch.zeros(3, 4), "names 5 images and 5 patches for 3"),
    ],
)
def test_damaged_contents_name_the_file(tmp_path, vectors, message):
    book = codebook()
    with pytest.raises(RedlibError, match=message):
        Codebook(vectors, book.image, book.patch, "tiny", "abc", LOOSE)
    object.__setattr__(book, "vectors", vectors)
    path = book.save(tmp_path / "damaged.safetensors")
    with pytest.raises(RedlibError, match=f"damaged.safetensors.*{message}"):
        Codebook.load(path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_of_a_model_can_be_stored(tmp_path, dtype):
    book = codebook()
    stored = book.vectors.to(getattr(torch, dtype))
    given = Codebook(stored, book.image, book.patch, "tiny", "abc", LOOSE)
    object.__setattr__(book, "vectors", stored)
    read = Codebook.load(book.save(tmp_path / "stored.safetensors"))
    for one in (given, read):
        assert one.vectors.dtype == torch.float32
        assert one.vectors.tolist() == stored.tolist()


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "complex64", "float8_e4m3fn"])
def test_other_dtypes_are_one_line(tmp_path, dtype):
    book = codebook()
    wrong = book.vectors.to(getattr(torch, dtype))
    told = f"must be float16, bfloat16, float32 or float64; got {dtype}"
    with pytest.raises(RedlibError, match=f"^the vectors of a codebook {told}$"):
        Codebook(wrong, book.image, book.patch, "tiny", "abc", LOOSE)
    object.__setattr__(book, "vectors", wrong)
    path = book.save(tmp_path / "wrong.safetensors")
    with pytest.raises(RedlibError, match=f"wrong.safetensors': the vectors .* {told}$"):
        Codebook.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: [],
        lambda about: None,
        lambda about: about | {"criteria": None},
        lambda about: about | {"criteria": {"tau": 1}},
        lambda about: {key: about[key] for key in about if key != "image"},
        lambda about: about | {"image": 3},
        lambda about: about | {"format": "another"},
        lambda about: about | {"model": None},
        lambda about: about | {"revision": 5},
        lambda about: about | {"image": "abcde"},
        lambda about: about | {"image": [1, 2, 3, 4, 5]},
        lambda about: about | {"criteria": asdict(LOOSE) | {"tau_in": 10**400}},
        lambda about: "[" * 100_000,
    ],
)
def test_odd_metadata_is_one_line(tmp_path, change):
    path = codebook().save(tmp_path / "odd.safetensors")
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["redlib"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    odd = change(about)
    text = odd if isinstance(odd, str) else json.dumps(odd)
    save_file(tensors, path, metadata={"redlib": text})
    with pytest.raises(RedlibError, match=r"odd.safetensors' is .* not a codebook") as caught:
        Codebook.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "patch", [[0, 1.7, 2, 3, 4], [math.inf] * 5, [True] * 5, [[0]] * 5, 3], ids=str
)
def test_patches_are_whole_numbers(tmp_path, patch):
    path = codebook().save(tmp_path / "odd.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata, vectors = file.metadata(), file.get_tensor("prototypes")
    save_file({"prototypes": vectors, "patch": torch.tensor(patch)}, path, metadata=metadata)
    with pytest.raises(RedlibError, match=r"odd.safetensors' is .*patch: whole numbers") as caught:
        Codebook.load(path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(RedlibError, match="cannot be written .*; choose a folder") as caught:
        codebook().save(blocker / "codebook.safetensors")
    assert "\n" not in str(caught.value)
