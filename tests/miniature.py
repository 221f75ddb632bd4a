"""The paper's benchmarks in miniature: files of the documented feature types, by `datasets`.

Every set is a copy of its repository as `hf download` makes one, a README with the card and Parquet
or JSON files under the repository's own names, so that the loaders read it by the call with which
they read the hub. The pictures are drawn scenes; nothing in these files was ever published.
"""

import io
import json
import shutil
from functools import cache
from itertools import cycle
from pathlib import Path

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from redlib.bench.letters import NUMBER_WORDS, options_in
from redlib.data.several import FOLDERS
from redlib.data.single import MME_PERCEPTION
from redlib.tabletop import questions, scenes
from redlib.tabletop.questions import DETAIL

TEXT = Value("string")
MME = ("question_id", "image", "question", "answer", "category")
ONE_WORD = " Please answer this question with one word."
PICTURES, START = 12, 7_000_000


@cache
def drawn(**shape):
    return tuple(scenes("test", PICTURES, start=START, **shape))


def stored(image):
    """A picture as a file of the hub holds it."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


@cache
def pictures():
    return tuple(stored(scene.image) for scene in drawn())


def captions():
    """What each picture shows, in the drawn world's words."""
    return [scene.caption for scene in drawn()]


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


@cache
def asked(task):
    """(number of the picture, question of the drawn world) about the pictures."""
    return [(n, q) for n, scene in enumerate(drawn()) for q in questions([scene], task)]


def pope(root):
    """The drawn world's POPE in the schema of POPE: three subsets about the same images."""
    shown = pictures()
    rows = [
        (image, q.text.removesuffix(ONE_WORD), q.answer, subset)
        for subset in ("adversarial", "popular", "random")
        for image, q in asked(f"pope-{subset}")
    ]
    columns = {
        "id": [str(n) for n in range(len(rows))],
        "question_id": [str(n) for n in range(len(rows))],
        "question": [question for _, question, _, _ in rows],
        "answer": [answer for _, _, answer, _ in rows],
        "image_source": [f"COCO_val2014_{image:012}" for image, *_ in rows],
        "image": [shown[image] for image, *_ in rows],
        "category": [subset for *_, subset in rows],
    }
    features = dict.fromkeys(columns, TEXT) | {"image": Image()}
    return write(root, "POPE", columns, features, "data/test-*")


def mmbench(root, *, index="int64", nothing=None):
    """The drawn world's MMBench in the schema of MMBench: all rotations of a question. nothing:
    what stands where there is no hint, comment or option. index: its type, which is a text
    in one of the published variants."""
    shown, rows, number = pictures(), [], 240
    turns = {}
    for image, q in asked("mmb"):
        turns.setdefault((image, q.group), []).append(q)
    for (image, group), rotations in turns.items():
        number += 1
        for turn, q in enumerate(rotations):
            options = options_in(q.text)
            row = {letter: options.get(letter, nothing) for letter in "ABCD"} | {
                "index": number + turn * 1_000_000, "question": q.text.splitlines()[0],
                "hint": nothing if number % 3 else "Look at the table.", "answer": q.answer.upper(),
                "category": group, "image": shown[image], "source": "drawn",
                "L2-category": "perception", "comment": nothing, "split": "dev",
            }  # fmt: skip
            rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if index == "string":
        columns["index"] = [str(n) for n in columns["index"]]
    features = dict.fromkeys(columns, TEXT) | {"image": Image(), "index": Value(index)}
    return write(root, "MMBench", columns, features, "en/dev-*", other=("test",))


def seed(root, *, label=False):
    """The drawn world's SEED in the schema of SEED: a list of one image a row, and one film, whose
    rows have eight. label: the answer as a class label, as some copies have it."""
    shown = pictures()
    items = [(n, q.text.splitlines()[0], options_in(q.text), q.answer.upper(), q.group)
             for n, q in asked("seed")]  # fmt: skip
    film = items[:2]
    rows = [(n, 1, *rest) for n, *rest in items] + [(n, 8, *rest) for n, *rest in film]
    columns = {
        "answer": [row[4] for row in rows],
        **{f"choice_{c.lower()}": [row[3][c] for row in rows] for c in "ABCD"},
        "data_id": [[f"{row[0]}_{row[1]}"] * row[1] for row in rows],
        "data_type": ["image" if row[1] == 1 else "video" for row in rows],
        "question": [row[2] for row in rows],
        "question_id": [str(n) for n in range(len(rows))],
        "question_type_id": [len(row[5]) for row in rows],
        "image": [[shown[row[0]]] * row[1] for row in rows],
        "segment": [None if row[1] == 1 else [1, 2] for row in rows],
    }
    features = dict.fromkeys(columns, TEXT) | {
        "data_id": List(TEXT), "image": List(Image()), "question_type_id": Value("int16"),
        "segment": List(Value("int64")),
        "answer": ClassLabel(names=list("ABCD")) if label else TEXT,
    }  # fmt: skip
    return write(root, "SEED-Bench", columns, features, "data/test-*")


