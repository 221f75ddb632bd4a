"""lmms-eval, as installed, scores pruned models by its own task: `make lmms-eval`.

A local Parquet file of drawn scenes takes the place of POPE's data set; prompt, requests, parsing
and the score are those of lmms-eval's task `pope`. The model is the shipped tiny-llava-1.5, found
by the entry point, with all its tokens and with 64. The score must be ours, to the last answer, and
with all tokens that of lmms-eval's own class for such checkpoints, which knows nothing of redlib.

Not part of `make test`: it needs lmms-eval, which lives in an environment of its own. lmms-eval
brings pycocoevalcap along, so that CIDEr meets the real package here, if there is a Java.
"""

import shutil
import sys
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
MODEL, TASK, SCENES, KEEP = "tiny-llava-1.5", "pope-random", 6, 64


@pytest.fixture(scope="module")
def asked():
    """(scenes, questions): six yes-or-no questions about each scene."""
    from redlib.tabletop import scenes
    from redlib.tabletop.questions import questions

    drawn = scenes("test", SCENES)
    return drawn, questions(drawn, TASK)


@pytest.fixture(scope="module")
def ours(asked):
    """The model, the visual tokens of each scene, and a codebook of the bare ground of others."""
    from redlib.codebook import Codebook, Criteria
    from redlib.models import load
    from redlib.tabletop import scenes

    vlm = load(MODEL, device="cpu")
    tokens = {scene.id: vlm.encode([scene.image]).tokens[0] for scene in asked[0]}
    places = [(scene, patch) for scene in scenes("train", 4) for patch in (0, 23, 552, 575)]
    vectors = [vlm.encode([scene.image]).tokens[0, patch] for scene, patch in places]
    codebook = Codebook(
        torch.stack(vectors), [s.id for s, _ in places], [p for _, p in places], vlm.name,
        vlm.revision, Criteria.paper(),
    )  # fmt: skip
    return vlm, tokens, codebook


@pytest.fixture(scope="module")
def task(asked, tmp_path_factory):
    """A folder with a task of lmms-eval: its own `pope`, on a Parquet file of the scenes."""
    import datasets

    folder = tmp_path_factory.mktemp("task")
    images = {scene.id: scene.image for scene in asked[0]}
    features = datasets.Features(
        question_id=datasets.Value("string"),
        question=datasets.Value("string"),
        answer=datasets.Value("string"),
        image=datasets.Image(),
    )
    rows = [
        {"question_id": str(n), "question": q.text, "answer": q.answer, "image": images[q.image]}
        for n, q in enumerate(asked[1])
    ]
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(str(folder / "pope.parquet"))
    told = {
        "include": str(resources.files("lmms_eval") / "tasks" / "pope" / "pope.yaml"),
        "task": "tabletop_pope",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(folder / "pope.parquet")}},
        # the small model knows no other wording than the question's own
        "lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}},
    }
    (folder / "tabletop_pope.yaml").write_text(yaml.safe_dump(told))
    return folder


