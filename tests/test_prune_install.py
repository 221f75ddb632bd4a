"""The installer against the stock model, with small random models of the three families.

Float64 throughout. What the language model should get is written out by hand: the stock model's own
packed image rows, of which those that were told to be kept are put between the embeddings of the
text.
"""

import copy
import functools
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pruning
import pytest
import torch
from conftest import random_image
from PIL import Image
from pruning import IMAGES, KINDS, TEXTS, Maker, model_of, picture
from torch import nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.utils import is_torchvision_available

import redlib
from redlib.errors import RedlibError
from redlib.prune import prepare
from redlib.tabletop import scenes

EMBEDDED = ("tiny-llava-1.5", "tiny-llava-next", "tiny-llava-onevision")

EXACT = 1e-9


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp(request.param)
    pruning.save(request.param, folder)
    return SimpleNamespace(
        kind=request.param,
        folder=folder,
        model=model_of(folder),
        maker=Maker(request.param, folder),
    )


def batch(made, **how) -> dict:
    return made.maker(TEXTS, IMAGES, **how)


@torch.no_grad()
def image_rows(model, inputs) -> list[torch.Tensor]:
    """What the stock model puts into the place of each image, newlines included."""
    names = ("pixel_values", "image_sizes", "batch_num_images")
    given = {k: inputs[k] for k in names if k in inputs}
    return list(model.model.get_image_features(**given, return_dict=True).pooler_output)


def those_kept(model, rows, kept) -> torch.Tensor:
    """Rows of an image without those visual tokens that are not kept."""
    newline = getattr(model.model, "image_newline", None)
    stays, number = [], 0
    for row in rows:
        if newline is not None and torch.equal(row, newline):
            stays.append(row)
        else:
            if number in kept:
                stays.append(row)
            number += 1
    return torch.stack(stays)


def embedded(model, ids, rows) -> torch.Tensor:
    """(1, T, D): a prompt's text with images in place of their runs of placeholders."""
    table = model.get_input_embeddings().weight.detach()
    rows, out, skip = list(rows), [], 0
    for token in ids.tolist():
        if skip:
            skip -= 1
        elif token == model.config.image_token_id:
            stock, new = rows.pop(0)
            out += list(new)
            skip = len(stock) - 1
        else:
            out.append(table[token])
    return torch.stack(out)[None]


