"""VQAv2 and COCO, in every form that they come in; and what is wrong with them, said in a line."""

import errno
import hashlib
import io
import json
import os
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pandas as pd
import photos
import pytest
from datasets import ClassLabel, Features, List, Value
from matplotlib.figure import Figure
from PIL import Image
from pyarrow import dataset, parquet

from redlib.data import COCO, VQAV2, copies, fetches, images, photographs, reading
from redlib.data.images import Images
from redlib.data.several import FOLDERS
from redlib.errors import RedlibError
from redlib.notebook import Session
from redlib.params import Params, check

MANY = photos.jpegs(24)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """What `datasets` keeps, kept apart from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def real(folder, **parameters):
    return Params(data="real", data_dir=str(folder), preset="paper", **parameters)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_both_forms_of_vqav2_are_one_data_set(tmp_path, kind):
    photos.vqav2(tmp_path / "hub", MANY, kind=kind)
    photos.vqav2_folder(tmp_path / "folder", MANY)
    one, two = (photographs.vqav2(str(tmp_path / form), seed=3) for form in ("hub", "folder"))
    assert one.numbers == two.numbers == tuple(sorted(MANY)) and one.digest == two.digest
    asked = set()
    for number, data in MANY.items():
        first, second = one.read(number), two.read(number)
        assert first.id == second.id and first.id.split(".")[0] == f"vqav2-{number}"
        assert first.data == second.data == data
        assert first.question == second.question and str(number) in first.question
        assert first.answers == second.answers == ("cup", *("cup", "star") * 5)
        asked.add(first.question.split()[0])
    assert asked == {"what", "how"}, "the questions of an image are drawn by lot"
    assert first.image.mode == "RGB" and "people say “cup”" in first.caption


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_both_forms_of_coco_are_one_data_set(tmp_path, kind):
    photos.coco(tmp_path / "hub", MANY, kind=kind)
    photos.coco_folder(tmp_path / "folder", MANY)
    one, two = (photographs.coco(str(tmp_path / form)) for form in ("hub", "folder"))
    assert one.numbers == two.numbers == tuple(sorted(MANY)) and one.digest == two.digest
    for number, data in MANY.items():
        first, second = one.read(number), two.read(number)
        assert first.id == second.id and first.id.split(".")[0] == f"coco-{number}"
        assert first.data == second.data == data and first.captions == second.captions
        assert len(first.captions) == 2 and first.caption.startswith(f"a cup number {number} ")


def _text(name):
    return lambda columns: columns.update({name: [str(value) for value in columns[name]]})


VARIANTS = {
    "numbers as text": ({"image_id": photos.TEXT}, _text("image_id")),
    "a class": ({"answer_type": ClassLabel(names=["number", "other"])}, None),
    "a struct of lists": (
        {"answers": {name: List(kind) for name, kind in photos.ANSWER.items()}},
        lambda columns: columns.update(
            answers=[
                {name: [one[name] for one in said] for name in photos.ANSWER}
                for said in columns["answers"]
            ]
        ),
    ),
    "plain answers": (
        {"answers": List(photos.TEXT)},
        lambda columns: columns.update(
            answers=[[one["answer"] for one in said] for said in columns["answers"]]
        ),
    ),
    "bytes without a type": (
        {"image": Value("binary")},
        lambda columns: columns.update(image=[one["bytes"] for one in columns["image"]]),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_features_read_alike(tmp_path, name):
    types, change = VARIANTS[name]
    photos.vqav2(tmp_path / "usual", MANY)
    photos.vqav2(tmp_path / "other", MANY, types=types, change=change)
    one, two = (photographs.vqav2(str(tmp_path / form), seed=0) for form in ("usual", "other"))
    assert one.digest == two.digest
    first, second = one.read(42), two.read(42)
    assert (first.data, first.question, first.answers) == (
        second.data, second.question, second.answers,
    )  # fmt: skip


@pytest.mark.parametrize("empty", [None, "column"])
def test_answers_are_optional(tmp_path, empty):
    def change(columns):
        for name in ("answers", "multiple_choice_answer"):
            columns[name] = [None] * len(columns[name])
            if empty == "column":
                del columns[name]

    photos.vqav2(tmp_path, MANY, change=change)
    found = photographs.vqav2(str(tmp_path), seed=0).read(42)
    assert found.answers == () and found.caption == f"asked “{found.question}”."


def test_captions_with_their_tokens_read_like_plain_ones(tmp_path):
    plain = {one["cocoid"]: [s["raw"] for s in one["sentences"]] for one in photos.listed(MANY)}
    photos.coco(
        tmp_path, MANY, types={"sentences": List(Features({"raw": photos.TEXT}))},
        change=lambda c: c.update(sentences=[[{"raw": t} for t in s] for s in c["sentences"]]),
    )  # fmt: skip
    found = photographs.coco(str(tmp_path))
    assert {number: list(found.read(number).captions) for number in MANY} == plain


def test_the_sample_is_the_lot_of_seed_role_and_number(tmp_path):
    photos.vqav2(tmp_path, MANY)
    of = {seed: Images(real(tmp_path, seed=seed)) for seed in (0, 1)}

    def numbers(seed, role, n, start=0):
        return [
            int(one.id.split("-")[1].split(".")[0]) for one in of[seed].take(role, n, start=start)
        ]

    literal = sorted(MANY, key=lambda n: hashlib.sha256(f"1/study/{n}".encode()).hexdigest())
    assert numbers(1, "study", 9) == literal[:9]
    assert numbers(1, "study", 4, start=3) == literal[3:7]
    assert len({tuple(numbers(*which, 9)) for which in ((0, "study"), (1, "study"), (1, "maps"))})
    ends = sorted(MANY, key=lambda n: hashlib.sha256(f"1/probed/{n}".encode()).hexdigest())
    assert (numbers(1, "probed", 4), numbers(1, "reference", 4)) == (ends[:4], ends[:-5:-1])
    drawn = of[1].drawn
    study = drawn[drawn["role"] == "study"]
    assert study["image"].tolist() == literal[:9] and study["place"].tolist() == list(range(9))
    assert (study["seed"] == 1).all() and (study["skipped"] == "").all()


def damaged(pictures, *numbers):
    return pictures | {n: pictures[n][: len(pictures[n]) // 2] for n in numbers}


@pytest.mark.parametrize("write", [photos.vqav2, photos.vqav2_folder])
def test_a_damaged_picture_is_left_out_and_named(tmp_path, capsys, write):
    (wanted,) = {n: n for n in sorted(MANY, key=lambda n: photographs.lot(0, "study", n))[:1]}
    write(tmp_path, damaged(MANY, wanted))
    album = Images(real(tmp_path))
    found = [one.id.split(".")[0] for one in album.take("study", 5)]
    assert len(found) == 5 and f"vqav2-{wanted}" not in found
    out = capsys.readouterr().out
    assert "1 of 6 pictures cannot be read" in out and f"vqav2-{wanted}" in out
    assert "truncated" in album.drawn.set_index("image").loc[wanted, "skipped"]


def test_over_one_per_cent_of_damaged_pictures_stops_the_run(tmp_path):
    first, second, *_ = sorted(MANY, key=lambda n: photographs.lot(0, "study", n))
    photos.vqav2_folder(tmp_path, damaged(MANY, first, second))
    with pytest.raises(RedlibError, match=rf"2 of 7 pictures .*{first}.*{second}.*fetch it again"):
        Images(real(tmp_path)).take("study", 5)


def test_a_row_without_a_picture_is_a_damaged_one(tmp_path, capsys):
    first = min(MANY, key=lambda n: photographs.lot(0, "study", n))

    def change(columns):
        for at, number in enumerate(columns["image_id"]):
            if number == first:
                columns["image"][at] = None

    photos.vqav2(tmp_path, MANY, change=change)
    assert len(Images(real(tmp_path)).take("study", 3)) == 3
    assert f"vqav2-{first}: no picture is stored" in capsys.readouterr().out


def _no_questions(folder):
    (folder / "VQAv2" / photographs.QUESTIONS).write_text('{"questions": [{"image_id": 1}]}')


def _half_json(folder):
    (folder / "VQAv2" / photographs.ANNOTATIONS).write_text('{"annotations": [')


def _another_json(folder):
    (folder / "VQAv2" / photographs.QUESTIONS).write_text('{"captions": []}')


def _each(file, key, **more):
    """Every record of a JSON file with other values."""

    def spoil(folder):
        path = folder / file
        listed = [one | more for one in json.loads(path.read_text())[key]]
        path.write_text(json.dumps({key: listed}))

    return spoil


ASKED = (f"VQAv2/{photographs.QUESTIONS}", "questions")
ANSWERED = (f"VQAv2/{photographs.ANNOTATIONS}", "annotations")
LISTED = (f"coco-karpathy/{photographs.KARPATHY}", "images")


def _no_annotations(folder):
    (folder / "VQAv2" / photographs.ANNOTATIONS).unlink()


def _folder_for_annotations(folder):
    _no_annotations(folder)
    (folder / "VQAv2" / photographs.ANNOTATIONS).mkdir()


def _no_answers(folder):
    (folder / "VQAv2" / photographs.ANNOTATIONS).write_text('{"annotations": []}')


def _no_pictures(folder):
    (folder / "VQAv2" / "val2014").rename(folder / "VQAv2" / "pictures")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_questions, "questions.json: an entry of 'questions' has no field 'question_id'"),
        (_half_json, "annotations.json: damaged or half downloaded, no JSON; fetch it again"),
        (_another_json, "questions.json: another file, without a list of records 'questions'"),
        (_each(*ASKED, question=None), "'question' must hold a text; got None"),
        (_each(*ASKED, image_id=float("inf")), "row 0: 'image_id' must hold a whole number"),
        (_each(*ASKED, image_id=5.7), "row 0: 'image_id' must hold a whole number; got 5.7"),
        (_each(*ASKED, question_id=[1]), "row 0: 'question_id' must hold a whole number"),
        (_each(*ANSWERED, question_id=[1]), "row 0: 'question_id' must hold a whole number"),
        (_each(*ASKED, image_id=True), "row 0: 'image_id' must hold a whole number; got True"),
        (_each(*ASKED, image_id=-5), "row 0: 'image_id' must not be below zero; got -5"),
        (
            _each(*ASKED, question_id=42_000),
            "VQAv2 validation: rows 0 and 1 have the same 'question_id', 42000; every row needs",
        ),
        (
            _each(*ANSWERED, question_id=7),
            "annotations.json: rows 0 and 1 have the same 'question_id', 7; every row needs its",
        ),
        (
            _each(*ASKED, question="what \ud83d is it?"),
            "'question' holds half a character, which is",
        ),
        (_each(*ANSWERED, answers=["\ud83d"]), "'answer' holds half a character"),
        (_each(*ANSWERED, multiple_choice_answer="\ud83d"), "'answer' holds half a character"),
        (_folder_for_annotations, "annotations.json: cannot be read (Is a directory); see who may"),
        (_no_answers, "annotations.json: answers none of the questions of v2_Open"),
        (_no_annotations, "annotations.json: no such file"),
        (_no_pictures, "data_dir: no folder 'val2014' with the images of VQAv2 validation"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path, spoil, words):
    photos.vqav2_folder(tmp_path, MANY)
    spoil(tmp_path)
    _complains(tmp_path, words)


@pytest.mark.parametrize("make", [photos.vqav2_folder, photos.coco_folder])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "no JSON; fetch it again"),
        ('{"%s": null}', "another file, without a list of records"),
        ('{"%s": [1]}', "another file, without a list of records"),
        ('{"%s": {"a": 1}}', "another file, without a list of records"),
        ('{"%s": [{"image_id": 1, "question_id": 2}]}', "has no field"),
    ],
)
def test_files_of_a_folder_that_hold_no_records(tmp_path, make, text, words):
    make(tmp_path, dict(list(MANY.items())[:1]))
    (file, key), read = {
        photos.vqav2_folder: (ASKED, lambda: photographs.vqav2(str(tmp_path), seed=0)),
        photos.coco_folder: (LISTED, lambda: photographs.coco(str(tmp_path))),
    }[make]
    (tmp_path / file).write_text(text.replace("%s", key))
    with pytest.raises(RedlibError, match=words) as caught:
        read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"filename": None}, "image 42: 'filename' must hold a text; got None"),
        ({"filepath": None}, "image 42: 'filepath' must hold a text"),
        ({"sentences": None}, "image 42: 'sentences' has no caption"),
        ({"sentences": [{"raw": ""}, {"raw": " \n"}]}, "image 42: 'sentences' has no caption"),
        ({"cocoid": None}, "row 0: 'cocoid' must hold a whole number"),
        ({"sentences": [{"raw": "a cup \ud83d"}]}, "image 42: 'raw' holds half a character"),
        ({"filename": "\ud83d.jpg"}, "image 42: 'filename' holds half a character"),
    ],
)
def test_values_that_make_no_picture_of_coco(tmp_path, change, words):
    photos.coco_folder(tmp_path, MANY)
    _each(*LISTED, split="train", **change)(tmp_path)
    with pytest.raises(RedlibError, match=f"COCO Karpathy train, {words}"):
        photographs.coco(str(tmp_path)).read(42)


def test_one_number_of_coco_in_two_rows(tmp_path):
    photos.coco_folder(tmp_path / "own", MANY)
    _each(*LISTED, split="train", cocoid=5)(tmp_path / "own")

    def change(columns):
        columns["cocoid"][3] = columns["cocoid"][1]

    photos.coco(tmp_path / "hub", MANY, change=change)
    for form, words in (("own", "rows 0 and 1 .* 'cocoid', 5;"), ("hub", "rows 1 and 3 .* 73;")):
        with pytest.raises(RedlibError, match=f"COCO Karpathy train: {words} every row needs its"):
            photographs.coco(str(tmp_path / form))


def test_a_number_of_vqav2_stands_for_one_picture(tmp_path):
    """Which may be stored in two forms, or in one of its rows alone."""
    file = io.BytesIO()
    Image.open(io.BytesIO(MANY[42])).save(file, "PNG")
    for name, other in (("png", file.getvalue()), ("none", b""), ("another", MANY[73])):

        def change(columns, other=other):
            asked = [n for n, image in enumerate(columns["image_id"]) if image == 42]
            drawn = min(
                asked, key=lambda n: photographs.lot(0, "question", columns["question_id"][n])
            )
            (left,) = set(asked) - {drawn}
            columns["image"][left] = {"bytes": other, "path": "x.jpg"}

        photos.vqav2(tmp_path / name, MANY, change=change)
    for name in ("png", "none"):
        assert photographs.vqav2(str(tmp_path / name), seed=0).read(42).data == MANY[42]
    words = (
        "VQAv2 validation: rows . and . are about image 42 and have different pictures; a number"
    )
    with pytest.raises(RedlibError, match=words):
        photographs.vqav2(str(tmp_path / "another"), seed=0).read(42)


def test_json_with_a_byte_order_mark(tmp_path):
    photos.vqav2_folder(tmp_path, MANY)
    photos.coco_folder(tmp_path, MANY)
    for file, _ in (ASKED, ANSWERED, LISTED):
        path = tmp_path / file
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert photographs.vqav2(str(tmp_path), seed=0).read(42).answers[0] == "cup"
    assert photographs.coco(str(tmp_path)).read(42).captions


def test_captions_that_say_nothing_are_none(tmp_path):
    photos.coco_folder(tmp_path, MANY)
    said = [{"raw": ""}, {"raw": " "}, {"raw": "a cup ."}, {"raw": "\t"}]
    _each(*LISTED, split="train", sentences=said)(tmp_path)
    assert photographs.coco(str(tmp_path)).read(42).captions == ("a cup .",)


def test_a_name_that_no_file_can_have_is_a_damaged_picture(tmp_path):
    photos.coco_folder(tmp_path, MANY)
    _each(*LISTED, split="train", filename="a\0.jpg")(tmp_path)
    with pytest.raises(photographs.Unreadable, match="coco-42: embedded null byte"):
        photographs.coco(str(tmp_path)).read(42)


def test_numbers_as_text_and_numbers_as_answers_in_a_folder(tmp_path):
    pictures = {42: MANY[42]}
    photos.vqav2_folder(tmp_path, pictures)
    usual = photographs.vqav2(str(tmp_path), seed=0)
    for file, key in (ASKED, ANSWERED):
        path = tmp_path / file
        listed = json.loads(path.read_text())[key]
        for one in listed:
            one |= {name: str(one[name]) for name in ("image_id", "question_id")}
            one["answers"] = [1, "two"]
        path.write_text(json.dumps({key: listed}))
    found = photographs.vqav2(str(tmp_path), seed=0)
    assert found.digest == usual.digest
    assert found.read(42).question == usual.read(42).question
    assert found.read(42).answers == ("cup", "1", "two")


@pytest.mark.parametrize("url", [None, "train2014/42.jpg", "http://[/42.jpg"])
def test_an_address_that_is_none(tmp_path, monkeypatch, url):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    photos.coco(tmp_path, {42: MANY[42]}, change=lambda columns: columns.update(url=[url]))
    monkeypatch.setattr(photographs, "_folder", lambda *_: None)
    with pytest.raises(RedlibError, match="'url' must hold a text|cannot be fetched"):
        photographs.coco(str(tmp_path)).read(42)


def _half(folder):
    (file,) = (folder / "VQAv2" / "data").glob("validation*")
    file.write_bytes(file.read_bytes()[:500])


def _another_split(folder):
    (file,) = (folder / "VQAv2" / "data").glob("validation*")
    file.rename(file.with_name("train-00000-of-00001.parquet"))


def _parts(*ends):
    """The one file of the split, under several names."""

    def spoil(folder):
        (file,) = (folder / "VQAv2" / "data").glob("validation*")
        data = file.read_bytes()
        file.unlink()
        for end in ends:
            file.with_name(f"validation-{end}.parquet").write_bytes(data)

    return spoil


HASHES = "8d8f8b3a12cd34ef", "0a1b2c3d4e5f6071", "ffffffffffffffff"


def _empty(folder):
    (file,) = (folder / "VQAv2" / "data").glob("validation*")
    file.write_bytes(b"")


def _beside(name, data=b"x", *, instead=False):
    """Another file in the copy, or instead of that of the split."""

    def spoil(folder):
        for file in (folder / "VQAv2" / "data").glob("validation*") if instead else ():
            file.unlink()
        (folder / "VQAv2" / name).write_bytes(data)

    return spoil


def _nothing(folder):
    (folder / "VQAv2").rename(folder / "vqa")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_half, "is damaged or half downloaded"),
        (
            _parts("00000-of-00002"),
            "holds 1 of the 2 files data/validation-*, not the one with -00001-of-00002; fetch the "
            "others too",
        ),
        (
            _parts(f"00000-of-00003-{HASHES[0]}", f"00001-of-00003-{HASHES[1]}"),
            "holds 2 of the 3 files data/validation-*, not the one with -00002-of-00003; fetch",
        ),
        (
            _parts("00000-of-00001", "00000-of-00002"),
            "holds validation-00000-of-00001.parquet beside validation-00000-of-00002.parquet, of "
            "two editions; delete the files of the older one",
        ),
        (
            _parts("00000-of-00001-aa", "00000-of-00001-bb"),
            "holds validation-00000-of-00001-aa.parquet beside "
            "validation-00000-of-00001-bb.parquet, the same part twice; delete the older",
        ),
        (
            _parts("00000-of-00001", "00001-of-00001"),
            "holds validation-00001-of-00001.parquet, none of the 1 files; move it elsewhere",
        ),
        (
            _parts("00000-of-00001", "new"),
            "holds validation-new.parquet, none of the 1 files; move it elsewhere",
        ),
        (
            _another_split,
            "holds no data set in data/validation-*; it should hold v2_OpenEnded_mscoco_val2014_",
        ),
        (_empty, "validation-00000-of-00001.parquet is empty; delete it and fetch it again"),
        (_beside(f"data/validation-{0:05}-of-00001.zip", b"PK", instead=True), "BadZipFile"),
        (_beside("VQAv2.py"), "Dataset scripts are no longer supported, but found VQAv2.py"),
        *(
            (_beside("README.md", f"---\n{card}\n---\n".encode()), "its README.md or another file")
            for card in (
                "[[[",
                "\tdataset_info: x",
                "dataset_info: [5]",
                "dataset_info:\n  features: 5",
                "configs: [5]",
                "a: *b",
                "a: !!python/object:os.system {}",
            )
        ),
        (_nothing, "VQAv2' for VQAv2 validation; it should hold v2_OpenEnded"),
    ],
)
def test_what_is_wrong_with_a_copy(tmp_path, spoil, words):
    photos.vqav2(tmp_path, MANY)
    spoil(tmp_path)
    _complains(tmp_path, words)


def test_parts_with_a_hash_in_their_names_are_one_split(tmp_path):
    photos.vqav2(tmp_path, MANY)
    _parts(*(f"{n:05}-of-00003-{of}" for n, of in enumerate(HASHES)))(tmp_path)
    found = reading.table(VQAV2, str(tmp_path), columns=("question_id",))
    assert len(found) == 3 * 2 * 24


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes to set")
def test_a_full_disk_is_no_damaged_data_set(tmp_path, cache):
    """The operating system refuses to write on, as it does when no space is left."""
    import resource

    photos.vqav2(tmp_path, MANY)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
    try:
        with pytest.raises(RedlibError) as caught:
            reading.table(VQAV2, str(tmp_path), columns=())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(caught.value) == (
        f"VQAv2 validation: the cache folder of datasets, {cache}, cannot be written (File too "
        "large); make room there, or set HF_DATASETS_CACHE to another folder; the data set is whole"
    )
    assert len(reading.table(VQAV2, str(tmp_path), columns=())) == 48


def test_a_file_in_the_path_of_the_cache(tmp_path, monkeypatch):
    photos.vqav2(tmp_path, MANY)
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "below")
    _complains(tmp_path, "file/below, cannot be written (Not a directory); make room there")


FILE_SYSTEM = (
    (errno.ENOSPC, None, "cannot be written (No space left on device)"),
    (errno.EACCES, "cache/x/y.lock", "cannot be written (Permission denied)"),
    (errno.ENOENT, "cache", "cannot be written (No such file or directory)"),
    (errno.EACCES, "", "cannot be written (Permission denied)"),
    (errno.EACCES, "VQAv2/x.parquet", "VQAv2/x.parquet cannot be read (Permission denied)"),
)


@pytest.mark.parametrize(
    ("number", "name", "words", "wrapped"),
    [
        *((*case, wrapped) for case in FILE_SYSTEM for wrapped in (False, True)),
        (None, None, "cannot be written (Not enough disk space", False),  # said by `datasets`
    ],
)
def test_errors_of_the_file_system(tmp_path, monkeypatch, number, name, words, wrapped):
    """Named is a file of the cache, a folder above it, one of the data set, or none."""
    photos.vqav2(tmp_path, MANY)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def refuse(*_, **__):
        if number is None:
            raise OSError("Not enough disk space. Needed: 9 TB")
        raise OSError(number, os.strerror(number), None if name is None else tmp_path / name)

    # Where a file's rows are read, `datasets` wraps what fails; where its columns are, it does not.
    where = (dataset, "ParquetFileFormat") if wrapped else (parquet, "read_schema")
    monkeypatch.setattr(*where, refuse)
    _complains(tmp_path, words)


def test_a_folder_that_may_not_be_read_is_not_called_empty(tmp_path, monkeypatch):
    photos.vqav2(tmp_path / "hub", MANY)
    photos.vqav2_folder(tmp_path / "own", MANY)
    access = os.access
    for shut in ("hub/VQAv2", "hub/VQAv2/data", f"own/VQAv2/{photographs.QUESTIONS}",
                 "own/VQAv2/val2014"):  # fmt: skip
        path = tmp_path / shut
        monkeypatch.setattr("os.access", lambda p, mode, path=path: p != path and access(p, mode))
        _complains(tmp_path / shut.partition("/")[0], f"{str(path)!r} cannot be read: Permission")


def test_the_state_of_copies_is_names_sizes_and_times(tmp_path):
    def put(name, size, seconds):
        path = tmp_path / name
        if size is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
        os.utime(path, (seconds, seconds))

    put("VQAv2/data/validation-00000-of-00001.parquet", 3, 1)
    put("VQAv2/data/test-00000-of-00001.parquet", 3, 2)
    put(f"coco-karpathy/{photographs.KARPATHY}", 5, 3)
    put("train2014/1.jpg", 7, 4)
    put("train2014", None, 5)
    put("POPE/data/test-00000-of-00001.parquet", 9, 6)
    put("MVBench/json/action_count.json", 11, 7)
    put("MVBench/perception/videos/a.mp4", 13, 8)
    put("MVBench/perception/videos", None, 9)
    second = 1_000_000_000
    vqav2 = ("VQAv2 validation/validation-00000-of-00001.parquet", 3, second)
    coco = [
        ("COCO Karpathy train/dataset_coco.json", 5, 3 * second),
        ("COCO Karpathy train/train2014", 0, 5 * second),
        ("COCO Karpathy train/train2014/1.jpg", 7, 4 * second),
    ]
    pope = ("POPE/test-00000-of-00001.parquet", 9, 6 * second)
    films = [
        ("MVBench/action_count.json", 11, 7 * second),
        ("MVBench/videos", 0, 9 * second),
        ("MVBench/videos/a.mp4", 13, 8 * second),
    ]
    one = real(tmp_path)
    assert copies.state(one, ["04"]) == [vqav2]
    assert copies.state(one, ["05"]) == [vqav2, *coco, pope]
    assert copies.state(one, ["07"]) == []
    several = real(tmp_path, model="llava-onevision")
    assert copies.state(several, ["06"]) == [*coco, pope, *films]
    assert copies.state(Params(), ["05"]) == copies.state(Params(data="real"), ["05"]) == []
    before = copies.state(one, ["05"])
    put("train2014/1.jpg", 7, 10)  # over the old one, of which the folder keeps no trace
    put("train2014", None, 5)
    assert [new for new in copies.state(one, ["05"]) if new not in before] == [
        ("COCO Karpathy train/train2014/1.jpg", 7, 10 * second)
    ]
    (tmp_path / "train2014" / "2.jpg").symlink_to(tmp_path / "nowhere")
    put("train2014", None, 5)
    assert len(copies.state(one, ["05"])) == len(before)


def _put(path, *, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_folders_that_are_empty_or_lack_a_part_are_no_copies(tmp_path):
    """Told by names, one after the other until nothing is missing; and no file is read."""
    params = real(tmp_path, model="llava-onevision")
    numbers = ["04", "05", "06", "07"]

    def said():
        with pytest.raises(RedlibError) as caught:
            copies.check(params, numbers)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for source in copies.needed(params, numbers):
        folder = tmp_path / source.folder
        assert f"data_dir: no folder {str(folder)!r} for {source.name}; " in said()
        folder.mkdir()
        for task in FOLDERS if source.name == "MVBench" else ("",):
            name = source.files.format(task)
            assert f"{source.name}: {folder} holds no data set in {name}; it should " in said()
            _put(folder / name.replace("*", "00000-of-00002.parquet"))
            if "*" in name:
                assert f"{source.name}: {folder} holds 1 of the 2 files {name}, not" in said()
                _put(folder / name.replace("*", "00001-of-00002.parquet"))
        if source is COCO:
            assert "data_dir: no folder 'train2014' with the images of COCO Karpathy" in said()
            (tmp_path / "train2014").mkdir()
    copies.check(params, numbers)
    _put(tmp_path / "POPE" / "data" / "test-00001-of-00002.parquet", data=b"")
    assert "test-00001-of-00002.parquet is empty; delete it and fetch it again" in said()


def test_the_makers_own_forms_are_there_or_told(tmp_path):
    def said(number):
        with pytest.raises(RedlibError) as caught:
            copies.check(real(tmp_path), [number])
        return str(caught.value)

    _put(tmp_path / "VQAv2" / photographs.QUESTIONS)
    assert f"data_dir: no file {photographs.ANNOTATIONS!r} in " in said("04")
    _put(tmp_path / "VQAv2" / photographs.ANNOTATIONS)
    assert "data_dir: no folder 'val2014' with the images of VQAv2 validation" in said("04")
    (tmp_path / "val2014").mkdir()
    copies.check(real(tmp_path), ["04"])
    assert "it should hold dataset_coco.json, or be a copy of the repository yerevann/coco-" in (
        told := said("01")
    )
    assert told.endswith(", and in either form train2014/ with the images")
    _put(tmp_path / "coco-karpathy" / photographs.KARPATHY)
    assert "data_dir: no folder 'train2014' with the images of COCO Karpathy" in said("01")
    (tmp_path / "coco-karpathy" / "images" / "train2014").mkdir(parents=True)
    copies.check(real(tmp_path), ["01"])


@pytest.mark.parametrize("name", ["image", "image_id", "question_id", "question"])
def test_a_missing_column_is_named(tmp_path, name):
    photos.vqav2(tmp_path, MANY, change=lambda columns: columns.pop(name))
    _complains(tmp_path, f"VQAv2 validation: no column '{name}'; there are ")


@pytest.mark.parametrize("name", ["cocoid", "filepath", "filename", "sentences", "url"])
def test_a_missing_column_of_coco_is_named(tmp_path, name):
    photos.coco(tmp_path, MANY, change=lambda columns: columns.pop(name))
    with pytest.raises(RedlibError, match=f"^COCO Karpathy train: no column '{name}'; there are "):
        photographs.coco(str(tmp_path))


def test_numbers_have_to_be_numbers(tmp_path):
    photos.vqav2(tmp_path, MANY, types={"image_id": photos.TEXT},
                 change=lambda c: c.update(image_id=[f"x{n}" for n in c["image_id"]]))  # fmt: skip
    _complains(tmp_path, "VQAv2 validation, row 0: 'image_id' must hold a whole number; got 'x42'")


def test_too_small_a_data_set_names_the_parameter(tmp_path):
    photos.vqav2(tmp_path, MANY)
    for role, start, words in (
        ("study", 0, "study_images: 25 needs 25 images of VQAv2 validation; the data set has 24: "),
        ("probed", 7, "probe_scenes: 2 needs 25 images of VQAv2 .* from place 7 on; the data set"),
        (
            "reference",
            0,
            "data: a reference of fixed size needs 25 images .* has 24: give it whole",
        ),
    ):
        with pytest.raises(RedlibError, match=words):
            Images(real(tmp_path, study_images=25)).take(role, 25, start=start)


def test_training_and_calibration_share_no_image(tmp_path):
    photos.coco_folder(tmp_path, dict(list(MANY.items())[:12]))
    few = {"codebook_images": 7, "n_calibration": 5}
    album = Images(real(tmp_path, **few))
    training = {one.id for one in album.take("training", 7)}
    calibration = {one.id for one in album.take("calibration", 5)}
    assert len(training) == 7 and len(calibration) == 5 and not training & calibration
    words = (
        "n_calibration: 6 and codebook_images: 7 need 6 and 7 images of COCO Karpathy train and "
        "may share none; the data set has 12: ask for fewer"
    )
    with pytest.raises(RedlibError, match=words):  # whether or not this session draws the others
        Images(real(tmp_path, **few | {"n_calibration": 6})).take("calibration", 6)
    with pytest.raises(RedlibError, match="codebook_images: 7 and n_calibration: 5 need 8 and 5"):
        album.take("training", 8)
    assert (album.drawn["role"] == "training").sum() == 7, "what was refused is not noted as drawn"


def test_reference_images_are_none_of_those_that_are_probed(tmp_path):
    photos.vqav2(tmp_path, MANY)
    album = Images(real(tmp_path, probe_scenes=4))
    album.take("probed", 4, start=10)  # places 10 to 13 of 24, so that 10 are left at the end
    assert len(album.take("reference", 10)) == 10
    words = "data: a reference of fixed size and probe_scenes: 4 need 11 and 14 images of VQAv2"
    with pytest.raises(RedlibError, match=words):
        album.take("reference", 11)


def _complains(folder, words):
    with pytest.raises(RedlibError) as caught:
        Images(real(folder)).take("study", 2)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_hub_offline_and_without_a_cache(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(RedlibError, match="lmms-lab-encoder/VQAv2 is not cached .*data_dir"):
        Images(Params(data="real", preset="paper")).take("study", 1)


def test_images_of_coco_are_fetched_one_by_one_and_kept(tmp_path, cache, monkeypatch):
    """From a server of this machine, through the loader's own call."""
    server_of = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), server_of) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        photos.coco(tmp_path, MANY, host=host)
        url = f"{host}/train2014/COCO_train2014_{42:012d}.jpg"
        path = photographs._fetched(url)
        assert path.read_bytes() == MANY[42] and cache in path.parents
        with pytest.raises(photographs.Unreadable, match="404"):
            photographs._fetched(url.replace("42.jpg", "43.jpg"))
        torn = f"{host}/train2014/COCO_train2014_{44:012d}.jpg"
        (tmp_path / "train2014" / torn.rsplit("/", 1)[1]).write_bytes(MANY[42])
        with monkeypatch.context() as patch:
            patch.setattr(SimpleHTTPRequestHandler, "copyfile", lambda *_: None)
            with pytest.raises(RedlibError, match="cannot be fetched .* set data_dir"):
                photographs._fetched(torn)
        server.shutdown()
    assert photographs._fetched(url) == path, "what was fetched needs no connection"
    missing = url.replace("42.jpg", "73.jpg")
    with pytest.raises(RedlibError, match="cannot be fetched .* set data_dir"):
        photographs._fetched(missing)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(RedlibError, match="offline, and .*73.jpg is not in"):
        photographs._fetched(missing)


