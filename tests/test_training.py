"""The shipped checkpoint is stock, and the training that made it runs, resumes and learns."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import is_torchvision_available

from redlib import layouts
from redlib.bench import captions
from redlib.errors import RedlibError
from redlib.tabletop import (
    architectures,
    decoder,
    lessons,
    loop,
    questions,
    scenes,
    sources,
    tower,
    training,
)
from redlib.tabletop.questions import CHECKLIST, DESCRIBE, DETAIL, ONE_WORD, TASKS
from redlib.tabletop.world import Scene

NAME = "tiny-llava-1.5"
CHECKPOINT = Path(training.__file__).parents[1] / "checkpoints" / NAME


@pytest.fixture(scope="module")
def processor():
    return architectures.make_processor(NAME)


def test_every_word_of_the_world_is_one_token(processor):
    unknown = processor.tokenizer.unk_token_id
    found = [
        *scenes("calibration", 30, start=9_000),
        *scenes("calibration", 5, start=9_050, withheld=True),
        *scenes("calibration", 5, start=9_060, width=504),
    ]
    for task in TASKS:
        for q in questions(found, task):
            ids = processor.tokenizer(f"{q.text} {q.answer}").input_ids
            assert unknown not in ids, q


def test_packed_questions_do_not_see_each_other(processor):
    """Logits of a question packed with others equal those of the question alone, through the
    stock model."""
    model = architectures.make_model(NAME, processor.tokenizer).eval()
    writer = lessons.Writer(processor)
    pairs = [(ONE_WORD, "cup"), ("What color is the cup?", "red"), (DESCRIBE, "a small red cup")]
    features = torch.randn(1, 20, 192, generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")
    packed = lessons.batch(writer, [pairs], 20, device)
    with torch.no_grad():
        embeds = model.get_input_embeddings()
        visual = model.model.multi_modal_projector(features)
        x = torch.cat((embeds(torch.tensor([writer.prefix])), visual, embeds(packed["ids"])), 1)
        together = model.model.language_model(
            inputs_embeds=x, attention_mask=packed["mask"], position_ids=packed["positions"],
            use_cache=False).last_hidden_state[0, -packed["ids"].shape[1] :]  # fmt: skip
        for k, (question, answer) in enumerate(pairs):
            asked, said = writer.pair(question, answer)
            ids = torch.tensor([(asked + said)[:-1]])
            alone = torch.cat((embeds(torch.tensor([writer.prefix])), visual, embeds(ids)), 1)
            expected = model.model.language_model(inputs_embeds=alone).last_hidden_state[0, 23:]
            mine = together[packed["part"][0] == k + 1]
            assert torch.allclose(mine, expected, atol=1e-4)
            assert expected.std() > 0.1


def test_lessons_never_show_fewer_than_the_stated_number_of_tokens():
    rng = np.random.default_rng(0)
    cards = cards_of(4, 9_100)
    for tokens in (16, 20, 25, 49, 144, 576):
        for c in cards * 10:
            kept = lessons.view(rng, tokens, c)
            assert kept.shape == (tokens,) and tokens >= lessons.MIN_TOKENS
            assert (np.diff(kept) > 0).all() and 0 <= kept[0] and kept[-1] < 576


def test_muon_steps_as_torch_does():
    """torch.optim.Muon rounds its matrix to bfloat16; this one must agree to within that. Of a
    convolution it is the step of the matrix with a row per channel."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 24), (40, 24), (24, 40), (24, 3, 4, 4), (64, 3, 3, 3)):
        start = torch.randn(shape, generator=generator)
        ours = torch.nn.Parameter(start.clone())
        start = start.reshape(shape[0], -1)
        theirs = torch.nn.Parameter(start.clone())
        one = loop.Muon([ours], 0.02, decay=0.01)
        other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.01)
        for _ in range(4):
            gradient = torch.randn(shape, generator=generator)
            ours.grad, theirs.grad = gradient.clone(), gradient.reshape(start.shape).clone()
            one.step()
            other.step()
        moved = (theirs - start).norm()
        assert moved > 0.1
        assert ours.shape == shape
        assert (ours.reshape(start.shape) - theirs).norm() < 0.02 * moved