@torch.no_grad()
def literal(model, inputs, run) -> list[torch.Tensor]:
    """The prompts of a batch by hand, (1, T, D) each, for what a run says it kept."""
    stock = image_rows(model, inputs)
    pairs = [
        (s, those_kept(model, s, k.kept.tolist())) for s, k in zip(stock, run.last, strict=True)
    ]
    pairs = [pairs[:1], pairs[1:]]
    ids = [row[mask.bool()] for row, mask in zip(inputs["input_ids"], inputs["attention_mask"],
                                                 strict=True)]  # fmt: skip
    return [embedded(model, row, each) for row, each in zip(ids, pairs, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_tokens_kept_are_the_stock_model(made, side):
    inputs, model = batch(made, side=side), made.model
    with torch.no_grad():
        stock = model(**inputs).logits
        with redlib.pruned(model, "random", keep=1.0, per="image") as run:
            ours = model(**inputs).logits
    assert torch.equal(ours, stock)
    assert [k.before for k in run.last] == [k.after for k in run.last]
    assert stock.std() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep", [1, 7, 0.5])
def test_forward_is_the_literal_computation(made, side, keep):
    """Prompts of one and of two images, padded; each compared with a forward of it alone."""
    inputs, model = batch(made, side=side), made.model
    with torch.no_grad(), redlib.pruned(model, "random", keep=keep, per="image") as run:
        logits = model(**inputs).logits
    starts = inputs["attention_mask"].argmax(1)  # stock forward counts padding on the left
    for row, rows in enumerate(literal(model, inputs, run)):
        n = rows.shape[1]
        with torch.no_grad():
            positions = starts[row] + torch.arange(n)[None]
            expected = model(inputs_embeds=rows, position_ids=positions).logits[0]
        ours = logits[row, -n:] if side == "left" else logits[row, :n]
        assert (ours - expected).abs().max() < EXACT
    for kept in run.last:
        count = round(keep * kept.before) if isinstance(keep, float) else keep
        assert kept.after == len(set(kept.kept.tolist())) == count
        assert kept.kept.tolist() == sorted(kept.kept.tolist())


def test_another_choice_gives_other_logits(made):
    inputs, last = batch(made), []
    for seed in (0, 1):
        with torch.no_grad(), redlib.pruned(made.model, "random", keep=7, per="image", seed=seed):
            last.append(made.model(**inputs).logits[:, -1])
    assert (last[0] - last[1]).abs().max() > 1e-2


def test_generate_is_a_literal_greedy_loop(made):
    inputs, model = batch(made), made.model
    with redlib.pruned(model, "random", keep=5, per="image") as run:
        ids = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(ids[:, :length], inputs["input_ids"])
    end = model.generation_config.eos_token_id
    table = model.get_input_embeddings().weight
    for row, rows in enumerate(literal(model, inputs, run)):
        for token in ids[row, length:].tolist():
            with torch.no_grad():
                logits = model(inputs_embeds=rows, use_cache=False).logits[0, -1]
            logits[end] = -torch.inf
            assert token == int(logits.argmax())
            rows = torch.cat([rows, table[token][None, None].detach()], 1)


def test_a_batch_says_what_each_prompt_says_alone(made):
    together, model = batch(made), made.model
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "output_logits": True,
           "return_dict_in_generate": True}  # fmt: skip
    with redlib.pruned(model, "random", keep=5, per="image") as run:
        both = torch.stack(model.generate(**together, **how).logits, 1)
        kept = [k.kept.tolist() for k in run.last]
        for row in (0, 1):
            one = made.maker([TEXTS[row]], [IMAGES[row]])
            alone = torch.stack(model.generate(**one, **how).logits, 1)
            assert (alone[0] - both[row]).abs().max() < EXACT
            assert [k.kept.tolist() for k in run.last] == (kept[:1], kept[1:])[row]


def test_beams_are_those_of_the_embedded_prompt(made):
    """Beam search of the stock model over rows written by hand, one prompt at a time."""
    inputs, model = batch(made), made.model
    how = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    with redlib.pruned(model, "random", keep=4, per="image") as run:
        ours = model.generate(**inputs, **how, return_dict_in_generate=True, output_scores=True)
    length = inputs["input_ids"].shape[1]
    pad = model.generation_config.pad_token_id
    assert torch.equal(ours.sequences[:, :length], inputs["input_ids"].repeat_interleave(2, 0))
    for row, rows in enumerate(literal(model, inputs, run)):
        expected = model.generate(
            inputs_embeds=rows, attention_mask=torch.ones(rows.shape[:2], dtype=torch.long), **how
        )
        found = ours.sequences[2 * row : 2 * row + 2, length:]
        width = max(found.shape[1], expected.shape[1])
        found, expected = (
            nn.functional.pad(each, (0, width - each.shape[1]), value=pad)
            for each in (found, expected)
        )
        assert torch.equal(found, expected)


def test_samples_repeat_the_prompt(made):
    inputs = batch(made)
    with redlib.pruned(made.model, "random", keep=4, per="image"):
        torch.manual_seed(1)
        ids = made.model.generate(
            **inputs, do_sample=True, num_return_sequences=3, max_new_tokens=5, min_new_tokens=5
        )
    length = inputs["input_ids"].shape[1]
    assert ids.shape == (6, length + 5)
    assert torch.equal(ids[:, :length], inputs["input_ids"].repeat_interleave(3, 0))
    assert len({tuple(row) for row in ids[:3, length:].tolist()}) > 1


def test_lengths_count_the_prompt_as_it_was_given(made):
    inputs, model = batch(made), made.model
    length = inputs["input_ids"].shape[1]
    settings = type(model.generation_config)(max_length=length + 3, min_length=length + 3)
    with redlib.pruned(model, "random", keep=4, per="image"):
        by_argument = model.generate(**inputs, max_length=length + 3, min_length=length + 3)
        by_settings = model.generate(**inputs, generation_config=settings)
        default = model.generate(**inputs, min_length=length + 20)
    assert by_argument.shape[1] == by_settings.shape[1] == length + 3
    assert default.shape[1] == length + 20


def test_whoever_looks_at_ids_sees_the_whole_prompt(made):
    inputs = batch(made)
    ids, seen = inputs["input_ids"], []
    length = ids.shape[1]

    def stop(now, scores, **more):
        seen.append(torch.equal(now[:, :length], ids))
        return torch.full((2,), now.shape[1] >= length + 3)

    def only_cup(now, scores):
        seen.append(torch.equal(now[:, :length], ids))
        return scores.index_fill(1, torch.arange(10), -torch.inf)

    def allowed(row, now):
        seen.append(torch.equal(now[:length], ids[row]))
        return list(range(5, 30))

    with redlib.pruned(made.model, "random", keep=4, per="image"):
        out = made.model.generate(
            **inputs, max_new_tokens=9, min_new_tokens=9, stopping_criteria=[stop],
            logits_processor=[only_cup], prefix_allowed_tokens_fn=allowed,
        )  # fmt: skip
    assert out.shape[1] == length + 3 and seen and all(seen)
    assert out[:, length:].min() >= 10 and out[:, length:].max() < 30


class Listener:
    def __init__(self):
        self.heard, self.ended = [], False

    def put(self, value):
        self.heard.append(value)

    def end(self):
        self.ended = True


def test_the_callers_own_come_before_those_of_the_arguments(made):
    """As stock has it, by their class: a criterion or processor that the arguments also make."""
    model, inputs = made.model, batch(made)
    length = inputs["input_ids"].shape[1]
    last = StoppingCriteriaList([MaxLengthCriteria(length + 5)])
    plain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.0)])
    for how in (
        {"max_new_tokens": 2, "stopping_criteria": last},
        {"max_new_tokens": 4, "repetition_penalty": 30.0, "logits_processor": plain},
    ):
        stock = model.generate(**inputs, **how, do_sample=False)
        with redlib.pruned(model, "random", keep=1.0, per="image"):
            ours = model.generate(**inputs, **how, do_sample=False)
        assert torch.equal(ours, stock)
        assert not {"_merge_criteria_processor_list"} & vars(model).keys()


