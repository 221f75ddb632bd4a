"""VQAv2 and COCO Karpathy in miniature: the documented feature types, written by `datasets`.

The columns and types are those of the dataset cards. The pictures are drawn scenes under COCO's
numbering; nothing in these files was ever published.
"""

import io
import json
from pathlib import Path

import yaml
from datasets import Dataset, Features, Image, List, Value

from redlib.tabletop import scenes

TEXT, WHOLE = Value("string"), Value("int64")
ANSWER = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": WHOLE}


def jpegs(n, *, side=64):
    """number -> the bytes of a JPEG file; every picture another one, in numbers with gaps."""
    found = {}
    for at, scene in enumerate(scenes("test", n, start=7_000_000)):
        file = io.BytesIO()
        scene.image.resize((side + at % 7, side)).save(file, "JPEG")
        found[42 + 31 * at] = file.getvalue()
    return found


def asked(pictures):
    """Two questions an image, as the maker's two JSON files hold them together."""
    return [
        {
            "image_id": number, "question_id": 1000 * number + k, "question": f"{what} {number}?",
            "question_type": what, "answer_type": "other", "multiple_choice_answer": "cup",
            "answers": [
                {"answer": said, "answer_confidence": "yes", "answer_id": place}
                for place, said in enumerate(("cup", "star") * 5, 1)
            ],
        }
        for number in pictures for k, what in enumerate(("what is", "how many"))
    ]  # fmt: skip


def vqav2(root, pictures, *, types=None, change=None, kind="parquet"):
    """A copy of the repository. types: other features of some columns; change: called with the
    columns before they are written."""
    rows = asked(pictures)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["image"] = [
        {"bytes": pictures[row["image_id"]], "path": f"{row['image_id']}.jpg"} for row in rows
    ]
    features = dict.fromkeys(columns, TEXT) | {
        "image_id": WHOLE, "question_id": WHOLE, "answers": List(ANSWER), "image": Image(),
    }  # fmt: skip
    return _write(Path(root) / "VQAv2", "validation", columns, features, types, change, kind)


def coco(root, pictures, *, types=None, change=None, kind="parquet", host="http://127.0.0.1:9"):
    """A copy of the repository, and beside it, in train2014/, the images that it does not hold."""
    columns = {"filepath": [], "sentids": [], "filename": [], "imgid": [], "split": [],
               "sentences": [], "cocoid": [], "url": []}  # fmt: skip
    for place, entry in enumerate(listed(pictures)):
        captions = [one["raw"] for one in entry["sentences"]]
        url = f"{host}/train2014/{entry['filename']}"
        row = entry | {"sentids": [place], "imgid": place, "sentences": captions, "url": url}
        for name in columns:
            columns[name].append(row[name])
    features = dict.fromkeys(columns, TEXT) | {
        "sentids": List(WHOLE), "sentences": List(TEXT), "imgid": WHOLE, "cocoid": WHOLE,
    }  # fmt: skip
    files(Path(root) / "train2014", "COCO_train2014_{:012d}.jpg", pictures)
    return _write(Path(root) / "coco-karpathy", "train", columns, features, types, change, kind)


def listed(pictures):
    """Entries of dataset_coco.json."""
    return [
        {
            "cocoid": number, "filepath": "train2014", "split": "train",
            "filename": f"COCO_train2014_{number:012d}.jpg",
            "sentences": [{"raw": f"a cup number {number} on a table , seen {how}", "tokens": []}
                          for how in ("often", "rarely")],
        }
        for number in pictures
    ]  # fmt: skip


def vqav2_folder(root, pictures):
    """The form in which the makers publish VQAv2."""
    folder = Path(root) / "VQAv2"
    files(folder / "val2014", "COCO_val2014_{:012d}.jpg", pictures)
    questions = [{k: row[k] for k in ("image_id", "question_id", "question")}
                 for row in asked(pictures)]  # fmt: skip
    answers = [{k: v for k, v in row.items() if k != "question"} for row in asked(pictures)]
    for name, key, entries in (
        ("v2_OpenEnded_mscoco_val2014_questions.json", "questions", questions),
        ("v2_mscoco_val2014_annotations.json", "annotations", answers[::-1]),
    ):
        (folder / name).write_text(json.dumps({"info": {}, key: entries}))
    return folder


def coco_folder(root, pictures):
    """The form in which the Karpathy splits are published; one image belongs to another split."""
    folder = Path(root) / "coco-karpathy"
    files(folder / "train2014", "COCO_train2014_{:012d}.jpg", pictures)
    other = listed([7])[0] | {"split": "val", "filepath": "val2014"}
    entries = {"dataset": "coco", "images": [other, *listed(pictures)[::-1]]}
    (folder / "dataset_coco.json").write_text(json.dumps(entries))
    return folder


def files(folder, name, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in pictures.items():
        (folder / name.format(number)).write_bytes(data)


def _write(folder, split, columns, features, types, change, kind):
    """One file of the split, another split beside it that nobody asks for, and the card."""
    if change is not None:
        change(columns)
    features = {k: v for k, v in (features | (types or {})).items() if k in columns}
    table = Dataset.from_dict(columns, features=Features(features))
    (folder / "data").mkdir(parents=True)
    if kind == "parquet":
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    else:
        table.save_to_disk(folder / "saved")
        (file,) = (folder / "saved").glob("*.arrow")
        file.rename(folder / "data" / f"{split}-00000-of-00001.arrow")
    (folder / "data" / f"test-00000-of-00001.{kind}").write_bytes(b"not asked for")
    splits = [{"name": name, "num_bytes": 1, "num_examples": 1} for name in (split, "test")]
    card = {
        "dataset_info": {"features": table.info.features._to_yaml_list(), "splits": splits},
        "configs": [{"config_name": "default", "data_files": [
            {"split": name, "path": f"data/{name}-*"} for name in (split, "test")]}],
    }  # fmt: skip
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n", encoding="utf-8")
    return folder