def test_a_table_of_other_photographs_is_not_taken_for_these(tmp_path, monkeypatch, tiny_vlm):
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path / "runs"))
    photos.vqav2(tmp_path / "a", MANY)
    photos.vqav2(tmp_path / "b", dict(list(MANY.items())[:20]))
    rows = {}
    for name, seed in (("a", 0), ("b", 0), ("a", 1)):
        session = Session("04", real(tmp_path / name, seed=seed))
        session._model = tiny_vlm
        rows[name, seed] = session.of_images("study")
        if rows[name, seed] == rows["a", 0]:
            store = session.store("patches", **session.of_images("study"))
            store.compute(["x"], lambda _: photos_table())
        else:
            with pytest.raises(RedlibError, match="photographs"):
                session.store("patches", **session.of_images("study"))
    assert len({json.dumps(key) for key in rows.values()}) == 3
    assert Session("04", Params()).of_images("study") == {}, "scenes keep their tables"
    session.images("study", 3)
    written = (session.figures / "photographs-study.csv").read_text().splitlines()
    assert len(written) == 4 and written[0] == ",".join(images._COLUMNS)
    assert all(",data_dir,folder VQAv2," in line for line in written[1:])
    session.asked = ["POPE"]  # as an evaluation notes what it asks
    note = dict.fromkeys(("title", "caption", "reading", "alt"), "told")
    versions = session.save(photos_table(), "any", **note).note["versions"]
    assert versions["POPE"] == "folder POPE" and versions["VQAv2 validation"] == "folder VQAv2"