def test_a_mask_is_inferred_by_the_calls_own_padding(made, monkeypatch):
    model, inputs = made.model, batch(made)
    pad = made.maker.tokenizer.pad_token_id
    monkeypatch.setattr(model.generation_config, "pad_token_id", None)
    without = {k: v for k, v in inputs.items() if k != "attention_mask"}
    assert not bool(inputs["attention_mask"].all())
    with redlib.pruned(model, "random", keep=3, per="image") as run:
        with_mask = model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=pad)
        given = GenerationConfig(pad_token_id=pad, max_new_tokens=3, do_sample=False)
        for how in ({"pad_token_id": pad, "max_new_tokens": 3, "do_sample": False},
                    {"generation_config": given}):  # fmt: skip
            assert torch.equal(model.generate(**without, **how), with_mask)
    assert len(run.last) == 3


def test_a_streamer_hears_the_whole_prompt(made):
    inputs, listener = made.maker(TEXTS[:1], IMAGES[:1]), Listener()
    with redlib.pruned(made.model, "random", keep=4, per="image"):
        ids = made.model.generate(**inputs, max_new_tokens=3, streamer=listener)
    assert torch.equal(listener.heard[0], inputs["input_ids"])
    assert torch.cat([each.flatten() for each in listener.heard]).tolist() == ids[0].tolist()
    assert listener.ended


def test_ids_may_come_as_inputs_and_without_a_mask(made):
    inputs, model = batch(made), made.model
    bare = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    with redlib.pruned(model, "random", keep=4, per="image"):
        expected = model.generate(**inputs, max_new_tokens=4)
        assert torch.equal(model.generate(inputs["input_ids"], **bare, max_new_tokens=4), expected)


def test_labels_go_along(made):
    """The loss is that of the text's labels, computed from the logits by hand."""
    inputs, model = batch(made), made.model
    labels = inputs["input_ids"].masked_fill(
        (inputs["input_ids"] == model.config.image_token_id) | (inputs["attention_mask"] == 0), -100
    )
    labels[torch.arange(2), inputs["attention_mask"].argmax(1)] = -100  # nothing stands before it
    with torch.no_grad(), redlib.pruned(model, "random", keep=3, per="image") as run:
        out = model(**inputs, labels=labels)
    losses, table = [], model.get_input_embeddings().weight
    for rows in literal(model, inputs, run):
        with torch.no_grad():
            logits = model(inputs_embeds=rows).logits[0].log_softmax(-1)
        for t in range(1, rows.shape[1]):  # text is predicted from whatever stands before it
            word = (table == rows[0, t]).all(1).nonzero().flatten().tolist()
            losses += [-logits[t - 1, i] for i in word]
    assert len(losses) == int((labels != -100).sum()) > 10
    assert abs(float(out.loss) - float(torch.stack(losses).mean())) < 1e-5


def test_text_alone_passes_through(made):
    inputs = made.maker(["USER: what is this ?", "the red cup show"])
    inputs = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        stock, ids = made.model(**inputs).logits, made.model.generate(**inputs, max_new_tokens=4)
        with redlib.pruned(made.model, "random", keep=1) as run:
            assert torch.equal(made.model(**inputs).logits, stock)
            assert torch.equal(made.model.generate(**inputs, max_new_tokens=4), ids)
    assert run.last == [] and run.report == "no visual tokens"


def test_text_beside_a_prompt_with_an_image(made):
    inputs = made.maker(["USER: what is this ?", TEXTS[0]], [[], IMAGES[0]], side="right")
    text = inputs["input_ids"][0][inputs["attention_mask"][0].bool()]
    with torch.no_grad():
        alone = made.model(input_ids=text[None]).logits[0]
        with redlib.pruned(made.model, "random", keep=2, per="image"):
            logits = made.model(**inputs).logits[0, : len(text)]
    assert (logits - alone).abs().max() < EXACT


def state(model) -> tuple:
    hooks = [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in
             model.named_modules()]  # fmt: skip
    return sorted(vars(model)), hooks, model.config._attn_implementation, type(model).forward


@pytest.mark.parametrize("method", ["random", "fastv", "sparsevlm", "received-attention"])
def test_nothing_is_left_behind(made, method):
    inputs, model = batch(made), made.model
    other = model_of(made.folder)
    with torch.no_grad():
        before, was = model(**inputs).logits, state(model)
        with redlib.pruned(model, method, keep=3, per="image"):
            assert state(model) != was
            assert not torch.equal(model(**inputs).logits[:, -1], before[:, -1])
            assert torch.equal(other(**inputs).logits, before)
        assert state(model) == was and torch.equal(model(**inputs).logits, before)
        with pytest.raises(ZeroDivisionError), redlib.pruned(model, method, keep=3, per="image"):
            model(**inputs)
            1 / 0  # noqa: B018
        with redlib.pruned(model, method, keep=3, per="tile"):
            with pytest.raises(RedlibError):  # a call that fails
                model(**inputs, position_ids=inputs["input_ids"])
        assert state(model) == was and torch.equal(model(**inputs).logits, before)


