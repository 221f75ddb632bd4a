"""The benchmarks in miniature, through the call that reads the hub: every loader, what it is asked
in either wording, what can be wrong with a file, and the official metrics on what comes out."""

import io
import json
import pickle
import sys
from functools import partial

import av
import miniature
import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as Pillow

from redlib.bench import is_correct, mme, pope
from redlib.data import benchmarks, folder, photo, prompts, reading, several, single, values
from redlib.errors import RedlibError
from redlib.params import Params
from redlib.study import scoring
from redlib.tabletop import questions, scenes

LETTER = "Answer with the option's letter from the given choices directly."
NEXT = "llava-hf/llama3-llava-next-8b-hf"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniature.everything(tmp_path_factory.mktemp("sets"))


def real(root, **more):
    return Params(data="real", data_dir=str(root), **more)


def drawn(task):
    """The drawn world's own questions about the pictures."""
    return [q for _, q in miniature.asked(task)]


# --- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["pope-random", "pope-popular", "pope-adversarial"])
def test_pope_asks_what_was_written(root, task):
    photos, asked = single.ask("pope", 10_000, real(root))
    own = [q for q in asked if q.task == task]
    assert sorted(q.text for q in own) == sorted(q.text for q in drawn(task))
    for q in own:  # the same question about the same picture has the same answer
        number = int(q.image[-12:])
        scene = scenes("test", 1, start=miniature.START + number)[0]
        assert q.answer == next(d.answer for d in questions([scene], task) if d.text == q.text)
    (first,) = [p for p in photos if p.id == own[0].image]
    number = int(own[0].image[-12:])
    expected = scenes("test", 1, start=miniature.START + number)[0].image
    assert np.array_equal(np.asarray(first.image), np.asarray(expected))


def test_wording():
    asked = prompts.yes_no("Is there a cup?", "release", "llava-1.5")
    assert asked == "Is there a cup? Please answer this question with one word."
    phrase = "Is there a cup?\nAnswer the question using a single word or phrase."
    assert prompts.yes_no("Is there a cup?", "release", "llava-next") == phrase
    assert prompts.yes_no(" Is there a cup? ", "lmms-eval", "llava-1.5") == phrase
    own = "Is there a cup? Please answer yes or no."
    assert prompts.mme(own, "release") == own
    assert prompts.mme(own, "lmms-eval") == phrase
    assert prompts.caption("lmms-eval") == "Provide a one-sentence caption for the provided image."
    assert prompts.caption("release") == (
        "Describe the provided image in one sentence.\nPlease provide detailed and specific "
        "descriptions of the key information in the picture."
    )
    assert [prompts.longest_caption("release", f) for f in ("llava-1.5", "llava-next")] == [64, 256]
    assert prompts.longest_caption("lmms-eval", "llava-next") == 64
    assert prompts.mmbench("What?", "Look.", {"A": "a cup", "B": "a key"}) == (
        f"Look. What? There are several options:\nA. a cup\nB. a key\n\n{LETTER}"
    )
    assert prompts.lettered("What?", ["x", "y"]) == f"What?\nA. x\nB. y\n{LETTER}"
    assert prompts.mvbench("What?", ["x", "y"], "release") == (
        "Question: What?\nOptions:\n(A) x\n(B) y\nOnly give the best option."
    )
    assert prompts.mvbench("What?", ["x"], "lmms-eval") == (
        "Question:What?\nOption:\n(A) x\nOnly give the best option.\n"
    )
    options = ["(A) the first", "the second"]
    assert prompts.mantis("Which?", options, "release") == (
        f"Which?\n (A) the first\n (B) the second\n{LETTER}"
    )
    assert prompts.mantis("Which?", ["x", "y"], "lmms-eval") == f"Which?\n{LETTER}['x', 'y']"
    short = prompts.mantis("How many?", [], "release")
    assert short.splitlines()[:2] == [
        "Given the images, answer the following short answer vqa question:", "Q: How many?"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["pope", "mmbench", "seed", "mme", "realworldqa"])
def test_fewer_questions_are_the_first_of_more_and_see_many_images(root, name):
    photos, many = single.ask(name, 6, real(root))
    _, few = single.ask(name, 3, real(root))
    for task in dict.fromkeys(q.task for q in many):
        more, less = ([q for q in asked if q.task == task] for asked in (many, few))
        assert less == more[: len(less)] and 0 < len(less) < len(more)
        units = {(q.image, q.group) for q in more}
        assert len({image for image, _ in units}) == len(units), "no image gave two before all one"
    assert {photo.id for photo in photos} == {q.image for q in many}
    other = single.ask(name, 6, real(root, seed=1))[1]
    assert {q.image for q in other} != {q.image for q in many}


def test_yes_and_no_are_asked_in_turn(root):
    _, asked = single.ask("pope", 8, real(root))
    for task in ("pope-random", "pope-popular", "pope-adversarial"):
        answers = [q.answer for q in asked if q.task == task]
        assert answers.count("yes") == answers.count("no") == 4


