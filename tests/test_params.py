"""Parameters: what is accepted, what is refused, and the line that says so."""

import errno
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from redlib import params
from redlib.codebook import Criteria
from redlib.errors import RedlibError
from redlib.params import (
    FAMILIES,
    NOTEBOOKS,
    PRESETS,
    Params,
    check,
    describe,
    family,
    is_set,
    load_beside,
    load_file,
    load_set,
    preset_value,
)

SHIPPED = Path(__file__).parents[1] / "params"


def write(tmp_path, text, name="one.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(call, *arguments, **keywords):
    with pytest.raises(RedlibError) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_complete_and_read_only():
    params = Params()
    unset = {name for name, value in params.model_dump().items() if value is None}
    assert unset == {
        "codebook", "data_dir", "device_map", "games_dir", "image", "notebooks", "quantization",
        "revision", "scheduler",
    }  # fmt: skip
    with pytest.raises(ValidationError):
        params.seed = 1


def test_every_parameter_says_what_it_means():
    for name, field in Params.model_fields.items():
        assert field.description
        assert describe(name)


# What the paper says (section 9.1, Algorithm 1 and 2, eq. 11) and what its released code has, each
# written down here once more: one value, or one each for LLaVA-1.5, Next and OneVision.
PINNED = {
    "paper": {
        "top_prob": 50, "top_jsd": 20, "jsd_definition": "paper", "k_region": 1, "k_global": 16,
        "repeats": (1, 24, 27), "tau_prob": (0.1, 0.1, 0.08), "tau_out": (8, 8, 3),
        "tau_in": (64, 64, 16), "tau_jsd": (0.002, 0.002, 0.0015), "rule_out": "below",
        "rule_in": "size", "dpc_neighbours_image": 16, "dpc_neighbours_candidates": (64, 64, 24),
        "dpc_centres_image": 8, "dpc_centres_candidates": (64, 64, 24), "r_threshold": 0.5,
        "rule_keep": "at-most", "codebook_images": 500, "codebook_ranks": "all",
        "study_images": 100, "study_patches": 64, "random_seeds": 3,
    },
    "released": {
        "top_prob": 50, "top_jsd": 10, "jsd_definition": "released", "k_region": 1, "k_global": 16,
        "repeats": 1, "tau_prob": (0.15, 0.1, 0.08), "tau_out": (8, 8, 3),
        "tau_in": (64, 64, 16), "tau_jsd": (0.002, 0.002, 0.0018), "rule_out": "at-most",
        "rule_in": "images", "dpc_neighbours_image": 5, "dpc_neighbours_candidates": 5,
        "dpc_centres_image": 8, "dpc_centres_candidates": (64, 64, 24),
        "r_threshold": (0.45, 0.11, "calibrated"), "rule_keep": "below",
        "codebook_images": (500, 338, 1200), "codebook_ranks": "release",
        "study_images": 100, "study_patches": 64, "random_seeds": 3,
    },
}  # fmt: skip
REAL = (
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llama3-llava-next-8b-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
)
TINY = ("tiny-llava-1.5", "tiny-llava-next", "tiny-llava-onevision")


@pytest.mark.parametrize("preset", PINNED)
@pytest.mark.parametrize("models", [REAL, TINY])
def test_presets_are_pinned_whole(preset, models):
    pinned = PINNED[preset]
    assert set(pinned) == set(PRESETS[preset]), "every definition of a preset is pinned here"
    for place, model in enumerate(models):
        given = check({"model": model, "preset": preset} | dict.fromkeys(pinned))
        for name, value in pinned.items():
            expected = value[place] if isinstance(value, tuple) else value
            assert getattr(given, name) == preset_value(preset, name, model) == expected, name


@pytest.mark.parametrize("preset", PINNED)
def test_the_codebook_has_the_same_thresholds_as_the_parameters(preset):
    for place, each in enumerate(FAMILIES):
        criteria = asdict(getattr(Criteria, preset)(each))
        for name, found in criteria.items():
            value = PINNED[preset][name]
            assert found == (value[place] if isinstance(value, tuple) else value), (each, name)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-next-8b", "llava-onevision-7b"])
def test_the_real_parameter_files_are_the_papers(name):
    """Whatever preset `paper` defines, none of the three files says otherwise."""
    one = load_file(SHIPPED / f"{name}.yaml")
    assert one.preset == "paper" and one.model in REAL
    same = check({"model": one.model, "preset": "paper"} | dict.fromkeys(PINNED["paper"]))
    apart = {n for n in PINNED["paper"] if getattr(one, n) != getattr(same, n)}
    assert apart <= {"r_threshold"}, "a budget decides the threshold, as in the paper's tables"


def test_presets_hold_the_same_definitions_and_a_file_wins_over_them():
    assert {frozenset(values) for values in PRESETS.values()} == {frozenset(PRESETS["paper"])}
    for preset in PRESETS:
        for each in FAMILIES:
            check({"preset": preset, "model": each} | dict.fromkeys(PRESETS[preset]))
    assert check({"preset": "released", "tau_prob": 0.2}).tau_prob == 0.2
    assert check({"preset": "paper", "top_jsd": 10}).top_jsd == 10


def test_resolving_twice_changes_nothing():
    once = check({"preset": "released", "budgets": [64], "tau_jsd": None})
    assert check(once.model_dump()) == once


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tiny-llava-1.5", "llava-1.5"),
        ("/data/llava-1.5-7b-hf", "llava-1.5"),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-next"),
        ("llava-hf/llama3-llava-next-8b-hf", "llava-next"),
        ("lmms-lab/llava-ov", "llava-onevision"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava-onevision"),
    ],
)
def test_family(model, expected):
    assert family(model) == expected


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1.e-4", "1E-4", "+1e-4"])
def test_exponents_are_numbers_whatever_yaml_says(tmp_path, text):
    assert load_file(write(tmp_path, f"tau_jsd: {text}\n")).tau_jsd == 1e-4


