"""The paper's benchmarks in miniature: files of the documented feature types, by `datasets`.

Every set is a copy of its repository as `hf download` makes one, a README with the card and Parquet
or JSON files under the repository's own names, so that the loaders read it by the call with which
they read the hub. The pictures are drawn scenes; nothing in these files was ever published.
"""

import json
from pathlib import Path

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from redlib.data.several import FOLDERS
from redlib.tabletop import scenes

TEXT = Value("string")
PICTURES = 12


def pictures(n, start=7_000_000):
    return [scene.image for scene in scenes("test", n, start=start)]


def write(root, name, columns, features, files, *, other=()):
    """A repository's folder: one Parquet file, and a card that counts further splits too."""
    folder = Path(root) / name
    path = folder / files.replace("*", "00000-of-00001.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Dataset.from_dict(columns, features=Features(features))
    table.to_parquet(path)
    split = files.rsplit("/", 1)[1].removesuffix("-*")
    splits = [{"name": s, "num_bytes": 1, "num_examples": len(table)} for s in (split, *other)]
    card = {
        "dataset_info": {"features": table.info.features._to_yaml_list(), "splits": splits},
        "configs": [{"config_name": "default", "data_files": [{"split": split, "path": files}]}],
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n", encoding="utf-8")
    return folder


def pope(root, *, images=PICTURES):
    """Three subsets about the same images, each with two questions, yes before no."""
    shown = pictures(images)
    asked = [
        (image, question, answer, subset)
        for subset in ("adversarial", "popular", "random")
        for image in range(images)
        for question, answer in (("Is there a cup in the image?", "yes"),
                                 (f"Is there a {subset} boat in the image?", "no"))
    ]  # fmt: skip
    columns = {
        "id": [str(n) for n in range(len(asked))],
        "question_id": [str(n) for n in range(len(asked))],
        "question": [question for _, question, _, _ in asked],
        "answer": [answer for _, _, answer, _ in asked],
        "image_source": [f"COCO_val2014_{image:012}" for image, *_ in asked],
        "image": [shown[image] for image, *_ in asked],
        "category": [subset for *_, subset in asked],
    }
    return write(root, "POPE", columns, dict.fromkeys(columns, TEXT) | {"image": Image()},
                 "data/test-*")  # fmt: skip


def mmbench(root, *, index="int64", nothing=None):
    """Questions of two and of four options in all rotations. index: its type, which is a text in
    one of the published variants; nothing: how a missing option is written."""
    rows = []
    for number, shown in enumerate(pictures(PICTURES), start=241):
        options = ["a cup", "a star"] if number % 2 else ["a cup", "a star", "a moon", "a key"]
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            row = dict(zip("ABCD", turned + [nothing] * (4 - len(turned)), strict=True))
            row |= {
                "index": number + turn * 1_000_000,
                "question": "What is it?",
                "hint": nothing if number % 3 else "It is on a table.",
                "answer": "ABCD"[turned.index("a cup")],
                "category": "object_localization", "image": shown, "source": "x",
                "L2-category": "finegrained_perception", "comment": nothing, "split": "dev",
            }  # fmt: skip
            rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if index == "string":
        columns["index"] = [str(n) for n in columns["index"]]
    features = dict.fromkeys(columns, TEXT) | {"image": Image(), "index": Value(index)}
    return write(root, "MMBench", columns, features, "en/dev-*", other=("test",))


def seed(root, *, label=False):
    """A list of one image a row, and films among them, whose rows have eight. label: the answer as
    a class label, as some copies have it."""
    shown = pictures(PICTURES)
    films = [n % 5 == 4 for n in range(PICTURES)]
    columns = {
        "answer": ["ABCD"[n % 4] for n in range(PICTURES)],
        **{f"choice_{c}": [f"{c}{n}" for n in range(PICTURES)] for c in "abcd"},
        "data_id": [[f"{n}_1"] * (8 if film else 1) for n, film in enumerate(films)],
        "data_type": ["video" if film else "image" for film in films],
        "question": ["What is in the picture?"] * PICTURES,
        "question_id": [str(n) for n in range(PICTURES)],
        "question_type_id": [n % 3 for n in range(PICTURES)],
        "image": [[shown[n]] * (8 if film else 1) for n, film in enumerate(films)],
        "segment": [[1, 2] if film else None for film in films],
    }
    features = dict.fromkeys(columns, TEXT) | {
        "data_id": List(TEXT), "image": List(Image()), "question_type_id": Value("int16"),
        "segment": List(Value("int64")),
        "answer": ClassLabel(names=list("ABCD")) if label else TEXT,
    }  # fmt: skip
    return write(root, "SEED-Bench", columns, features, "data/test-*")


def mme(root, *, categories=("existence", "OCR", "code_reasoning")):
    shown = pictures(PICTURES)
    rows = [
        (f"{categories[n % len(categories)]}/{n:04}.png", shown[n], question, answer,
         categories[n % len(categories)])
        for n in range(PICTURES)
        for question, answer in (("Is there a cup? Please answer yes or no.", "Yes"),
                                 ("Is there a boat? Please answer yes or no.", "No"))
    ]  # fmt: skip
    names = ("question_id", "image", "question", "answer", "category")
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    features = dict.fromkeys(names, TEXT) | {"image": Image()}
    return write(root, "MME", columns, features, "data/test-*")


def realworldqa(root):
    shown = pictures(PICTURES)
    choice = (
        "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the "
        "correct option and nothing else."
    )
    number = "How many cups?\nPlease answer directly with a single word or number."
    columns = {
        "image": shown,
        "question": [choice if n % 2 else number for n in range(PICTURES)],
        "answer": ["B" if n % 2 else "2" for n in range(PICTURES)],
        "image_path": [f"{n}.webp" for n in range(PICTURES)],
    }
    features = dict.fromkeys(columns, TEXT) | {"image": Image()}
    return write(root, "RealWorldQA", columns, features, "data/test-*")


def nocaps(root):
    columns = {
        "image": pictures(PICTURES),
        "image_coco_url": ["https://example.org"] * PICTURES,
        "image_id": list(range(PICTURES)),
        "image_height": [336] * PICTURES,
        "annotations_ids": [[n, n + 100] for n in range(PICTURES)],
        "annotations_captions": [[f"A cup number {n}.", "Some cups."] for n in range(PICTURES)],
    }
    features = {
        "image": Image(), "image_coco_url": TEXT, "image_id": Value("int32"),
        "image_height": Value("int32"), "annotations_ids": List(Value("int32")),
        "annotations_captions": List(TEXT),
    }  # fmt: skip
    return write(root, "NoCaps", columns, features, "data/validation-*", other=("test",))


def flickr(root):
    columns = {
        "image": pictures(PICTURES),
        "caption": [[f"A star beside {n} cups.", "A star."] for n in range(PICTURES)],
        "sentids": [[str(n)] for n in range(PICTURES)],
        "img_id": [str(n) for n in range(PICTURES)],
        "filename": [f"{n}.jpg" for n in range(PICTURES)],
    }
    features = {"image": Image(), "caption": List(TEXT), "sentids": List(TEXT), "img_id": TEXT,
                "filename": TEXT}  # fmt: skip
    return write(root, "flickr30k", columns, features, "data/test-*")


def image_dc(root):
    columns = {
        "image": pictures(PICTURES),
        "question_id": [str(n) for n in range(PICTURES)],
        "question": ["Please describe this image in detail."] * PICTURES,
        "category": ["en"] * PICTURES,
    }
    features = dict.fromkeys(columns, TEXT) | {"image": Image()}
    return write(root, "DC100_EN", columns, features, "data/test-*")


def mantis(root):
    """Choices whose options have letters or have none, and short answers."""
    shown = pictures(PICTURES)
    options = (["(A) the first", "(B) the second"], ["the first", "the second"], [])
    columns = {
        "id": [f"mantis_eval_{n}" for n in range(PICTURES)],
        "question_type": [
            "short-answer" if n % 3 == 2 else "multi-choice" for n in range(PICTURES)
        ],
        "question": ["Which has more cups, <image> or <image>?"] * PICTURES,
        "images": [[shown[n], shown[n - 1]] for n in range(PICTURES)],
        "options": [options[n % 3] for n in range(PICTURES)],
        "answer": ["2" if n % 3 == 2 else "B" for n in range(PICTURES)],
        "data_source": ["x"] * PICTURES,
        "category": ["counting"] * PICTURES,
    }
    features = dict.fromkeys(columns, TEXT) | {"images": List(Image()), "options": List(TEXT)}
    return write(root, "Mantis-Eval", columns, features, "mantis_eval/test-*")


def muir(root):
    shown = pictures(PICTURES)
    columns = {
        "idx": [str(n) for n in range(PICTURES)],
        "task": [("Counting", "Ordering")[n % 2] for n in range(PICTURES)],
        "image_relation": ["Partial Similarity"] * PICTURES,
        "image_type": ["Photography"] * PICTURES,
        "question": ["<image><image><image> Which is it?"] * PICTURES,
        "options": [["one", "two", "three", "None of the choices provided"]] * PICTURES,
        "answer": ["ABCD"[n % 4] for n in range(PICTURES)],
        "image_list": [[shown[n], shown[n - 1], shown[n - 2]] for n in range(PICTURES)],
        "counterpart_idx": [None] * PICTURES,
    }
    features = dict.fromkeys(columns, TEXT)
    features |= {"options": List(TEXT), "image_list": List(Image())}
    return write(root, "MUIRBENCH", columns, features, "data/test-*")


def mvbench(root, *, without=("fine_grained_pose",), each=3):
    """JSON of every subtask, and a film of a drifting square for all but those `without`."""
    folder = Path(root) / "MVBench"
    for task, where in FOLDERS.items():
        rows = [
            {"video": f"{task}_{n}.mp4", "question": "What happens?",
             "candidates": ["it moves", "it stays", "it grows"], "answer": "it stays"}
            for n in range(each)
        ]  # fmt: skip
        (folder / "json").mkdir(parents=True, exist_ok=True)
        (folder / "json" / f"{task}.json").write_text(json.dumps(rows), encoding="utf-8")
        for row in rows if task not in without else ():
            film(folder / where / row["video"])
    return folder


def film(path, length=20):
    """A film whose frame n is grey of n * 10."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for n in range(length):
            grey = np.full((32, 32, 3), 10 * n, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


SETS = (pope, mmbench, seed, mme, realworldqa, nocaps, flickr, image_dc, mantis, muir, mvbench)


def everything(root):
    """All of them below one folder, which `data_dir` can name."""
    for make in SETS:
        make(root)
    return root