def theirs(task, model, **arguments):
    """What lmms-eval says: (accuracy, F1), answers in the order of the questions."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    told = ",".join(f"{name}={value}" for name, value in arguments.items())
    found = simple_evaluate(
        model,
        told,
        tasks=["tabletop_pope"],
        task_manager=TaskManager(include_path=str(task), include_defaults=False),
        batch_size=1,
        device="cpu",
    )
    scores = found["results"]["tabletop_pope"]
    samples = sorted(found["samples"]["tabletop_pope"], key=lambda sample: sample["doc_id"])
    return (scores["pope_accuracy,none"], scores["pope_f1_score,none"]), [
        sample["filtered_resps"][0] for sample in samples
    ]


def scored(vlm, tokens, asked, keep):
    """What this project says of the same: (accuracy, F1), answers."""
    from redlib.bench import evaluate, pope

    frame = evaluate(vlm, tokens, asked[1], keep, progress=False)
    row = pope(frame, rule="lmms-eval").iloc[0]
    return (row["accuracy"], row["f1"]), frame["answer"].tolist()


def test_lmms_eval_finds_the_model():
    from lmms_eval.models import get_model

    assert get_model("redlib").__module__ == "redlib.harness.model"
    assert metadata.version("transformers") == "5.23.0", "the version that the lock has"


def test_all_tokens(asked, ours, task):
    from redlib.bench import keep_all

    vlm, tokens, _ = ours
    score, said = theirs(task, "redlib", pretrained=MODEL)
    assert (score, said) == (pytest.approx(scored(vlm, tokens, asked, keep_all)[0]), said)
    assert said == scored(vlm, tokens, asked, keep_all)[1]
    print(f"\nall 576 tokens: accuracy {score[0]:.4f}, F1 {score[1]:.4f}, n {len(said)}")


def test_all_tokens_by_the_class_of_lmms_eval(asked, ours, task, monkeypatch):
    from redlib.bench import keep_all
    from redlib.hub import locate

    if find_spec("decord") is None:  # imported first, and needed for films alone
        monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=None, cpu=None))
    vlm, tokens, _ = ours
    score, said = theirs(task, "llava_hf", pretrained=locate(MODEL), device_map="cpu")
    expected, answers = scored(vlm, tokens, asked, keep_all)
    assert said == answers
    assert score == pytest.approx(expected)
    print(f"\nllava_hf: accuracy {score[0]:.4f}, F1 {score[1]:.4f}, n {len(said)}")


def test_pruned_by_a_codebook(asked, ours, task, tmp_path):
    from redlib.prune import keep_lowest, redundancy

    vlm, tokens, codebook = ours
    file = codebook.save(tmp_path / "codebook.safetensors")

    def keep(image, rows):
        return keep_lowest(redundancy(rows, codebook.vectors), KEEP)

    score, said = theirs(
        task, "redlib", pretrained=MODEL, method="codebook", keep=KEEP, codebook=file
    )
    expected, answers = scored(vlm, tokens, asked, keep)
    assert said == answers
    assert score == pytest.approx(expected)
    print(f"\n{KEEP} tokens: accuracy {score[0]:.4f}, F1 {score[1]:.4f}, n {len(said)}")


@pytest.mark.skipif(shutil.which("java") is None, reason="CIDEr's tokenizer needs java on the PATH")
def test_cider_is_that_of_pycocoevalcap():
    """Nothing stands in for package or Java. What the tokenizer has to make of the captions is
    written by hand, and given to the package's own class."""
    from pycocoevalcap.cider.cider import Cider

    from redlib.bench import coco

    coco.ready("CIDEr")
    captions = {  # in another order than the references, for the images must not be confused
        "apart": "Horses run.",
        "alike": "two CUPS, stand on\na red table",
        "partly": "A dog can't run.",
    }
    references = {
        "alike": ["Two cups stand on a red table."] * 2,
        "partly": ["A dog can't sleep!", "The dog is awake"],
        "apart": ["Grey clouds; a small boat."],
    }
    said = {
        "apart": ["horses run"],
        "alike": ["two cups stand on a red table"],
        "partly": ["a dog ca n't run"],
    }
    told = {
        "apart": ["grey clouds a small boat"],
        "alike": ["two cups stand on a red table"] * 2,
        "partly": ["a dog ca n't sleep", "the dog is awake"],
    }
    found = coco.cider(captions, references)
    mean, each = Cider().compute_score(told, said)
    assert found.to_dict() == pytest.approx(dict(zip(told, each, strict=True)))
    assert found.mean() == pytest.approx(mean)
    # All references are the answer: every cosine is 1. No word in common: every one is 0.
    assert found["alike"] == pytest.approx(10)
    assert 0 == found["apart"] < found["partly"] < found["alike"]


@pytest.mark.skipif(shutil.which("java") is None, reason="CIDEr's tokenizer needs java on the PATH")
def test_cider_by_hand():
    """Each word and pair of words is of one image, so that all weigh log 2. "Red star" shares one
    of two words with "red cup" (a cosine of 1/2) and no pair; of three and four words there are
    none: 10 x (1/2 + 0 + 0 + 0) / 4. The other shares its pair too: 10 x (1 + 1 + 0 + 0) / 4."""
    from redlib.bench import coco

    found = coco.cider({"a": "Red star", "b": "blue star."}, {"a": ["red cup"], "b": ["Blue star"]})
    assert found.to_dict() == pytest.approx({"a": 1.25, "b": 5.0})