def test_muon_trains_matrices_and_the_patch_convolution_and_adamw_the_rest(processor):
    model = architectures.make_model(NAME, processor.tokenizer)
    inner = model.model
    parts = [inner.vision_tower, inner.multi_modal_projector, inner.language_model, model.lm_head]
    adam, muon = loop.optimizers(parts)
    mine = {id(p) for group in muon.param_groups for p in group["params"]}
    others = {id(p) for group in adam.param_groups for p in group["params"]}
    assert isinstance(muon, loop.Muon) and isinstance(adam, torch.optim.AdamW)
    assert not mine & others
    assert mine | others == {id(p) for part in parts for p in part.parameters()}
    vision, text = inner.vision_tower, inner.language_model
    for weight in (
        vision.embeddings.patch_embedding.weight,
        vision.encoder.layers[0].mlp.fc1.weight,
        inner.multi_modal_projector.linear_1.weight,
        text.layers[0].self_attn.q_proj.weight,
    ):
        assert id(weight) in mine
    for weight in (
        vision.embeddings.position_embedding.weight,
        vision.pre_layrnorm.weight,
        text.embed_tokens.weight,
        model.lm_head.weight,
    ):
        assert id(weight) in others


def card_of(scene: Scene) -> sources.Card:
    return sources.card(scene, [scene], layouts.whole(24), tower.CLIP, np.zeros(1, int))


def cards_of(n: int, start: int) -> list[sources.Card]:
    return [card_of(scene) for scene in scenes("calibration", n, start=start)]


def test_a_lesson_asks_few_questions_of_few_tokens_and_many_of_many():
    rng = np.random.default_rng(0)
    for c in cards_of(4, 9_200):
        for tokens, n in ((16, 8), (64, 8), (81, 12), (196, 12), (576, 12)):
            rows = lessons.lesson(c, lessons.view(rng, tokens, c), rng)
            assert len(rows) == n
            asked = [question for question, _ in rows]
            assert asked.count(CHECKLIST) == asked.count(ONE_WORD) == 1
            assert asked.count(DESCRIBE) <= 1 and asked.count(DETAIL) <= 1


def test_sentences_name_what_is_in_view():
    """An object is named if a token at hand shows it by half, and the word likewise; who sees
    nothing says nothing."""
    rng = np.random.default_rng(0)
    silent = told = 0
    for c in cards_of(30, 9_200):
        for tokens in (16, 100, 576):
            view = lessons.view(rng, tokens, c)
            rows = dict(lessons._talk(c, view))
            seen = [o for k, o in enumerate(c.scene.objects) if c.seen[k][view].any()]
            silent += not seen
            assert bool(rows) == bool(seen)
            if not seen:
                continue
            told += 1
            expected = Counter(
                t for o in seen for t in ((o.noun,), (o.noun, o.colour), (o.noun, o.size))
            )
            assert captions.tuples(rows[DETAIL]) == expected
            if c.scene.word and c.written[view].any():
                expected[("word", c.scene.word)] = 1
            assert captions.tuples(rows[DESCRIBE]) == expected
    assert silent > 3 and told > 40


def test_the_checklist_is_true_of_the_scene():
    rng = np.random.default_rng(0)
    for c in cards_of(12, 9_400):
        names = [o.noun for o in c.scene.objects]
        parts = [p.split() for p in lessons.checklist(c.scene, rng).removesuffix(".").split(", ")]
        said = {noun: words for noun, *words in parts}
        assert len(said) == len(parts)
        assert {n for n, words in said.items() if words[0] == "yes"} == {
            n for n in names if names.count(n) == 1
        }
        for noun, words in said.items():
            if words == ["no"]:
                assert noun not in names
            else:
                assert words[1:] == c.scene.details(names.index(noun)).split()
        assert sum(words == ["no"] for words in said.values()) == len(names) + 1