@cache
def mme_pairs():
    """(number of the picture, category, question with yes, question with no) of every pair. The ten
    categories of perception take turns, whatever a pair asks; the last is cognition, which the
    paper's column lacks."""
    turn = cycle([*MME_PERCEPTION, "code_reasoning"])
    both = zip(asked("mme")[::2], asked("mme")[1::2], strict=True)
    return [(n, next(turn), yes, no) for (n, yes), (_, no) in both]


def mme(root):
    """The drawn world's MME in the schema of MME; the name of a picture holds its category."""
    shown = pictures()
    rows = [
        (f"{category}/{n:04}.png", shown[n], q.text, q.answer.capitalize(), category)
        for n, category, *pair in mme_pairs()
        for q in pair
    ]
    columns = dict(zip(MME, map(list, zip(*rows, strict=True)), strict=True))
    features = dict.fromkeys(MME, TEXT) | {"image": Image()}
    return write(root, "MME", columns, features, "data/test-*")


def realworldqa(root):
    """The drawn world's RealWorldQA, about images of another shape; numbers as digits."""
    rows = [
        (stored(scene.image), q)
        for scene in drawn(width=504, height=336)
        for q in questions([scene], "rwqa")
    ]
    columns = {
        "image": [image for image, _ in rows],
        "question": [q.text for _, q in rows],
        "answer": [
            q.answer.upper()
            if len(q.answer) == 1
            else str(NUMBER_WORDS.index(q.answer))
            if q.answer in NUMBER_WORDS
            else q.answer
            for _, q in rows
        ],
        "image_path": [f"{n}.webp" for n in range(len(rows))],
    }
    features = dict.fromkeys(columns, TEXT) | {"image": Image()}
    return write(root, "RealWorldQA", columns, features, "data/test-*")


def nocaps(root):
    columns = {
        "image": list(pictures()),
        "image_coco_url": ["https://example.org"] * PICTURES,
        "image_id": list(range(PICTURES)),
        "image_height": [336] * PICTURES,
        "annotations_ids": [[n, n + 100] for n in range(PICTURES)],
        "annotations_captions": [[text, "Some things."] for text in captions()],
    }
    features = {
        "image": Image(), "image_coco_url": TEXT, "image_id": Value("int32"),
        "image_height": Value("int32"), "annotations_ids": List(Value("int32")),
        "annotations_captions": List(TEXT),
    }  # fmt: skip
    return write(root, "NoCaps", columns, features, "data/validation-*", other=("test",))


def flickr(root):
    columns = {
        "image": list(pictures()),
        "caption": [[text, "On a table."] for text in captions()],
        "sentids": [[str(n)] for n in range(PICTURES)],
        "img_id": [str(n) for n in range(PICTURES)],
        "filename": [f"{n}.jpg" for n in range(PICTURES)],
    }
    features = {"image": Image(), "caption": List(TEXT), "sentids": List(TEXT), "img_id": TEXT,
                "filename": TEXT}  # fmt: skip
    return write(root, "flickr30k", columns, features, "data/test-*")


def image_dc(root):
    columns = {
        "image": list(pictures()),
        "question_id": [str(n) for n in range(PICTURES)],
        "question": [DETAIL] * PICTURES,
        "category": ["en"] * PICTURES,
    }
    features = dict.fromkeys(columns, TEXT) | {"image": Image()}
    return write(root, "DC100_EN", columns, features, "data/test-*")


def mantis(root):
    """Choices whose options have letters or have none, and short answers."""
    shown = pictures()
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
    shown = pictures()
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
    first = film(folder / "first.mp4")
    for task, where in FOLDERS.items():
        rows = [
            {"video": f"{task}_{n}.mp4", "question": "What happens?",
             "candidates": ["it moves", "it stays", "it grows"], "answer": "it stays"}
            for n in range(each)
        ]  # fmt: skip
        (folder / "json").mkdir(parents=True, exist_ok=True)
        (folder / "json" / f"{task}.json").write_text(json.dumps(rows), encoding="utf-8")
        for row in rows if task not in without else ():
            path = folder / where / row["video"]
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first, path)
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


def coco(root):
    """The repository of COCO Karpathy, with its training images beside the list."""
    folder = Path(root) / "coco-karpathy"
    for n, scene in enumerate(drawn()):
        path = folder / "train2014" / f"COCO_train2014_{n:012}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene.image.save(path)
    columns = {
        "filepath": ["train2014"] * PICTURES,
        "filename": [f"COCO_train2014_{n:012}.jpg" for n in range(PICTURES)],
        "sentids": [[n] for n in range(PICTURES)],
        "imgid": list(range(PICTURES)),
        "sentences": [[text] for text in captions()],
        "cocoid": list(range(PICTURES)),
        "url": [f"https://example.org/{n}.jpg" for n in range(PICTURES)],
    }
    whole = Value("int32")
    features = dict.fromkeys(columns, TEXT) | {
        "sentids": List(whole), "imgid": whole, "sentences": List(TEXT), "cocoid": whole,
    }  # fmt: skip
    return write(root, "coco-karpathy", columns, features, "data/train-*", other=("test",))


SETS = (
    coco,
    pope,
    mmbench,
    seed,
    mme,
    realworldqa,
    nocaps,
    flickr,
    image_dc,
    mantis,
    muir,
    mvbench,
)


def everything(root):
    """All of them below one folder, which `data_dir` can name."""
    for make in SETS:
        make(root)
    return root
