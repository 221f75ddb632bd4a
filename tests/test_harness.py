"""What the plug-in for lmms-eval answers, and that lmms-eval can find it.

lmms-eval itself is not installed here; `make lmms-eval` runs its own task (tests/harness.py).
"""

import ast
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import random_image, save_tiny_llava
from transformers import AutoProcessor

import redlib
from redlib.codebook import Codebook, Criteria
from redlib.errors import RedlibError
from redlib.harness.answering import Respondent

ROOT = Path(__file__).parents[1]
ASKED = "what does this image show ?"


def conversation(*images):
    parts = [{"type": "image", "url": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": ASKED}]}]


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def folder(request, tmp_path_factory):
    return str(save_tiny_llava(tmp_path_factory.mktemp(request.param), kind=request.param, seed=4))


def test_the_entry_point_leads_to_a_class_of_the_wanted_form():
    """`lmms_eval.models` wants a callable; the class it names must have the methods of its base."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (target,) = project["entry-points"]["lmms_eval.models"].values()
    module, name = target.split(":")
    assert callable(getattr(import_module(module), name))
    place = ROOT / "redlib" / "harness"
    (path,) = {
        node.value
        for node in ast.walk(ast.parse((place / "__init__.py").read_text()))
        if isinstance(node, ast.Constant) and str(node.value).startswith("redlib.harness.")
    }
    tree = ast.parse((place / "model.py").read_text())
    (made,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert path == f"redlib.harness.model.{made.name}"
    assert [base.id for base in made.bases] == ["lmms"]
    methods = {node.name for node in made.body if isinstance(node, ast.FunctionDef)}
    assert methods >= {"generate_until", "loglikelihood", "generate_until_multi_round"}


def test_answers_are_those_of_stock_generate(folder):
    respondent = Respondent(folder, device="cpu")
    image = random_image(3, width=130, height=70)
    text, length = respondent.answer(conversation(image), max_new_tokens=6)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    prompt = processor.apply_chat_template(conversation(image), add_generation_prompt=True)
    inputs = processor(images=[image], text=prompt, return_tensors="pt")
    with torch.no_grad():
        ids = respondent.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert text == processor.tokenizer.decode(new, skip_special_tokens=True).strip() != ""
    assert length == len(new)
    assert (respondent.seen, respondent.kept) == (0, 0), "nothing was pruned"
    first, second = text.split()[:2]
    cut, _ = respondent.answer(conversation(image), max_new_tokens=6, until=["", f" {second}"])
    assert cut == first


def test_pruned_answers_are_those_of_the_with_line(folder, tmp_path):
    images = [random_image(k) for k in (5, 6, 7)]
    vlm = redlib.load(folder, device="cpu")
    tokens = vlm.encode(images[:1]).tokens[0, :6]
    book = Codebook(tokens, "a" * 6, range(6), vlm.name, vlm.revision, Criteria.paper())
    file = book.save(tmp_path / "book.safetensors")
    how = {"method": "codebook", "keep": 4, "per": "image"}
    pruned = Respondent(folder, device="cpu", codebook=file, **how)
    said = [pruned.answer(conversation(image), max_new_tokens=5)[0] for image in images]
    plain = Respondent(folder, device="cpu")
    with redlib.pruned(plain.model, codebook=book, **how) as run:
        expected, kept = [], 0
        for image in images:
            expected.append(plain.answer(conversation(image), max_new_tokens=5)[0])
            kept += run.last[0].after
    assert said == expected
    whole = [plain.answer(conversation(image), max_new_tokens=5)[0] for image in images]
    assert said != whole, "pruning must show in some answer"
    assert pruned.kept == kept < pruned.seen


def test_without_an_image_the_text_is_answered(folder):
    text, length = Respondent(folder, device="cpu").answer(conversation(), max_new_tokens=3)
    assert 0 < length <= 3 and isinstance(text, str)


def test_what_a_task_may_say_about_decoding(folder):
    respondent = Respondent(folder, device="cpu")
    asked = conversation(random_image(1))
    greedy = respondent.answer(asked, max_new_tokens=8)
    assert respondent.answer(asked, max_new_tokens=8, temperature=0, top_p=1.0) == greedy
    assert respondent.answer(asked, max_new_tokens=8, do_sample=False, num_beams=1) == greedy
    torch.manual_seed(1)
    drawn = {respondent.answer(asked, max_new_tokens=8, temperature=5.0)[0] for _ in range(3)}
    assert drawn != {greedy[0]}
    with pytest.raises(RedlibError, match="decoding takes do_sample, .* got 'typical_p'"):
        respondent.answer(asked, max_new_tokens=8, typical_p=0.5)
    film = [{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}]
    with pytest.raises(RedlibError, match="texts and images; got a part of type 'video'"):
        respondent.answer(film, max_new_tokens=8)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"keep": 4}, "keep is told to a pruning method: say method= too"),
        ({"codebook": "c.safetensors"}, "codebook is told to a pruning method"),
        ({"method": "codebook", "keep": 4, "codebook": "none.safetensors"}, "no codebook at"),
        ({"method": "codebooks", "keep": 4}, "codebooks"),
    ],
)
def test_arguments_that_make_no_sense(folder, how, words):
    with pytest.raises(RedlibError, match=words):
        Respondent(folder, device="cpu", **how)