def test_what_another_library_put_there_comes_back(made):
    """accelerate, for one, gives a model a forward of its own."""
    model, inputs = model_of(made.folder), batch(made)
    stock, calls = model.forward, []

    def forward(*args, **kwargs):
        calls.append(1)
        return stock(*args, **kwargs)

    forward.__signature__ = __import__("inspect").signature(stock)
    model.forward = forward
    with torch.no_grad(), redlib.pruned(model, "random", keep=3, per="image"):
        model(**inputs)
    assert calls == [1] and vars(model)["forward"] is forward


@pytest.mark.parametrize("wrap", [functools.wraps, lambda stock: lambda call: call])
@pytest.mark.parametrize("name", ["forward", "generate"])
def test_what_is_put_in_front_of_the_pruner_goes_with_it(small, name, wrap):
    model, inputs = small.model, batch(small)
    with torch.no_grad():
        before = model(**inputs).logits
    with pytest.warns(UserWarning, match=f"^{name} was replaced while the model was pruned"):
        with redlib.pruned(model, "random", keep=4):
            ours = getattr(model, name)
            setattr(model, name, wrap(ours)(lambda *args, **kwargs: ours(*args, **kwargs)))
    assert not {"forward", "generate", "_redlib_run"} & vars(model).keys()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


def test_a_forward_that_takes_nothing_more_is_pruned_or_left_alone(small):
    model = small.model
    model.forward = lambda input_ids=None: input_ids
    try:
        run = redlib.prune.install(model, "random", keep=4)
        assert model.forward(input_ids=torch.full((1, 3), 7)).shape == (1, 3)
        redlib.prune.remove(run.model)
        assert "_redlib_run" not in vars(model)
    finally:
        del model.forward


def test_leaving_waits_for_a_text_in_another_thread(small):
    """A method inside the model holds hooks that the other thread still needs."""
    model, inputs = small.model, batch(small)
    begun, left = threading.Event(), threading.Event()

    def slowly(ids, scores):
        begun.set()
        left.wait(0.2)
        return scores

    with ThreadPoolExecutor(1) as pool:
        with redlib.pruned(model, "fastv", keep=3):
            plain = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            writing = pool.submit(model.generate, **inputs, max_new_tokens=4, do_sample=False,
                                  logits_processor=[slowly])  # fmt: skip
            assert begun.wait(60)
        left.set()
        assert torch.equal(writing.result(60), plain)


def test_a_pipeline(made):
    if made.maker.processor is None:
        pytest.skip("the stock processor of OneVision needs torchvision")
    from transformers import pipeline

    pipe = pipeline("image-text-to-text", model=made.model, processor=made.maker.processor)
    how = {"images": picture(1), "text": TEXTS[0], "max_new_tokens": 4, "min_new_tokens": 4}
    inputs = made.maker([TEXTS[0]], [[picture(1)]])
    with redlib.pruned(made.model, "random", keep=3, per="image") as run:
        (said,) = pipe(**how)
        kept = run.report
        ids = made.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    answer = made.maker.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], True)
    assert said["generated_text"] == TEXTS[0] + " " + answer.strip() and kept.endswith(
        "-> 3 visual tokens"
    )


def test_prompts_written_by_hand_are_those_of_the_stock_processor(made):
    stock = made.maker.processor
    if made.kind != "llava_onevision":
        pytest.skip("only OneVision's are written by hand")
    if stock is None:
        pytest.skip("the stock processor of OneVision needs torchvision")
    made.maker.tokenizer.padding_side = "left"
    written = made.maker.by_hand(TEXTS, IMAGES, [])
    right = stock(text=TEXTS, images=IMAGES, padding=True, return_tensors="pt")
    assert written["input_ids"].tolist() == right["input_ids"].tolist()
    assert torch.equal(written["pixel_values"], right["pixel_values"])
    film = [random_image(seed, width=96, height=80) for seed in range(3)]
    written = made.maker.by_hand(["key what is this ?"], [], [film])
    frames = stock.video_processor(
        np.stack([np.asarray(frame) for frame in film]), return_tensors="pt"
    )
    apart = written["pixel_values_videos"] - frames["pixel_values_videos"]
    # Resized by torch, not by pillow, which round to 255 steps once more or once less in each of
    # two directions; a standard deviation of the pixels is 0.26 and more.
    assert apart.abs().max() < 2 / 255 / 0.26


def test_one_line_is_added_to_a_script(made):
    """As on a model card, with and without the line."""
    model, inputs = made.model, made.maker([TEXTS[0]], [[picture(1)]])

    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    whole = made.maker.tokenizer.decode(output[0], skip_special_tokens=True)

    with redlib.pruned(model, "codebook", keep=1, per="image", codebook=pruning.codebook(),
                       codebook_of_other_model=True) as run:  # fmt: skip
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    pruned = made.maker.tokenizer.decode(output[0], skip_special_tokens=True)
    begins = "USER: what this ?"  # without words that the tokenizer does not know
    assert whole.startswith(begins) and pruned.startswith(begins)
    assert whole != pruned and run.last[0].after == 1