def test_a_picture_changed_under_its_number_is_another(tmp_path):
    """By its id, which is that of its rows; so is one with another question or caption."""
    photos.vqav2_folder(tmp_path, MANY)
    photos.coco_folder(tmp_path, MANY)

    def ids():
        album = Images(real(tmp_path))
        return [one.id for role in ("study", "training") for one in album.take(role, 3)]

    before = ids()
    for at, below in ((1, "VQAv2/val2014/COCO_val"), (4, "coco-karpathy/train2014/COCO_train")):
        number = int(before[at].split("-")[1].split(".")[0])
        (file,) = (tmp_path / below).parent.glob(f"*{number:012d}.jpg")
        file.write_bytes(MANY[42] if number != 42 else MANY[73])
    after = ids()
    assert [a == b for a, b in zip(before, after, strict=True)] == [1, 0, 1, 1, 0, 1]
    assert [one.split(".")[0] for one in before] == [one.split(".")[0] for one in after]
    said = ({"captions": ("a cup",)}, {"captions": ("a star",)}, {"question": "what?"})
    found = [photographs._picture("coco-1", MANY[42], **words).id for words in said]
    assert len(set(found)) == 3 and all(one.startswith("coco-1.") for one in found)


def test_figures_of_photographs_say_image(tmp_path, monkeypatch):
    """Wherever it is written, and nowhere else: a figure of scenes keeps its bytes."""
    monkeypatch.setenv("REDLIB_RUNS", str(tmp_path / "runs"))
    photos.vqav2(tmp_path, MANY)
    texts = dict.fromkeys(("title", "reading", "alt"), "A scene, of 2 scenes.")
    saved, titles = {}, {}
    for name, params in (("drawn", Params()), ("real", real(tmp_path))):
        figure = Figure()
        ax = figure.subplots()
        ax.bar([0], [1], label="a scene")
        ax.set(title="Over 2 scenes", xlabel="objects in the scene", ylabel="scenery")
        ax.legend()
        session = Session("04", params)
        session.images("study", 1)
        note = texts | {"caption": "Scenes."}
        saved[name] = session.save(figure, "any", data=photos_table(), **note)
        titles[name] = [ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]
        titles[name] += [text.get_text() for text in ax.get_legend().get_texts()]
        heads = session.save(pd.DataFrame({"Test scenes": [1]}), "heads", **note).csv
        assert heads.splitlines()[0] == {"drawn": "Test scenes", "real": "Test images"}[name]
    assert titles["drawn"] == ["Over 2 scenes", "objects in the scene", "scenery", "a scene"]
    assert titles["real"] == ["Over 2 images", "objects in the image", "scenery", "an image"]
    assert saved["drawn"].note["caption"] == "Scenes."
    note = saved["real"].note
    assert note["caption"].startswith("Images. Photographs (VQAv2 validation)")
    assert note["title"] == note["reading"] == note["alt"] == "An image, of 2 images."