def test_mme_comes_in_pairs_of_perception(root):
    _, asked = single.ask("mme", 10_000, real(root))
    assert {q.group for q in asked} == set(single.MME_PERCEPTION)
    pairs = pd.DataFrame([(q.image, q.group, q.answer) for q in asked])
    assert all(set(part[2]) == {"yes", "no"} for _, part in pairs.groupby([0, 1]))
    _, ocr = single.ask("mme", 2, real(root), group="OCR")
    assert [q.group for q in ocr] == ["OCR", "OCR"]


def test_mmbench_keeps_rotations_together(root):
    _, asked = single.ask("mmbench", 3, real(root))
    groups = pd.Series([q.group for q in asked]).value_counts()
    assert len(groups) == 3 and set(groups) == {4}
    texts = {q.text for q in single.ask("mmbench", 10_000, real(root))[1]}
    assert any(text.startswith("Look at the table. ") for text in texts)
    assert all("nan" not in text and "None" not in text for text in texts)


def test_seed_leaves_films_out(root):
    _, asked = single.ask("seed", 10_000, real(root))
    assert len(asked) == len(drawn("seed"))
    assert sorted(q.text for q in asked) == sorted(q.text for q in drawn("seed"))


@pytest.mark.parametrize(
    ("name", "second"), [("nocaps", "Some things."), ("flickr", "On a table.")]
)
def test_captions_have_their_references(root, name, second):
    photos, asked = single.ask(name, 4, real(root))
    for p in photos:
        assert p.references == (miniature.captions()[int(p.id.split("/")[1])], second)
    assert {q.text for q in asked} == {prompts.caption("release")}


def test_image_dc_asks_its_own_question(root):
    photos, asked = single.ask("image-dc", 5, real(root))
    assert len(photos) == len(asked) == 5
    assert {q.text for q in asked} == {miniature.DETAIL}


def test_mantis_finds_its_options_in_both_wordings(root):
    for wording in ("release", "lmms-eval"):
        kinds = set()
        for shots in several.shots("mantis", 100, real(root, prompts=wording)):
            (asked,) = shots.asked
            kinds.add(asked.kind)
            assert "Which has more cups, <image> or <image>?" in asked.text
            right = {"multi-choice": "(B)", "short-answer": "Final Answer: 2"}[asked.kind]
            wrong = {"multi-choice": "A", "short-answer": "3"}[asked.kind]
            judged = [
                is_correct("mantis", said, asked.gold, question=asked.options, rule="mantis")
                for said in (right, wrong)
            ]
            assert judged == [True, False], asked
            assert asked.chance == {"multi-choice": 0.5, "short-answer": 0}[asked.kind]
            assert len(shots.images) == 2
        assert kinds == {"multi-choice", "short-answer"}


def copied(root, folder, name, **columns):
    """A copy of a benchmark in `folder`, with other values in some columns: what a function makes
    of those that it has."""
    of = benchmarks.BENCHMARKS[name]
    old = load_dataset(str(root / of.folder), data_files={of.split: of.files}, split=of.split)
    features = old.features
    for column, change in columns.items():
        new = change(old.with_format("arrow")[:].column(column).to_pylist())
        old = old.remove_columns([column]).add_column(column, new, feature=features[column])
    path = folder / of.folder / of.files.replace("*", "0.parquet")
    path.parent.mkdir(parents=True)
    old.to_parquet(path)
    return real(folder)


def each(value):
    """One value for all rows."""
    return lambda held: [value] * len(held)


@pytest.mark.parametrize(
    ("options", "gold", "right", "wrong"),
    [
        (  # "RED." ends in the letter D and a full stop
            ["The car is blue", "The car is green", "The car is white", "The car is red."],
            "D",
            ["D", "(D)", "D. The car is red.", "The answer is D"],
            ["A", "(C)", "The car is red"],
        ),
        (["They are in a cafeteria.", "They are in a park"], "B", ["B", "(B)"], ["A", "(A)"]),
        # "first": F is no option's letter, and then all that was said is compared
        (["A. first", "B: two", "(C) third", "D) fourth"], "D", ["D", "d."], ["C", "fourth one"]),
        (["(A) it is", "(B) no: it\n(C) is not"], "B", ["B", "no: it (C) is not"], ["C", "no: it"]),
    ],
)
def test_every_option_of_mantis_is_on_offer(root, tmp_path, options, gold, right, wrong):
    params = copied(
        root, tmp_path, "mantis", options=each(options), answer=each(f"({gold})"),
        question_type=each("multi-choice"),
    )  # fmt: skip
    (asked,) = several.shots("mantis", 1, params)[0].asked
    for said in right + wrong:
        judged = is_correct("mantis-eval", said, asked.gold, question=asked.options)
        assert judged == (said in right), said


def test_muir_shows_all_images_in_order(root):
    shots = several.shots("muir", 3, real(root))
    assert len(shots) == 3 and shots[0].asked[0].chance == 0.25
    assert shots[0].asked[0].text.startswith("<image><image><image> Which is it?\nA. one\n")
    number = int(shots[0].id.removeprefix("muir/"))
    for image, n in zip(shots[0].images, (number, number - 1, number - 2), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(miniature.drawn()[n].image))