@pytest.mark.parametrize(
    ("text", "name", "quoted"),
    [
        ('tau_prob: "1e-1x"', "tau_prob", "'1e-1x'"),
        ('tau_prob: "0.1"', "tau_prob", "'0.1'"),
        ("tau_prob: yes", "tau_prob", "True"),
        ("tau_prob: -0.1", "tau_prob", "-0.1"),
        ("tau_prob: 1.5", "tau_prob", "1.5"),
        ("tau_jsd: -1e-9", "tau_jsd", "-1e-9"),
        ("tau_jsd: .nan", "tau_jsd", "nan"),
        ("tau_in: .inf", "tau_in", "inf"),
        ("seed: no", "seed", "YAML reads no, off, yes and on as false and true)"),
        ("seed: 1.0", "seed", "1.0"),
        ("seed: -1", "seed", "-1"),
        ("model: no", "model", "put a word in quotes"),
        ("model: 7", "model", "7"),
        ("budgets: [0]", "budgets", "[0]"),
        ("budgets: [64, 577]", "budgets", "577"),
        ("budgets: []", "budgets", "[]"),
        ("budgets: 64", "budgets", "64"),
        ("budgets: [64.0]", "budgets", "[64.0]"),
        ("preset: papers", "preset", "'papers'"),
        ("preset: 3", "preset", "3"),
        ("publish: 1", "publish", "1"),
        ("notebooks: []", "notebooks", "[]"),
        ("notebooks: [6]", "notebooks", "[6]"),
        ("run_name: ../elsewhere", "run_name", "'../elsewhere'"),
        ("attention_positions: 199", "attention_positions", "199"),
        ("dtype: float8", "dtype", "'float8'"),
        ("run_name: _x", "run_name", "begins with a letter or digit; got '_x'"),
        ("study_patches: 20", "study_patches", "20"),
        ("study_patches: 729", "study_patches", "at most 576, the visual tokens of tiny-llava-1.5"),
        ("curve: [8, 64, 8]", "curve", "[8, 64, 8]"),
        ("{model: tiny-llava-onevision, methods: [cls-attention]}", "methods", "take received"),
    ],
)
def test_a_bad_value_is_named_and_quoted(tmp_path, text, name, quoted):
    path = write(tmp_path, text + "\n")
    message = error_of(load_file, path)
    assert message.startswith(f"{path}: {name} must be ")
    assert quoted in message