def photos_table():
    return pd.DataFrame({"value": [1.0]})


def test_fetches_says_what_and_how_much(tmp_path):
    assert fetches(Params()).empty
    params = Params(data="real", preset="paper", codebook_images=500, attention_positions=1000)
    found = fetches(params, notebooks=["04", "05"]).set_index("name")
    assert found["id"].tolist() == ["lmms-lab-encoder/VQAv2", "yerevann/coco-karpathy"]
    assert found["split"].tolist() == ["validation", "train"]
    np.testing.assert_allclose(found["gigabytes"], [6.9, 0.017 + 500 * 13 / 82_783], atol=1e-3)
    assert list(fetches(params, notebooks=["02"])["name"]) == ["VQAv2 validation"]
    assert list(fetches(params, notebooks=["06"])["name"]) == ["COCO Karpathy train"]
    more = params.model_copy(update={"n_calibration": 100, "stability_images": 150})
    for notebooks, n in ((["06"], 600), (["08"], 651), (["05", "06", "08"], 651)):
        size = fetches(more, notebooks=notebooks).set_index("name")["gigabytes"]
        assert size["COCO Karpathy train"] == pytest.approx(0.017 + n * 13 / 82_783, abs=1e-3)
    photos.vqav2(tmp_path, MANY)
    held = fetches(real(tmp_path))
    assert (held["gigabytes"] == 0).all() and (held["source"] == f"folder {tmp_path}").all()
    assert held["disk"].tolist() == [33.9, 0.0], "a copy of the hub's files is unpacked once more"


def test_thresholds_are_not_calibrated_on_photographs():
    with pytest.raises(RedlibError, match="tau_prob cannot be calibrated with data: real.*preset"):
        check({"data": "real"})
    assert check({"data": "real", "preset": "paper"}).tau_prob == 0.1