def test_nouns_weigh_most_in_captions_and_nothing_in_checklists(processor):
    writer = lessons.Writer(processor)
    asked = {
        DESCRIBE: "a cup in small red and huge blue, a star in large teal on a wood ground.",
        DETAIL: "cup red small left, star teal large.",
        CHECKLIST: "cup yes red, anchor no.",
        ONE_WORD: "cup",
    }
    other = {DESCRIBE: 1.0, DETAIL: 1.0, CHECKLIST: 1.0, ONE_WORD: 1.0}
    noun = {DESCRIBE: 4.0, DETAIL: 4.0, CHECKLIST: 0.0, ONE_WORD: 1.0}
    made = lessons.batch(writer, [list(asked.items())], 10, torch.device("cpu"))
    answered = made["target"][0] != -100
    for k, question in enumerate(asked):
        of = answered & (made["part"][0] == k + 1)
        words = processor.tokenizer.convert_ids_to_tokens(made["target"][0][of])
        expected = [(noun if w in ("cup", "star", "anchor") else other)[question] for w in words]
        assert made["weight"][0][of].tolist() == pytest.approx(expected)


def test_one_word_answers_name_what_the_tokens_show():
    scene = next(s for s in scenes("calibration", 50) if len(s.objects) >= 3)
    c = card_of(scene)
    rng = np.random.default_rng(0)
    for k, thing in enumerate(scene.objects):
        view = np.flatnonzero(c.seen[k])
        answers = {lessons.one_word(c, view, rng).split()[-1] for _ in range(30)}
        assert answers == {thing.noun}
    bare = np.flatnonzero(scene.coverage().max(0) == 0)[:16]
    assert len({lessons.one_word(c, bare, rng).split()[-1] for _ in range(100)}) > 1


def test_the_decoder_begins_where_the_features_point(processor):
    """On features that are a vector per noun plus noise, every noun's embedding begins nearest to
    the tokens that show it, and the projector does little but standardise."""
    rng = np.random.default_rng(0)
    cards = cards_of(16, 9_300)
    nouns = sorted({o.noun for c in cards for o in c.scene.objects})
    vectors = {noun: rng.normal(size=192) for noun in nouns}
    features = 3 + 0.5 * rng.normal(size=(len(cards), 576, 192))
    for i, c in enumerate(cards):
        for thing, mask in zip(c.scene.objects, c.seen, strict=True):
            features[i][mask] += vectors[thing.noun]
    features = features.astype(np.float16)
    model = architectures.make_model(NAME, processor.tokenizer)
    source = sources.Source(features, np.arange(16)[:, None], cards, layouts.whole(24))
    decoder.begin(model, processor.tokenizer, source)
    with torch.no_grad():
        shown = model.model.multi_modal_projector(torch.from_numpy(features).float())
    ids = processor.tokenizer.convert_tokens_to_ids(nouns)
    words = torch.nn.functional.normalize(model.get_input_embeddings().weight[ids], dim=-1)
    nearest = (torch.nn.functional.normalize(shown, dim=-1) @ words.T).argmax(-1)
    hits = [
        (nearest[i][torch.from_numpy(mask)] == nouns.index(thing.noun)).float().mean()
        for i, c in enumerate(cards)
        for thing, mask in zip(c.scene.objects, c.seen, strict=True)
        if mask.any()
    ]
    assert len(nouns) > 15 and np.mean(hits) > 0.95
    masks = [[*c.seen, c.written] for c in cards]
    covered = np.concatenate([features[i][m] for i, rows in enumerate(masks) for m in rows])
    covered = covered.astype(np.float32)
    standard = (features.astype(np.float32) - covered.mean(0)) / covered.std()
    away = np.abs(shown.numpy() - standard)
    assert standard.std() > 0.5 and away.mean() < 0.01