def test_a_loop_by_hand_with_a_cache(made):
    """Neither `generate` nor the loop may end before three words."""
    inputs, model = made.maker([TEXTS[0]], [[picture(1)]]), made.model
    end = model.generation_config.eos_token_id

    def best(out) -> int:
        scores = out.logits[0, -1].clone()
        scores[end] = -torch.inf
        return int(scores.argmax())

    with torch.no_grad(), redlib.pruned(model, "random", keep=3, per="image") as run:
        ids = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)[0, -3:]
        out = model(**inputs)
        said = [best(out)]
        for _ in range(2):
            out = model(input_ids=torch.tensor([[said[-1]]]), past_key_values=out.past_key_values)
            said.append(best(out))
        assert run.last[0].after == 3
    assert said == ids.tolist()


def test_the_threshold_is_that_of_algorithm_2(made):
    inputs, model, book = batch(made), made.model, pruning.codebook()
    how = {"per": "image", "codebook": book, "codebook_of_other_model": True}
    rows = image_rows(model, inputs)
    newline = getattr(model.model, "image_newline", torch.empty(0))
    tokens = [torch.stack([r for r in each if not torch.equal(r, newline)]) for each in rows]
    prototypes = book.vectors.double()
    redundancy = [
        torch.stack([torch.cosine_similarity(t[None], prototypes).max() for t in each])
        for each in tokens
    ]
    r = float(torch.cat(redundancy).median()) + 1e-6
    with torch.no_grad(), redlib.pruned(model, "codebook", threshold=r, **how) as run:
        model(**inputs)
        ours = [k.kept.tolist() for k in run.last]
    assert ours == [(each <= r).nonzero().flatten().tolist() for each in redundancy]
    assert len({len(each) for each in ours}) > 1
    for kept, each in zip(run.last, redundancy, strict=True):
        assert (kept.scores + each).abs().max() < EXACT


def test_an_image_may_lose_everything(made):
    inputs = batch(made)
    how = {"per": "image", "codebook": pruning.codebook(), "codebook_of_other_model": True}
    with redlib.pruned(made.model, "codebook", threshold=-1.0, **how) as run:
        ids = made.model.generate(**inputs, max_new_tokens=3, num_beams=2, min_new_tokens=3)
    assert [k.after for k in run.last] == [0, 0, 0]
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 3


def test_a_threshold_from_a_calibration_split(made):
    inputs = batch(made)
    how = {"per": "image", "codebook": pruning.codebook()}
    r = redlib.prune.threshold_for(
        made.model, "codebook", [inputs], mean_budget=9, codebook_of_other_model=True, **how
    )
    how["codebook_of_other_model"] = True
    with torch.no_grad(), redlib.pruned(made.model, "codebook", threshold=r, **how) as run:
        made.model(**inputs)
    assert sum(k.after for k in run.last) == 27


def bad(**how):
    return how


BAD = [
    (bad(keep=0), "keep must be .* got 0"),
    (bad(keep=-3), "got -3"),
    (bad(keep=1.5), "got 1.5"),
    (bad(keep=0.0), "got 0.0"),
    (bad(keep=float("nan")), "got nan"),
    (bad(keep=True), "got True"),
    (bad(keep="64"), "got '64'"),
    (bad(), "random: give keep"),
    (bad(keep=3, threshold=0.5), "not both; got 3 and 0.5"),
    (bad(threshold=float("nan")), "threshold must be a number; got nan"),
    (bad(method="grid", threshold=0.5), "grid has no scores for a threshold"),
    (bad(keep=3, method="codebok"), "no method 'codebok'; there are codebook, "),
    (bad(keep=3, method=None), "must be a name, a function scores.* or a .*Method; got NoneType"),
    (bad(keep=3, method=redlib.prune.Method), "a function scores.*; got type"),
    (bad(keep=3, sed=1), "random takes no 'sed'; it takes seed"),
    (bad(keep=3, method="grid", seed=1), "grid takes no 'seed'; it takes no option of its own"),
    (bad(keep=3, per="row"), "per must be 'image' or 'tile'; got 'row'"),
    (bad(keep=3, packing="flat"), "packing must be one of stock, split, base; got 'flat'"),
    (bad(keep=3, method="codebook"), "codebook needs codebook=.* got NoneType"),
    (bad(keep=3, method="codebook", codebook=torch.zeros(2, 48)), "got Tensor"),
    (bad(keep=3, method="codebook", codebook=pruning.codebook(47)), "width 47, the model has 48"),
    (bad(keep=3, method="codebook", codebook=pruning.codebook()), "made with 'any'"),
    (bad(keep=3, method="fastv", layer=0), "layer must be .* from 1 to 3, .* got 0"),
    (bad(keep=3, method="fastv", layer=True), "got True"),
    (bad(keep=3, method="fastv", layer=2.0), "layer must be a whole number .* got 2.0"),
    (bad(keep=3, extra=torch.zeros(25)), "extra must name what it holds, .*; got Tensor"),
    (bad(keep=3, extra=[1, 2]), "extra must name what it holds, .*; got list"),
    (bad(keep=3, extra=[]), "extra must name what it holds, .*; got list"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("llava")
    pruning.save("llava", folder)
    return SimpleNamespace(kind="llava", folder=folder, model=model_of(folder),
                           maker=Maker("llava", folder))  # fmt: skip


@pytest.mark.parametrize("how, words", BAD)
def test_bad_settings(small, how, words):
    was = state(small.model)
    with pytest.raises(RedlibError, match=words) as error:
        redlib.prune.install(small.model, **{"method": "random", **how})
    assert "\n" not in str(error.value) and state(small.model) == was


def test_a_count_may_be_numpys(small):
    said = []
    for keep in (3, np.int64(3), np.float32(3 / 25)):
        torch.manual_seed(0)
        with redlib.pruned(small.model, "random", keep=keep) as run, torch.no_grad():
            said.append(small.model(**batch(small)).logits)
        assert len(run.last[0].kept) == 3
    assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2])