def test_an_unknown_name_brings_the_nearest_one(tmp_path):
    message = error_of(load_file, write(tmp_path, "tau_porb: 0.1\n"))
    assert "unknown parameter 'tau_porb'" in message
    assert "did you mean 'tau_prob'?" in message
    assert "redlib params" in error_of(check, {"xyzzy": 1})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file"),
        (b"seed: 1\x00\n", "not a text file"),
        (b"seed: [1\n", "not YAML"),
        (b"seed: 1\n  model: x\n", "not YAML at line 2"),
        (b"seed: !!python/object/apply:os.getcwd []\n", "not YAML"),
        (b"just words\n", "one `name: value` per line"),
        (b"- seed\n", "one `name: value` per line"),
        (b"seed: 1\nseed: 2\n", "'seed' is given twice"),
        (b"? [a]\n: 1\n", "cannot be the name"),
        (b"1: 2\n", "unknown parameter '1'"),
        (b"set: [one]\n", "set of parameter files"),
        (b"{a: &a {seed: 1}, <<: *a}\n", "line 1: merge keys (<<) are not supported"),
        (b"seed: 1\nscene: 1:30\n", "line 2: 1:30 is to YAML no decimal number"),
        (b"tau_in: 1:30.5\n", "1:30.5 is to YAML no decimal number"),
        (b"scene: 010\n", "010 is to YAML no decimal number"),
        (b"notebooks: [01]\n", "put a text in quotes"),
    ],
)
def test_a_file_that_is_no_parameter_file(tmp_path, content, words):
    path = write(tmp_path, content)
    message = error_of(load_file, path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_a_missing_file_lists_its_neighbours(tmp_path):
    write(tmp_path, "seed: 1\n", "small.yaml")
    message = error_of(load_file, tmp_path / "smal.yaml")
    assert "no such parameter file; there are small.yaml" in message
    for number in range(8):
        write(tmp_path, "seed: 1\n", f"other-{number}.yaml")
    message = error_of(load_file, tmp_path / "smal.yaml")
    assert "; the nearest names are " in message and "small.yaml" in message
    assert "a folder; a parameter file is wanted" in error_of(load_file, tmp_path)


def test_the_run_is_named_after_its_file(tmp_path):
    assert load_file(write(tmp_path, "seed: 3\n", "mine.yaml")).run_name == "mine"
    assert load_file(write(tmp_path, "run_name: other\n", "mine.yaml")).run_name == "other"


def test_sets(tmp_path):
    write(tmp_path, "seed: 1\n", "a.yaml")
    write(tmp_path, "seed: 2\n", "b.yaml")
    both = write(tmp_path, "set: [a, b.yaml]\n", "both.yaml")
    assert [(p.run_name, p.seed) for p in load_set(both)] == [("a", 1), ("b", 2)]
    assert is_set(both)
    assert [p.run_name for p in load_set(tmp_path / "a.yaml")] == ["a"]
    assert not is_set(tmp_path / "a.yaml")
    more = write(tmp_path, "set: [a]\nbeside: both\n", "more.yaml")
    assert [p.run_name for p in load_set(more)] == ["a"]
    assert [p.run_name for p in load_beside(more)] == ["a", "b"]
    assert load_beside(both) == load_beside(tmp_path / "a.yaml") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("set: []", "must be a list"),
        ("set: a", "must be a list"),
        ("set: [a, 1]", "must be a list"),
        ("set: [missing]", "missing.yaml: no such parameter file"),
        ('set: ["a\\0b"]', r"member 'a\x00b': '{}/a\x00b.yaml': no file can have this name"),
        ('set: ["\\ud800"]', r"member '\ud800': '{}/\ud800.yaml': no file can have this name"),
        ("set: [a, a]", "occurs twice"),
        ("set: [a]\nseed: 1", "got also 'seed'"),
        ("set: [both]", "this is a set"),
        ("set: [same]", "occurs twice"),
        ("set: [a]\nbeside: [a]", "must be the name of a set file"),
        ("set: [a]\nbeside: b", "b.yaml: no such parameter file"),
    ],
)
def test_bad_sets(tmp_path, text, words):
    write(tmp_path, "seed: 1\n", "a.yaml")
    write(tmp_path, "run_name: both\n", "same.yaml")
    path = write(tmp_path, text + "\n", "both.yaml")
    told = error_of(load_beside if "beside" in text else load_set, path)
    assert words.replace("{}", str(tmp_path)) in told