def test_a_text_without_a_place_for_each_image_gets_numbers(root, tmp_path):
    of = benchmarks.BENCHMARKS["muir"]
    old = load_dataset(str(root / of.folder), data_files={of.split: of.files}, split=of.split)
    texts = ["Which is it, <image> or <image>?"] * len(old)
    path = tmp_path / of.folder / of.files.replace("*", "0.parquet")
    path.parent.mkdir(parents=True)
    old.remove_columns(["question"]).add_column("question", texts).to_parquet(path)
    (shots,) = several.shots("muir", 1, real(tmp_path))
    assert shots.asked[0].text.startswith("Which is it, (image 1) or (image 2)?\n")
    assert len(shots.images) == 3


def test_calibration_items_are_no_test_items(root):
    for name in ("mantis", "muir"):
        every = {p: {s.id for s in several.shots(name, 100, real(root), part=p)}
                 for p in ("test", "calibration")}  # fmt: skip
        assert all(every.values()) and not every["test"] & every["calibration"]


def test_films_take_their_subtasks_in_turn(root, capsys):
    shots = several.shots("film", 38, real(root))
    kinds = [s.asked[0].kind for s in shots]
    assert len(set(kinds[:19])) == 19 and kinds[:19] == kinds[19:]
    assert "without its subtask fine_grained_pose" in capsys.readouterr().out
    frames = shots[0].images
    greys = [np.asarray(frame)[16, 16, 0] for frame in frames]
    # Sixteen parts of 19/16 frames, each one's middle: frame n is grey of 10 n.
    numbers = [int(19 / 32 + np.round(19 / 16 * n)) for n in range(16)]
    assert len(frames) == 16 and frames[0].size == (32, 32)
    assert np.abs(np.array(greys, int) - 10 * np.array(numbers)).max() <= 6
    assert several.middles(2, 16) == [0] * 9 + [1] * 7 and len(several.frames(_short(root))) == 5


def gone(film):
    film.unlink()


def damaged(film):
    film.write_bytes(b"no film")


@pytest.mark.parametrize("spoil", [gone, damaged])
@pytest.mark.parametrize("drawn", [0, 1])
def test_a_film_that_is_missing_or_damaged_is_left_out_alone(tmp_path, capsys, spoil, drawn):
    """Be it the first that is drawn of its subtask or the last."""
    folder = miniature.mvbench(tmp_path)
    before = several.shots("film", 99, real(tmp_path))
    (lost,) = [s for s in before if s.asked[0].kind == "state_change"][drawn::2]
    spoil(folder / "perception" / "videos" / lost.film.rpartition("/")[2])
    capsys.readouterr()
    after = several.shots("film", 99, real(tmp_path))
    assert {s.id for s in after} == {s.id for s in before} - {lost.id} and len(after) == 37
    told = capsys.readouterr().out
    assert f"MVBench: 1 of 38 films cannot be read: {lost.id} (" in told
    assert "without its subtask state_change" not in told and lost.film in told
    assert "without its subtask fine_grained_pose, since" in told and "none of its films" in told


def test_over_one_per_cent_of_films_stops_the_run(tmp_path):
    folder = miniature.mvbench(tmp_path)
    for task in ("action_antonym", "action_count"):
        (folder / several.FOLDERS[task] / f"{task}_0.mp4").unlink()
        (folder / several.FOLDERS[task] / f"{task}_1.mp4").write_bytes(b"no film")
    with pytest.raises(RedlibError, match="MVBench: . of .* over 1% means a damaged copy"):
        several.shots("film", 99, real(tmp_path))


def test_of_the_hub_the_first_film_tells_whether_a_subtask_has_any(tmp_path, capsys, monkeypatch):
    """And where all are missing, not all are asked for."""
    miniature.mvbench(tmp_path, each=40)
    asked = []

    def hub(path, params):
        asked.append(path)
        if "vlnqa" in path or len(asked) > 100:
            raise reading.Unreadable(f"{path} cannot be fetched (RemoteEntryNotFoundError)")
        return str(tmp_path / "MVBench" / path)

    monkeypatch.setattr(several, "_film", hub)
    below = partial(reading.table, data_dir=str(tmp_path))
    monkeypatch.setattr(several, "table", lambda of, _, columns: below(of, columns=columns))
    monkeypatch.setattr(several, "_playable", lambda *_: True)
    params = Params(data="real")
    found = several.shots("film", 60, params)
    assert len(found) == 60 and "egocentric_navigation" not in {s.asked[0].kind for s in found}
    told = capsys.readouterr().out
    assert "without its subtask egocentric_navigation, since the first film drawn of it" in told
    assert "vlnqa/egocentric_navigation_" in told and len([p for p in asked if "vlnqa" in p]) == 1
    asked.clear()
    with pytest.raises(RedlibError, match="MVBench: .* films cannot be read: .* over 1%"):
        several.shots("film", 300, params)
    assert len(asked) < 140, "a lost connection was asked for every film"


def _short(root):
    return str(miniature.film(root / "short.mp4", length=5))


# --- variants of the files -----------------------------------------------------------------------


def test_variants_of_the_features_read_alike(root, tmp_path):
    expected = [single.ask(name, 5, real(root))[1] for name in ("mmbench", "seed")]
    for nothing, index in ((None, "string"), ("nan", "int32")):
        miniature.mmbench(tmp_path, index=index, nothing=nothing)
        assert single.ask("mmbench", 5, real(tmp_path))[1] == expected[0]
    miniature.seed(tmp_path, label=True)
    assert single.ask("seed", 5, real(tmp_path))[1] == expected[1]