@pytest.mark.parametrize("method, option", [("random", "seed"), ("fastv", "layer")])
def test_an_option_may_be_numpys(small, method, option):
    kept = []
    for value in (1, np.int64(1), np.uint8(1)):
        with redlib.pruned(small.model, method, keep=3, **{option: value}) as run, torch.no_grad():
            small.model(**batch(small))
        kept.append([view.kept.tolist() for view in run.last])
    assert kept[0] == kept[1] == kept[2]


def test_a_small_number_of_numpys_does_not_overflow(small):
    """20 x 10 and so on lie beyond int8."""
    for method in ("visionzip", "sparsevlm"):
        kept = []
        for keep in (20, np.int8(20)):
            with redlib.pruned(small.model, method, keep=keep) as run, torch.no_grad():
                small.model(**batch(small))
            kept.append(run.last[0].kept.tolist())
        assert kept[0] == kept[1], method


def test_a_codebook_of_this_model_needs_no_word(small):
    model = model_of(small.folder)
    book = pruning.codebook(name=f"somewhere/{small.folder.name}")
    with redlib.pruned(model, "codebook", keep=3, codebook=book):
        pass


def test_a_codebook_first_used_without_gradients_serves_with_them(small):
    book = pruning.codebook(width=small.model.config.text_config.hidden_size)
    how = {"codebook": book, "codebook_of_other_model": True}
    with redlib.pruned(small.model, "codebook", keep=3, **how):
        with torch.inference_mode():
            small.model.generate(**batch(small), max_new_tokens=1)
        assert small.model(**batch(small)).logits.requires_grad


def test_images_encoded_beforehand_are_refused(small):
    model, inputs = small.model, batch(small)
    text = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    text["mm_encoder_outputs"] = {"image": image_rows(model, inputs)}
    beside = {**inputs, "inputs_embeds": torch.zeros(1)}
    with redlib.pruned(model, "random", keep=3):
        for call in (lambda: model(**text), lambda: model.generate(**text, max_new_tokens=1)):
            with pytest.raises(RedlibError, match="leave out mm_encoder_outputs"):
                call()
        with pytest.raises(RedlibError, match="leave out inputs_embeds"):
            model.generate(**beside, max_new_tokens=1)


def test_towers_whose_cls_is_a_visual_token_are_refused(small, monkeypatch):
    monkeypatch.setattr(small.model.config, "vision_feature_select_strategy", "full")
    with pytest.raises(RedlibError, match="vision_feature_select_strategy keeps .cls."):
        redlib.prune.install(small.model, "random", keep=3)


def test_installed_twice_or_not_at_all(small):
    with redlib.pruned(small.model, "random", keep=3):
        with pytest.raises(RedlibError, match="pruned already, by random: remove"):
            redlib.prune.install(small.model, "grid", keep=3)
        redlib.prune.remove(small.model)
        run = redlib.prune.install(small.model, "grid", keep=3)
    with pytest.raises(RedlibError, match="nothing to remove"):
        redlib.prune.remove(small.model)
    for other in (None, "model", run):
        with pytest.raises(RedlibError, match="remove takes the model that was given to install"):
            redlib.prune.remove(other)


def test_messages_name_what_the_package_has(small):
    """They advise `remove(model)`, as a script would write it."""
    run = redlib.install(small.model, "random", keep=3)
    assert run is vars(small.model)["_redlib_run"]
    redlib.remove(small.model)
    assert "_redlib_run" not in vars(small.model) and {"install", "remove"} <= {*dir(redlib)}


def test_models_of_other_kinds(small):
    for model in (small.model.model, small.model.model.language_model, nn.Linear(2, 2)):
        with pytest.raises(RedlibError, match="LlavaForConditionalGeneration, .*; got "):
            redlib.prune.install(model, "random", keep=3)