def test_shipped_files_load():
    for path in sorted(SHIPPED.glob("*.yaml")):
        for run in load_set(path):
            assert (SHIPPED / f"{run.run_name}.yaml").exists()
    assert load_file(SHIPPED / "smoke.yaml") == Params(), "smoke.yaml is the defaults, no more"
    tiny = load_file(SHIPPED / "tiny-llava-1.5.yaml")
    assert (tiny.study_images, tiny.study_patches, tiny.budgets) == (100, 64, [144, 64])
    assert load_file(SHIPPED / "llava-1.5-7b.yaml").tau_prob == 0.1


def test_notebooks_are_numbered_by_their_names():
    assert all(name.startswith(f"{number}_") for number, name in NOTEBOOKS.items())


def test_a_folder_says_itself_which_family_it_is(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert params.family(str(folder)) == "llava-1.5"
    (folder / "config.json").write_text('{"model_type": "llava_onevision"}')
    assert params.family(str(folder)) == "llava-onevision"
    assert params.preset_value("paper", "repeats", str(folder)) == 27
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        assert params.family("~/mine") == "llava-onevision"
        assert params.local("~/mine") == folder
    assert str(params.local("~nobody-of-this-name/x")) == "~nobody-of-this-name/x"
    (folder / "config.json").write_text("not JSON")
    assert params.family(str(folder)) == "llava-1.5"


CIDER = {"data": "real", "preset": "paper", "caption_metric": "CIDEr"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (CIDER | {"n_captions": 1}, "n_captions"),
        (CIDER | {"n_tiled": 1, "model": "llava-next"}, "n_tiled"),
        (CIDER | {"n_tiled": 1}, None),
        (CIDER | {"n_captions": 2, "n_tiled": 2, "model": "llava-next"}, None),
        (CIDER | {"n_captions": 1, "caption_metric": "SPICE"}, None),
        (CIDER | {"n_captions": 1, "data": "tabletop"}, None),
    ],
)
def test_one_caption_is_too_few_for_cider(values, named):
    if named is None:
        assert check(values).n_captions == values.get("n_captions", 2)
        return
    message = error_of(check, values)
    assert message.startswith(f"{named} must be 2 or more with caption_metric: CIDEr")
    assert message.endswith("; got 1")


def test_all_tokens_of_a_model_may_be_studied():
    assert check({"study_patches": 576}).study_patches == 576
    onevision = {"study_patches": 729, "model": "tiny-llava-onevision"}
    assert check(onevision).study_patches == 729


def test_what_may_not_be_read(tmp_path, monkeypatch):
    """A folder has to be looked into as well."""
    (tmp_path / "file").touch()
    asked = {}
    monkeypatch.setattr(os, "access", lambda path, mode: asked.setdefault(path, mode) < 0)
    for path, mode in ((tmp_path, 4 + 1), (tmp_path / "file", 4)):
        told = f"{str(path)!r} cannot be read: Permission denied; change who may read it"
        assert error_of(params.local, path).startswith(told)
        assert asked.pop(path) == mode
    assert params.local(tmp_path / "none") == tmp_path / "none"
    assert params.local("a\0b") == Path("a\0b") and not asked


def test_a_path_that_cannot_be_looked_up(monkeypatch):
    assert params.family("llava-next-" + "a" * 5_000) == "llava-next"

    def shut(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "exists", shut)
    message = error_of(params.local, "shut/a.png")
    assert message == "'shut/a.png' cannot be looked up: Permission denied"