@pytest.mark.parametrize("form", ["struct", "bytes", "path"])
def test_images_that_the_file_does_not_call_so(root, tmp_path, form):
    """A copy whose Parquet has lost the feature types."""
    old = load_dataset(str(root / "RealWorldQA"), data_files={"test": "data/*"}, split="test")
    files = []
    for n, image in enumerate(old["image"]):
        file = io.BytesIO()
        image.save(file, "PNG")
        (tmp_path / f"{n}.png").write_bytes(file.getvalue())
        files.append(file.getvalue())
    stored = {
        "struct": ([{"bytes": f, "path": "x.png"} for f in files],
                   {"bytes": Value("binary"), "path": Value("string")}),
        "bytes": (files, Value("binary")),
        "path": ([str(tmp_path / f"{n}.png") for n in range(len(files))], Value("string")),
    }[form]  # fmt: skip
    columns = {name: old[name][:] for name in ("question", "answer")} | {"image": stored[0]}
    text = Value("string")
    features = Features({"question": text, "answer": text, "image": stored[1]})
    path = tmp_path / "RealWorldQA" / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    Dataset.from_dict(columns, features=features).to_parquet(path)
    photos, asked = single.ask("realworldqa", 4, real(tmp_path))
    before, same = single.ask("realworldqa", 4, real(root))
    assert asked == same
    assert np.array_equal(np.asarray(photos[0].image), np.asarray(before[0].image))


def as_sequences(feature):
    """Features of a Parquet file's metadata as `datasets` wrote them before it had lists."""
    if isinstance(feature, dict):
        older = {key: as_sequences(value) for key, value in feature.items()}
        return older | {"_type": "Sequence"} if feature.get("_type") == "List" else older
    return feature


@pytest.mark.parametrize("name", ["seed", "nocaps", "flickr", "mantis", "muir"])
def test_lists_under_their_former_name_read_alike(root, tmp_path, name):
    of = benchmarks.BENCHMARKS[name]
    (file,) = (root / of.folder).glob(of.files)
    table = parquet.read_table(file)
    told = json.loads(table.schema.metadata[b"huggingface"])
    older = as_sequences(told)
    assert "Sequence" in json.dumps(older) and "List" not in json.dumps(older)
    assert "Sequence" not in json.dumps(told), "the miniature has the present form"
    path = tmp_path / of.folder / file.relative_to(root / of.folder)
    path.parent.mkdir(parents=True)
    metadata = {b"huggingface": json.dumps(older).encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), path)  # and without a card
    if name in benchmarks.SEVERAL:
        before, after = (several.shots(name, 5, real(at)) for at in (root, tmp_path))
        asked = [[(one.id, one.asked, one.files) for one in found] for found in (before, after)]
        assert asked[0] == asked[1] and len(before) == 5
    else:
        (photos, before), (same, after) = (single.ask(name, 5, real(at)) for at in (root, tmp_path))
        assert before == after and before
        held = [[(one.id, one.data, one.references) for one in each] for each in (photos, same)]
        assert held[0] == held[1]


# --- what can be wrong ---------------------------------------------------------------------------


def _damaged(tmp_path, images, damaged, *, empty=()):
    """RealWorldQA of plain pictures, some cut short, some not there."""
    file = io.BytesIO()
    Pillow.new("RGB", (8, 8), "red").save(file, "PNG")
    whole = file.getvalue()
    cells = [
        None if n in empty else {"bytes": whole[:40] if n in damaged else whole, "path": None}
        for n in range(images)
    ]
    columns = {"image": cells, "question": ["How many?"] * images, "answer": ["2"] * images}
    features = {"image": Image(), "question": Value("string"), "answer": Value("string")}
    miniature.write(tmp_path, "RealWorldQA", columns, features, "data/test-*")
    return real(tmp_path)


def test_a_damaged_image_is_left_out_and_named(tmp_path, capsys):
    photos, asked = single.ask("realworldqa", 1000, _damaged(tmp_path, 250, {7}, empty={9}))
    assert len(photos) == len(asked) == 248
    told = capsys.readouterr().out
    assert "2 of 250 pictures" in told and "realworldqa/7" in told and "realworldqa/9" in told


def test_over_one_per_cent_stops_the_run(tmp_path):
    with pytest.raises(RedlibError, match="RealWorldQA: 3 of 250 .* 1%"):
        single.ask("realworldqa", 1000, _damaged(tmp_path, 250, {3, 5, 8}))