def test_bad_prompts(small):
    model, inputs = small.model, batch(small)
    ids = inputs["input_ids"]
    two = {**inputs, "pixel_values": inputs["pixel_values"][:2]}
    without = {k: v for k, v in inputs.items() if k != "pixel_values"}
    hidden = inputs["attention_mask"].clone()
    hidden[1, (ids[1] == model.config.image_token_id).nonzero()[3]] = 0
    square = torch.ones(len(ids), 1, ids.shape[1], ids.shape[1])
    holed = ids.clone()
    holed[0, (ids[0] == model.config.image_token_id).nonzero()[3]] = 7
    cases = [
        (two, r"prompt 1 has 50 image placeholders, .* \(25, 25 in this batch"),
        ({**inputs, "input_ids": holed}, "prompt 0 has 24 image placeholders"),
        ({**inputs, "input_ids": torch.full_like(ids, 7)}, "3 images were given, .* only 0"),
        (without, "no pixel_values"),
        ({**inputs, "vision_feature_layer": -1}, "vision_feature_layer=-1 is not what"),
        ({**inputs, "position_ids": ids}, "position_ids cannot be given"),
        ({**inputs, "logits_to_keep": torch.tensor([40])}, "logits_to_keep cannot be positions"),
        ({**inputs, "attention_mask": hidden}, "attention_mask hides placeholders"),
        ({**inputs, "attention_mask": square}, r"attention_mask must be \(2, .*; got \(2, 1, "),
    ]
    with torch.no_grad(), redlib.pruned(model, "random", keep=3):
        for given, words in cases:
            for call in (model.forward, model.generate):
                with pytest.raises(RedlibError, match=words):
                    call(**given)
        rows = model.get_input_embeddings()(ids)
        for call in (model, model.generate):
            with pytest.raises(RedlibError, match="needs input_ids"):
                call(inputs_embeds=rows, pixel_values=inputs["pixel_values"])
        with pytest.raises(RedlibError, match=r"labels must be \(2, .*; got \(2, 3\)"):
            model(**inputs, labels=ids[:, :3])
        cache = model(**inputs).past_key_values
        with pytest.raises(RedlibError, match="no new images behind past_key_values"):
            model(**inputs, past_key_values=cache)
        with pytest.raises(RedlibError, match="do not fit its ids"):
            model.generate(input_ids=ids, past_key_values=cache)
    with torch.no_grad(), redlib.pruned(model, "random", keep=26):
        with pytest.raises(RedlibError, match="keep must be at most 25, .*; got 26"):
            model(**inputs)
    with torch.no_grad(), redlib.pruned(model, "oracle", keep=3) as run:
        for extra, words in [
            ({}, "needs extra={'coverage'"),
            ({"coverage": torch.zeros(25)}, "holds 1 tensors for 3 images"),
            ({"coverage": [torch.zeros(24)] * 3}, r"must have shape \(25,\)"),
            ({"coverage": [5] * 3}, "holds 1 tensors for 3 images"),
            ({"coverage": 5}, "holds 1 tensors for 3 images"),
            ({"coverage": [torch.tensor([torch.nan] * 2 + [0] * 23)] * 3}, "NaN for 2 of 25"),
        ]:
            run.extra = extra
            with pytest.raises(RedlibError, match=words):
                model(**inputs)


@pytest.mark.parametrize("seed", [-1, "x", True, 1.0, np.float64(1)])
def test_seeds_that_are_none(small, seed):
    with redlib.pruned(small.model, "random", keep=3, seed=seed):
        words = f"seed must be a whole number .*; got {re.escape(repr(seed))}$"
        with pytest.raises(RedlibError, match=words):
            small.model(**batch(small))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_copy_would_have_the_weights_of_the_original(small, copied):
    model = model_of(small.folder)
    with redlib.pruned(model, "random", keep=3):
        with pytest.raises(RedlibError, match="cannot be copied or pickled: remove"):
            copied(model)
    copied(model)


class Asking:
    """A logits processor that asks the model something else between two words."""

    def __init__(self, ask):
        self.ask, self.heard = ask, []

    def __call__(self, ids, scores):
        self.heard.append(self.ask())
        return scores


def test_asked_from_within_generate(small):
    model, inputs = small.model, batch(small)
    text = {"input_ids": torch.full((1, 3), 7)}
    other = Asking(lambda: (model(**inputs).logits, model(**text).logits))
    with torch.no_grad(), redlib.pruned(model, "grid", keep=3) as run:
        alone = model(**inputs).logits, model(**text).logits
        plain = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        ids = model.generate(**inputs, max_new_tokens=2, do_sample=False, logits_processor=[other])
        assert torch.equal(ids, plain) and len(run.last) == 3
    assert len(other.heard) == 2
    for heard in other.heard:
        assert all(torch.equal(a, b) for a, b in zip(heard, alone, strict=True))