def test_a_killed_stage_goes_on_where_it_was(tmp_path):
    """A run that dies and goes on ends with the weights of one that never died."""

    def job(folder: Path, dies_at: int | None) -> torch.nn.Linear:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)

        def loss(step: int):
            if step == dies_at:
                raise KeyboardInterrupt
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            value = (layer(x) - 2 * x).square().mean()
            return value, {"loss": float(value.detach())}

        stage = loop.Stage("toy", 30, every=0)
        loop.run(stage, folder, {"layer": layer}, loss=loss, check=dict, checks=2)
        return layer

    whole = job(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "killed", 17)
    resumed = job(tmp_path / "killed", None)
    assert torch.equal(whole.weight, resumed.weight)
    assert not torch.equal(whole.weight, torch.nn.Linear(4, 4).weight)


@contextmanager
def filling(size: int) -> Iterator[None]:
    """A disk on which no file may have more bytes."""
    resource = pytest.importorskip("resource", reason="no limit of file sizes to set")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def toy(folder: Path, *, dies_at: int | None = None) -> list[dict]:
    layer = torch.nn.Linear(100, 100)

    def loss(step: int):
        if step == dies_at:
            raise KeyboardInterrupt
        return layer(torch.ones(1, 100)).sum(), {}

    stage = loop.Stage("toy", 4, every=0)
    return loop.run(stage, folder, {"layer": layer}, loss=loss, check=dict)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_disk_that_fills_up_leaves_what_was_stored_before(tmp_path, steps):
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path, dies_at=steps)
    held = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert list(held) == ["toy.pt"] * (steps > 0)
    full = r"toy\.pt: cannot be written .*free some space"
    with filling(20_000), pytest.raises(RedlibError, match=full):
        toy(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == held


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_stage_whose_file_is_torn_is_named(tmp_path, share):
    toy(tmp_path)
    path = tmp_path / "toy.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RedlibError, match=r"toy\.pt: damaged; delete it and run again"):
        toy(tmp_path)
    path.unlink()
    assert toy(tmp_path)


@pytest.mark.parametrize("odd", [{}, [], {"step": 4, "log": "[]", "seconds": 1.0, "modules": {}}])
def test_a_stage_whose_file_holds_something_else_is_named(tmp_path, odd):
    torch.save(odd, tmp_path / "toy.pt")
    with pytest.raises(RedlibError, match=r"toy\.pt: damaged"):
        toy(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_recipe_is_named(tmp_path, text):
    work = tmp_path / NAME
    work.mkdir()
    (work / "recipe.json").write_text(text)
    with pytest.raises(RedlibError, match=r"recipe\.json: damaged"):
        training.train(NAME, tmp_path, device="cpu")


@pytest.mark.parametrize("size", [1_000_000, 200])
def test_an_export_that_does_not_fit_leaves_nothing(tmp_path, processor, size):
    """The weights, of 12 MB, or the first of the small files."""
    model = architectures.make_model(NAME, processor.tokenizer)
    full = "checkpoint: cannot be written .*free some space"
    with filling(size), pytest.raises(RedlibError, match=full):
        training.export(model, processor, tmp_path / "work" / "checkpoint")
    assert list((tmp_path / "work").iterdir()) == []


def test_an_export_whose_words_alone_do_not_fit(tmp_path, processor, monkeypatch):
    """The tokenizer is written by a library with an error of its own."""

    def full(self, *_, **__):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(type(processor), "save_pretrained", full)
    model = architectures.make_model(NAME, processor.tokenizer)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "README.md").write_text("the card")
    with pytest.raises(RedlibError, match="No space left on device .os error 28.*free some space"):
        training.export(model, processor, tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint", "README.md"]


@pytest.mark.parametrize("plain", [False, True])
def test_the_checkpoint_says_how_it_was_trained(tmp_path, monkeypatch, plain):
    for stages in ("_train_tower", "_train_decoder"):
        monkeypatch.setattr(training, stages, lambda *_, **__: [])
    where = training.train(NAME, tmp_path, device="cpu", plain=plain)
    told = json.loads((where / training.RECORD).read_text())
    assert (told["name"], told["plain"]) == (NAME, plain)
    assert told == json.loads((where.parent / "recipe.json").read_text())
    assert json.loads((where / training.LOG).read_text()) == []


def test_an_ablation_is_of_the_first_checkpoint_only(tmp_path):
    with pytest.raises(RedlibError, match="plain is an ablation of tiny-llava-1.5"):
        training.train("tiny-llava-next", tmp_path, plain=True)


def test_without_labels_of_patches_the_tower_learns_from_captions_alone(processor):
    model = architectures.make_model(NAME, processor.tokenizer)
    vision = model.model.vision_tower
    heads = tower.Heads(192, 24)
    batch = tower.Windows(0, torch.device("cpu"), tower.CLIP, pool=8).batch(0, 4, 8)
    grads = {}
    for dense in (True, False):
        value, _ = tower.losses(vision, heads, batch, dense=dense)
        (dense_part,) = torch.autograd.grad(
            value, heads.dense[0].weight, retain_graph=True, allow_unused=True
        )
        (pixels,) = torch.autograd.grad(value, vision.embeddings.patch_embedding.weight)
        grads[dense] = (dense_part, pixels)
    assert torch.equal(grads[True][0], grads[False][0])  # the heads learn to read all the same
    assert not torch.allclose(grads[True][1], grads[False][1])
    assert grads[False][1].abs().max() > 0


def test_training_an_unknown_name(tmp_path):
    with pytest.raises(RedlibError, match="tiny-llava-1.5"):
        training.train("tiny-llava-9", tmp_path)


SHOWN = {"tiny-llava-1.5": 576, "tiny-llava-next": 576 + 24 * 25,
         "tiny-llava-onevision": 729 + 27 * 28}  # fmt: skip
"""Visual tokens that the stock processor makes of a scene: in tiles, the whole and one tile, of
which each row ends with a newline."""


@pytest.fixture(scope="module", params=architectures.NAMES)
def plain(request):
    """(name, folder, model) of a shipped checkpoint, as transformers loads it without redlib."""
    folder = CHECKPOINT.parent / request.param
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    return request.param, folder, model


def test_plain_transformers_loads_the_checkpoint(plain):
    """Stock classes, float32 by default."""
    name, _, model = plain
    assert type(model) is architectures.CLASSES[name]
    assert {weight.dtype for weight in model.parameters()} == {model.dtype} == {torch.float32}
    assert model.config.vision_feature_layer == (-1 if name == "tiny-llava-onevision" else -2)
    assert model.config.text_config.num_hidden_layers >= 6


def test_plain_transformers_answers_with_the_checkpoint(plain):
    """Chat template, processor, generate."""
    name, folder, model = plain
    if name == "tiny-llava-onevision" and not is_torchvision_available():
        pytest.skip("OneVision's stock processor needs torchvision")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    right = 0
    found = scenes("test", 10, start=700, objects=1)
    for scene in found:
        chat = [{"role": "user", "content": [{"type": "image"},
                                             {"type": "text", "text": ONE_WORD}]}]  # fmt: skip
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(images=scene.image, text=text, return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == SHOWN[name]
        out = model.generate(**inputs, max_new_tokens=4)
        said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += said.split()[-1] == scene.objects[0].noun
    assert right >= 6  # the card says how often; this only tells a trained model from a broken one


@pytest.mark.parametrize("name", architectures.NAMES)
def test_the_checkpoint_is_small(name):
    folder = CHECKPOINT.parent / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16_000_000