@pytest.mark.parametrize("name", sorted(set(benchmarks.BENCHMARKS) - {"film"}))
def test_a_missing_column_is_one_line(root, tmp_path, name):
    of = benchmarks.BENCHMARKS[name]
    files = {of.split: of.files}
    old = load_dataset(str(root / of.folder), data_files=files, split=of.split)
    for column in of.columns:
        path = tmp_path / column / of.folder / of.files.replace("*", "0.parquet")
        path.parent.mkdir(parents=True)
        old.remove_columns([column]).to_parquet(path)
        params = real(tmp_path / column)
        with pytest.raises(RedlibError, match=f"{of.name}.* {column!r}") as caught:
            several.shots(name, 1, params) if name in benchmarks.SEVERAL else single.ask(
                name, 1, params
            )
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", benchmarks.BENCHMARKS["film"].columns)
def test_a_missing_column_of_films_is_one_line(tmp_path, column):
    file = miniature.mvbench(tmp_path, each=1) / "json" / "action_antonym.json"
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([{k: v for k, v in one.items() if k != column} for one in rows]))
    with pytest.raises(RedlibError, match=f"MVBench: no column '{column}'; there are ") as caught:
        several.shots("film", 1, real(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "column", "value", "words"),
    [
        ("pope", "category", "hard", "category.*'hard'"),
        ("pope", "answer", "maybe", "yes or no.*'maybe'"),
        ("mme", "answer", "2", "yes or no"),
        ("mme", "question_id", "one", "not a pair"),
        ("mmbench", "answer", "E", "letter of one of 4 options.*'E'"),
        ("seed", "answer", "x", "letter of one of 4 options"),
        ("nocaps", "annotations_captions", [], "no caption"),
        ("mantis", "options", ["one"], "1 options"),
        ("muir", "image_list", [], "0 images"),
        ("pope", "question", None, "POPE, row 0: 'question' must hold a text; got None"),
        ("pope", "category", None, "'category' must hold a text"),
        ("pope", "image_source", None, "'image_source' must hold a text"),
        ("mme", "question", " ", "'question' must hold a text; got ' '"),
        ("mme", "category", None, "'category' must hold a text"),
        ("mme", "category", "artwork", "MME: no question of the category existence in "),
        ("mmbench", "question", "nan", "'question' must hold a text; got 'nan'"),
        ("mmbench", "A", None, "'A' must hold a text"),
        ("mmbench", "C", None, "'C' must hold a text"),
        ("mmbench", "index", None, "'index' must hold a whole number; got None"),
        ("seed", "question", None, "'question' must hold a text"),
        ("seed", "data_type", None, "row 0: 'data_type' must be image or video; got None"),
        ("seed", "data_type", "film", "row 0: 'data_type' must be image or video; got 'film'"),
        ("pope", "category", "random", "POPE: no question of the subset popular in 162 rows; the"),
        ("seed", "choice_b", None, "'choice_b' must hold a text"),
        ("seed", "data_id", [], "'data_id' must hold a text"),
        ("realworldqa", "question", None, "'question' must hold a text"),
        ("realworldqa", "answer", None, "'answer' must hold a text"),
        ("realworldqa", "answer", "", "'answer' must hold a text; got ''"),
        ("nocaps", "image_id", None, "'image_id' must hold a text"),
        ("flickr", "caption", [" "], "no caption"),
        ("image-dc", "question", None, "'question' must hold a text"),
        ("mantis", "question", None, "'question' must hold a text"),
        ("mantis", "question_type", None, "'question_type' must hold a text"),
        ("mantis", "question_type", "choice", "multi-choice or short-answer; got 'choice'"),
        ("mantis", "options", None, "0 options"),
        ("mantis", "options", [None, "b"], "'options' must hold a text"),
        ("mantis", "answer", None, "'answer' must.*; got None"),
        ("mantis", "answer", "Z", "letter of one of 2 options; got 'Z'"),
        ("muir", "question", None, "'question' must hold a text"),
        ("muir", "task", None, "'task' must hold a text"),
        ("muir", "options", None, "0 options"),
        ("muir", "options", [], "0 options"),
        ("muir", "options", ["a", None, "c", "d"], "'options' must hold a text"),
        ("muir", "answer", "", "letter of one of 4 options; got ''"),
        ("muir", "answer", "E", "letter of one of 4 options; got 'E'"),
    ],
)
def test_values_that_make_no_question(root, tmp_path, name, column, value, words):
    params = copied(root, tmp_path, name, **{column: each(value)})
    with pytest.raises(RedlibError, match=words) as caught:
        several.shots(name, 20, params) if name in benchmarks.SEVERAL else single.ask(
            name, 1, params
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [-1, None])
def test_a_class_that_is_no_label_is_nothing(tmp_path, label):
    question = {"category": "random", "image_source": "1", "question": "Is it?"}
    columns = {name: [value] * 2 for name, value in question.items()} | {
        "answer": [1, label], "image": [miniature.stored(Pillow.new("RGB", (8, 8)))] * 2,
    }  # fmt: skip
    features = dict.fromkeys(columns, Value("string")) | {
        "answer": ClassLabel(names=["no", "yes"]), "image": Image(),
    }  # fmt: skip
    miniature.write(tmp_path, "POPE", columns, features, "data/test-*")
    with pytest.raises(RedlibError, match="POPE, row 1: 'answer' must be yes or no; got None"):
        single.ask("pope", 9, real(tmp_path))
    found = reading.table(benchmarks.BENCHMARKS["pope"], str(tmp_path), columns=("answer",))
    assert [reading.row(found, at)["answer"] for at in (0, 1)] == ["yes", None]
    assert photo.rows(found, ["answer"]) == [{"answer": "yes"}, {"answer": None}]