@pytest.mark.parametrize("method", ["fastv", "sparsevlm"])
def test_a_method_inside_holds_one_prompt(small, method):
    model, inputs = small.model, batch(small)
    how = {"max_new_tokens": 6, "do_sample": False}
    asks = [
        lambda: model(**inputs),
        lambda: model(input_ids=torch.full((1, 3), 7)),
        lambda: model.generate(**inputs, **how),
    ]
    with redlib.pruned(model, method, keep=3):
        for ask in asks:
            with pytest.raises(RedlibError, match="in the middle of a text"):
                model.generate(**inputs, **how, logits_processor=[Asking(ask)])
        with pytest.raises(RedlibError, match="leave out guidance_scale"):
            model.generate(**inputs, **how, guidance_scale=1.5)
        each = [small.maker(TEXTS[:1], [[picture(n)]]) for n in range(4)]
        alone = [model.generate(**one, **how) for one in each]
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(model.generate, **one, **how) for one in each * 3]
        for future, ids in zip(futures, alone * 3, strict=True):
            assert torch.equal(future.result(), ids)


def test_images_that_the_processor_refuses(small, tmp_path):
    torn = tmp_path / "torn.png"
    picture(1).save(torn)
    torn.write_bytes(torn.read_bytes()[:200])
    batch = prepare(
        small.maker.processor, [picture(1), torn, "nobody.png", picture(2), 7], [TEXTS[0]] * 5
    )
    assert batch.taken == (0, 3) and sorted(batch.refused) == [1, 2, 4]
    assert "torn.png" in batch.refused[1] and "does not exist" in batch.refused[2]
    assert "processor refuses it" in batch.refused[4]
    expected = small.maker.processor(
        images=[picture(1), picture(2)], text=[TEXTS[0]] * 2, padding=True, return_tensors="pt"
    )
    assert all(torch.equal(batch.inputs[name], value) for name, value in expected.items())
    with redlib.pruned(small.model.float(), "random", keep=3) as run:
        small.model.generate(**batch.inputs, max_new_tokens=2)
    small.model.double()
    assert len(run.last) == 2
    with pytest.raises(RedlibError, match="no image of 1 is left; the first: .*nobody"):
        prepare(small.maker.processor, ["nobody.png"], [TEXTS[0]])
    with pytest.raises(RedlibError, match="2 texts need as many images; got 1"):
        prepare(small.maker.processor, [picture(1)], [TEXTS[0]] * 2)
    with pytest.raises(RedlibError, match="texts must be a list, one for each .*; got 'what'"):
        prepare(small.maker.processor, ["a.png"], "what")
    for one in ("a.png", torn, picture(1)):
        with pytest.raises(RedlibError, match="images must be a list, one for each of the batch"):
            prepare(small.maker.processor, one, [TEXTS[0]])


def test_images_of_pillow_are_prepared_as_their_files(small, tmp_path):
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1_000)
    deep.save(tmp_path / "deep.png")
    given = [deep, Image.new("RGB", (510, 10)), Image.new("F", (8, 8)), "x" * 300 + ".png"]
    batch = prepare(small.maker.processor, given, [TEXTS[0]] * 4)
    assert batch.taken == (0,) and sorted(batch.refused) == [1, 2, 3]
    assert "image 'number 1' is 510 x 10" in batch.refused[1]
    file = prepare(small.maker.processor, [tmp_path / "deep.png"], [TEXTS[0]])
    assert torch.equal(batch.inputs["pixel_values"], file.inputs["pixel_values"])


@pytest.mark.parametrize("beside", [[], ["nobody.png"], [7]])
def test_a_batch_that_only_together_is_refused(small, beside):
    texts = [TEXTS[0]] * len(beside) + [TEXTS[0], f"{TEXTS[0]} {TEXTS[0].split()[-1]}"]
    with pytest.raises(RedlibError, match="the processor refuses the batch: "):
        prepare(small.maker.processor, [*beside, picture(1), picture(2)], texts, padding=False)


def test_a_batch_of_nothing(small):
    with pytest.raises(RedlibError, match="texts: none"):
        prepare(small.maker.processor, [], [])


CARD = """
from PIL import Image
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(model_id)

conversation = [
    {
        "role": "user",
        "content": [
            {"type": "image"},
            {"type": "text", "text": "Describe the provided image in one sentence."},
        ],
    },
]
prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
image = Image.open(image_file)
inputs = processor(images=image, text=prompt, return_tensors="pt")

output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
said = processor.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
"""
"""A script as on the cards of llava-hf: chat template, processor, generate."""

LINE = 'with redlib.pruned(model, "random", keep=64, per="tile") as run:'


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_script_of_a_model_card_takes_one_line_more(name, tmp_path):
    if name == "tiny-llava-onevision" and not is_torchvision_available():
        pytest.skip("the stock processor of OneVision needs torchvision")
    start = "output = model.generate("
    pruned = CARD.replace(start, f"{LINE}\n    {start}")
    assert [line for line in pruned.split("\n") if line.strip() not in CARD] == [LINE]
    scenes("test", 1)[0].image.save(tmp_path / "image.png")
    whole = {"model_id": redlib.hub.locate(name), "image_file": tmp_path / "image.png"}
    few = {**whole, "redlib": redlib}
    exec(CARD, whole)
    exec(pruned, few)
    assert "a cup" in whole["said"] and len(few["said"].split()) > 3
    assert whole["said"] != few["said"]
    (view,) = few["run"].last
    assert view.after < view.before and view.after % 64 == 0