@pytest.mark.parametrize(
    ("name", "column"),
    [("mantis", "id"), ("muir", "idx"), ("image-dc", "question_id"), ("nocaps", "image_id"),
     ("flickr", "img_id")],
)  # fmt: skip
def test_two_rows_of_one_name(root, tmp_path, name, column):
    params = copied(root, tmp_path, name, **{column: lambda held: [*held[:4], held[1], *held[5:]]})
    own = {"mantis": "mantis_eval_1"}.get(name, "1")
    words = f"{benchmarks.BENCHMARKS[name].name}: rows 1 and 4 have the same '{column}', '{own}'; "
    with pytest.raises(RedlibError, match=words) as caught:
        several.shots(name, 1, params) if name in benchmarks.SEVERAL else single.ask(
            name, 1, params
        )
    assert "\n" not in str(caught.value)


def plain_mme(root, ids, colours):
    """MME of plain pictures: a row for each id and colour, with two pairs, of two categories, and
    a white pair for every other."""
    others = [name for name in single.MME_PERCEPTION if name not in ("color", "artwork")]
    ids = ids + [f"{name}/9.png" for name in others for _ in "yn"]
    colours = colours + ["white"] * (len(ids) - len(colours))
    columns = {
        "question_id": ids,
        "image": [miniature.stored(Pillow.new("RGB", (8, 8), colour)) for colour in colours],
        "question": [f"Is it {colour}? Please answer yes or no." for colour in colours],
        "answer": ["Yes", "No"] * (len(ids) // 2),
        "category": ["color"] * 2 + ["artwork"] * 2 + [name for name in others for _ in "yn"],
    }
    features = dict.fromkeys(columns, Value("string")) | {"image": Image()}
    miniature.write(root, "MME", columns, features, "data/test-*")
    return real(root)


def test_one_id_in_two_categories_of_mme_is_two_pictures(tmp_path):
    ids = ["0001.png"] * 4
    params = plain_mme(tmp_path, ids, ["red", "red", "blue", "blue"])
    photos, asked = single.ask("mme", 10_000, params)
    colours = {one.id: one.image.getpixel((0, 0)) for one in photos if "0001" in one.id}
    assert colours == {"mme/color/0001.png": (255, 0, 0), "mme/artwork/0001.png": (0, 0, 255)}
    assert sorted((q.text.split("?")[0], q.image) for q in asked if "0001" in q.image) == [
        ("Is it blue", "mme/artwork/0001.png"), ("Is it blue", "mme/artwork/0001.png"),
        ("Is it red", "mme/color/0001.png"), ("Is it red", "mme/color/0001.png"),
    ]  # fmt: skip


def test_a_pair_of_mme_is_about_one_picture(tmp_path):
    ids = ["color/1.png", "color/1.png", "artwork/1.png", "artwork/1.png"]
    params = plain_mme(tmp_path, ids, ["red", "red", "blue", "green"])
    with pytest.raises(RedlibError, match="MME: rows 2 and 3 are about 'artwork/1.png' and have"):
        single.ask("mme", 10_000, params)


@pytest.mark.parametrize("name", ["pope", "seed", "mmbench"])
def test_rows_of_one_name_are_about_one_picture(root, tmp_path, name):
    """Told of the rows that are asked; the pictures of others are not read."""
    (first, *_), _ = single.ask(name, 1, real(root))
    photos, _ = single.ask(name, 10_000, real(root))
    rows = _rows_of(root, name, photos, but=first)
    other = miniature.stored(Pillow.new("RGB", (8, 8), "red"))
    params = copied(
        root, tmp_path, name,
        image=lambda held: [
            held[at] if at != rows[1] else [other] if name == "seed" else other
            for at in range(len(held))
        ],
    )  # fmt: skip
    assert [one.id for one in single.ask(name, 1, params)[0]] == [first.id]
    with pytest.raises(RedlibError, match="have different pictures") as caught:
        single.ask(name, 10_000, params)
    said = str(caught.value)
    told = [int(n) for n in said.split("rows ")[1].split(" are")[0].split(" and ")]
    assert rows[1] in told and set(told) <= set(rows) and "\n" not in said


def _rows_of(root, name, photos, *, but):
    """Numbers of the rows of a picture that several are about."""
    of = benchmarks.BENCHMARKS[name]
    found = reading.table(of, str(root), columns=of.columns)
    field = {"pope": "image_source", "seed": "data_id", "mmbench": "index"}[name]
    called = [
        str(value % 1_000_000 if name == "mmbench" else value[0] if name == "seed" else value)
        for value in reading.column(found, field)
    ]
    for one in photos:
        rows = [at for at, own in enumerate(called) if f"{name}/{own}" == one.id]
        if one.id != but.id and len(rows) > 1:
            return rows
    raise AssertionError("no picture has several rows")


def test_one_picture_may_be_stored_in_two_forms_or_once(root, tmp_path):
    """As another file with the same pixels, or not again for further rotations."""

    def change(held):
        first, second, third, *rest = held
        file = io.BytesIO()
        Pillow.open(io.BytesIO(second["bytes"])).save(file, "BMP")
        assert file.getvalue() != first["bytes"]
        return [first, {"bytes": file.getvalue(), "path": None}, None, *rest]

    asked = single.ask("mmbench", 10_000, copied(root, tmp_path, "mmbench", image=change))[1]
    assert asked == single.ask("mmbench", 10_000, real(root))[1]


@pytest.mark.parametrize("column", ["question", "B"])
def test_rotations_of_mmbench_are_of_one_question(root, tmp_path, column):
    params = copied(
        root, tmp_path, "mmbench", **{column: lambda held: [*held[:2], "another", *held[3:]]}
    )
    words = "MMBench: rows 0 and 2 have the same 'index' up to millions, 241, and are no rotations"
    with pytest.raises(RedlibError, match=words):
        single.ask("mmbench", 1, params)


def mantis_answered(root, folder, *, lettered, spoken):
    """A copy of Mantis in `folder` with these answers, to questions with options and without."""
    of = benchmarks.BENCHMARKS["mantis"]
    old = load_dataset(str(root / of.folder), data_files={of.split: of.files}, split=of.split)
    answers = [lettered if options else spoken for options in old["options"]]
    path = folder / of.folder / of.files.replace("*", "0.parquet")
    path.parent.mkdir(parents=True)
    old.remove_columns(["answer"]).add_column("answer", answers).to_parquet(path)


def test_an_open_question_needs_no_options_but_an_answer(root, tmp_path):
    mantis_answered(root, tmp_path, lettered="B", spoken=None)
    with pytest.raises(RedlibError, match="Mantis-Eval, row .: 'answer' must hold a text"):
        several.shots("mantis", 20, real(tmp_path))


@pytest.mark.parametrize("said", ["(B)", "B. two", "b"])
def test_a_letter_of_mantis_is_found_as_its_metric_finds_it(root, tmp_path, said):
    mantis_answered(root, tmp_path, lettered=said, spoken="two")
    asked = [
        asked for shots in several.shots("mantis", 20, real(tmp_path)) for asked in shots.asked
    ]
    assert {one.gold for one in asked} == {"B", "two"}


@pytest.mark.parametrize("name", ["mantis", "muir"])
def test_a_column_of_no_images(root, tmp_path, name):
    of = benchmarks.BENCHMARKS[name]
    old = load_dataset(str(root / of.folder), data_files={of.split: of.files}, split=of.split)
    (column,) = set(of.columns) & {"images", "image_list"}
    path = tmp_path / of.folder / of.files.replace("*", "0.parquet")
    path.parent.mkdir(parents=True)
    old.remove_columns([column]).add_column(column, [7] * len(old)).to_parquet(path)
    with pytest.raises(RedlibError, match=f"{of.name}: row .+ has 0 images; two or more are"):
        several.shots(name, 1, real(tmp_path))


@pytest.mark.parametrize(
    "value", [None, "", "x", 5.7, float("inf"), float("nan"), [1], True, False]
)
def test_what_is_no_whole_number(value):
    assert [values.whole(number, "index", "here") for number in (5, "5", 5.0)] == [5, 5, 5]
    with pytest.raises(RedlibError, match="here: 'index' must hold a whole number; got"):
        values.whole(value, "index", "here")
    for below in (-5, "-5", -5.0):
        with pytest.raises(RedlibError, match="here: 'index' must not be below zero; got "):
            values.whole(below, "index", "here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "none"}, "'answer' is no candidate; got 'none'"),
        ({"answer": None}, "'answer' must hold a text"),
        ({"question": None}, "'question' must hold a text"),
        ({"candidates": None}, "'candidates' has 0 options"),
        ({"candidates": ["it stays", None]}, "'candidates' must hold a text"),
        ({"video": None}, "'video' must hold a text"),
    ],
)
def test_values_that_make_no_question_about_a_film(tmp_path, change, words):
    where = miniature.mvbench(tmp_path, each=1)
    file = where / "json" / "action_antonym.json"
    file.write_text(json.dumps([one | change for one in json.loads(file.read_text())]))
    with pytest.raises(RedlibError, match=f"MVBench, action_antonym, row 0: {words}"):
        several.shots("film", 1, real(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; delete it and fetch it again"),
        ("null", "another file, without a list of records; fetch it again"),
        ('{"a": 1}', "another file, without a list of records"),
        ("[1, 2]", "another file, without a list of records"),
        ("[null]", "another file, without a list of records"),
        ('[{"video": ', "damaged or half downloaded, no JSON; fetch it again"),
        ("[]", "holds no data set in json/action_antonym.json"),
    ],
)
def test_a_file_of_films_that_holds_no_questions(tmp_path, text, words):
    where = miniature.mvbench(tmp_path, each=1)
    (where / "json" / "action_antonym.json").write_text(text)
    with pytest.raises(RedlibError, match=words) as caught:
        several.shots("film", 1, real(tmp_path))
    assert "action_antonym.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_film_that_is_none(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no film")
    with pytest.raises(RedlibError, match=r"a\.mp4: no film"):
        several.frames(str(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    "error", [av.error.DecoderNotFoundError, av.error.UndefinedError, av.error.EOFError, KeyError]
)
def test_what_pyav_raises_is_one_line(tmp_path, monkeypatch, error):
    def fails(film):
        raise error(1, "a reason") if issubclass(error, av.FFmpegError) else error("a reason")

    monkeypatch.setattr(av, "open", fails)
    words = rf"a\.mp4: no film that can be decoded \({error.__name__}\); fetch it again"
    with pytest.raises(RedlibError, match=words):
        several.frames(str(tmp_path / "a.mp4"))


def test_without_pyav_no_film_is_taken_for_damaged(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RedlibError, match=r"films need the package av; run: pip install"):
        several.shots("film", 1, real(root))


def test_no_folder_for_a_benchmark(tmp_path):
    with pytest.raises(RedlibError, match="POPE"):
        single.ask("pope", 1, real(tmp_path))


def test_pictures_of_a_folder(tmp_path):
    for name in ("b.png", "a.JPG"):
        Pillow.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [one.id for one in folder.own(tmp_path)] == ["a.JPG", "b.png"]
    assert folder.own(tmp_path)[0].image.size == (8, 8)
    (tmp_path / "a.JPG").write_bytes(b"cut")
    with pytest.raises(RedlibError, match=r"a\.JPG"):
        _ = folder.own(tmp_path)[0].image
    with pytest.raises(RedlibError, match="games_dir: no folder"):
        folder.own(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RedlibError, match="games_dir: no image"):
        folder.own(tmp_path / "empty")


def test_a_photo_travels_to_a_worker_as_a_reference(root):
    (first, *_), _ = single.ask("pope", 1, real(root))
    sent = pickle.dumps(first)
    assert len(sent) < 20_000
    assert np.array_equal(np.asarray(pickle.loads(sent).image), np.asarray(first.image))


def test_rows_and_photos_are_read_as_stored(root):
    of = benchmarks.BENCHMARKS["muir"]
    found = reading.table(of, str(root), columns=of.columns)
    assert photo.rows(found, ("idx", "options"))[3]["idx"] == "3"
    with pytest.raises(reading.Unreadable, match="3 images"):
        _ = photo.Photo("muir/0", found, 0, "image_list", 3).image
    assert isinstance(found.features["image_list"], List)


# --- what a run fetches --------------------------------------------------------------------------


def test_fetches():
    assert benchmarks.fetches(Params()).empty
    first = benchmarks.fetches(Params(data="real"))
    assert "MVBench" not in set(first["name"]) and first["gigabytes"].sum() > 30
    several_too = benchmarks.fetches(
        Params(data="real", model="llava-hf/llava-onevision-qwen2-7b-ov-hf")
    )
    assert {"Mantis-Eval", "MuirBench", "MVBench"} <= set(several_too["name"])
    only = benchmarks.fetches(Params(data="real", data_dir="sets"), notebooks=["07"])
    assert list(only["name"]) == ["MME", "Image-DC"] and only["gigabytes"].sum() == 0
    assert set(only["source"]) == {"folder sets"}
    for of in benchmarks.BENCHMARKS.values():
        names = of.ids if len(of.ids) == 1 else [i.split("/")[0] for i in of.ids]
        assert len(names) == 1 or names == ["lmms-lab-encoder", "lmms-lab"]


# --- the official metrics ------------------------------------------------------------------------


def _answered(root, rights):
    """Answers to all five benchmarks, right where `rights` draws so, as `pruning` writes them."""
    rng = np.random.default_rng(0)
    rows = []
    for name in benchmarks.FIVE:
        for q in single.ask(name, 10_000, real(root))[1]:
            wrong = {"yes": "no", "no": "yes"}.get(q.answer, "Z")
            said = q.answer if rng.random() < rights else wrong
            right = is_correct(q.task, said, q.answer, question=q.text)
            rows.append((q.task, q.image, q.group, -1, q.text, q.answer, said, float(right)))
    columns = ["task", "image", "group", "asked", "question", "gold", "answer", "correct"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(setting="base", method="unpruned", tokens=576, seed=0, kept=576)


def test_scores_are_the_official_ones(root):
    frame = _answered(root, 0.8)
    together = frame.groupby(["task", "image", "group"])["correct"].transform("min")
    frame["correct"] = frame["correct"].where(frame["task"] != "mmbench", together)
    told = scoring.scores(frame, resamples=50).set_index("task")["accuracy"]
    assert told["pope"] == pytest.approx(pope(frame).set_index("subset")["accuracy"]["mean"])
    table = mme(frame).set_index("category")
    categories = table.drop("perception")
    assert told["mme"] == pytest.approx(categories["score"].mean() / 200)
    units = frame[frame["task"] == "mmbench"].groupby("group")["correct"].min()
    assert (
        told["mmb"]
        == pytest.approx(frame.loc[frame["task"] == "mmbench", "correct"].mean())
        == pytest.approx(units.mean())
    )
    for task, name in (("seed", "seed"), ("rwqa", "realworldqa")):
        part = frame[frame["task"] == name]
        assert told[task] == pytest.approx((part["gold"] == part["answer"]).mean())
    five = told[["pope", "mme", "mmb", "seed", "rwqa"]]
    assert told["mean"] == pytest.approx(five.mean())
    assert 0.3 < told["mean"] < 0.95
