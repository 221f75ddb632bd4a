"""Answers under a rule are those that the stock model gives when `redlib.pruned` prunes it."""

import pytest
import torch
from pruning import KINDS, Maker, codebook, picture, save

import redlib
from redlib.bench.looking import NONE, UNPRUNED, Rule, leave, look, replies, reply
from redlib.errors import RedlibError
from redlib.models import load

TEXTS = ["what", "the cat is"]
END = list(range(5, 12))  # ids of words that end an answer
METHODS = ("codebook", "random", "prumerge", "divprune", "grid", "downsample", "oracle", "fastv",
           "sparsevlm")  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save(request.param, folder)
    return load(str(folder), device="cpu", dtype="float64"), Maker(request.param, folder)


def filled(vlm, text, images):
    """The prompt of a question about so many images, as the chat template writes it."""
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    chat = [{"role": "user", "content": parts[1:] if "<image>" in text else parts}]
    whole = vlm.processor.apply_chat_template(chat, add_generation_prompt=True)
    return whole.replace("<image>", " ".join(["<image>"] * images))


def stock(vlm, maker, rule, text, pictures, packing, per, extra=None, book=None, films=()):
    """One question at a time through `generate` of the pruned stock model."""
    prompt = filled(vlm, text, 1 if "<image>" in text else max(1, len(pictures)))
    if films:
        prompt = prompt.replace("<image>", "key")
    inputs = maker([prompt], [pictures], films)
    options = {"random": {"seed": rule.seed}, "codebook": {"codebook": book}}.get(rule.method, {})
    if rule.method == "codebook":
        options["codebook_of_other_model"] = True
    with redlib.pruned(
        vlm.model, rule.method, keep=rule.tokens, packing=packing, per=per, extra=extra, **options
    ) as run:
        out = vlm.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    text = vlm.processor.tokenizer.decode(
        out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text.strip(), sum(kept.after for kept in run.last), [k.kept.tolist() for k in run.last]


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_pruned_stock_model(made, method):
    vlm, maker = made
    kind = vlm.model.config.model_type
    book, rule = codebook(width=vlm.width), Rule(method, 4, seed=2)
    extra = {"coverage": [torch.linspace(0, 1, 25).sin()]} if method == "oracle" else None
    looked = look(vlm, [picture(1)], extra=extra)
    told = reply(vlm, looked, rule, TEXTS, codebook=book, max_new_tokens=4)
    packing = "stock" if kind == "llava" else "base"
    expected = [
        stock(vlm, maker, rule, text, [picture(1)], packing, None, extra, book) for text in TEXTS
    ]
    assert told.texts == [text for text, *_ in expected]
    assert {told.kept} == {kept for _, kept, _ in expected} == {4}
    stayed = [[one.kept.tolist() for one in each] for each in told.chosen]
    assert stayed == [numbers for *_, numbers in expected]


@pytest.mark.parametrize("method", ("codebook", "fastv", "sparsevlm"))
def test_tiles_images_and_frames(made, method):
    vlm, maker = made
    kind = vlm.model.config.model_type
    book, rule = codebook(width=vlm.width), Rule(method, 3)
    if kind == "llava":
        with pytest.raises(RedlibError, match="has no tiles"):
            look(vlm, [picture(2)], setting="split")
        return
    cases = {"split": ([picture(2)], "split", "tile", 15)}
    if kind == "llava_onevision":
        cases["several"] = ([picture(1), picture(2)], "stock", "image", 6)
        cases["film"] = ([picture(3), picture(3), picture(3)], "stock", "tile", 9)
    for setting, (images, packing, per, count) in cases.items():
        looked = look(vlm, images, setting=setting)
        told = reply(vlm, looked, rule, TEXTS[:1], codebook=book, max_new_tokens=4)
        film = [images] if setting == "film" else ()
        expected = stock(
            vlm, maker, rule, TEXTS[0], [] if film else images, packing, per, book=book, films=film
        )
        stayed = [one.kept.tolist() for one in told.chosen[0]]
        assert (told.texts[0], told.kept, stayed) == expected
        assert told.kept == count


def test_images_stand_where_a_question_has_them(made):
    """Among questions that have them before the text; each as `generate` answers it alone. Only
    OneVision takes several images."""
    vlm, maker = made
    pictures, book = [picture(1), picture(2)], codebook(width=vlm.width)
    if vlm.model.config.model_type != "llava_onevision":
        with pytest.raises(RedlibError, match="several images need a OneVision model"):
            look(vlm, pictures, setting="several")
        return
    texts = ["the cat <image> is", TEXTS[0], "<image> what <image> is", "<image> <image> show"]
    looked = look(vlm, pictures, setting="several")
    for rule in (Rule("codebook", 4), Rule(UNPRUNED, 25), Rule("random", 3, seed=1)):
        with pytest.raises(RedlibError, match="places for 1 images; got 2"):
            reply(vlm, looked, rule, texts[:1], codebook=book)
        told = reply(vlm, looked, rule, texts[1:], codebook=book, max_new_tokens=4)
        pruner = Rule("grid", 25) if rule.method == UNPRUNED else rule
        expected = [
            stock(vlm, maker, pruner, text, pictures, "stock", "image", book=book)[0]
            for text in texts[1:]
        ]
        assert told.texts == expected
    assert len(set(expected)) > 1, "or the places make no difference"
    with pytest.raises(RedlibError, match="no question that says where its images stand"):
        reply(vlm, looked, Rule("fastv", 4), texts[2:3])


def test_budgets_share_what_the_first_layers_read(made):
    """Questions of several lengths, one of them twice; some answers end before the others."""
    vlm, maker = made
    texts = [*TEXTS, "on the left of a red plate in this picture ?", "what", "show the cup"]
    rules = [Rule("fastv", 4), Rule("grid", 4), Rule("fastv", 1), Rule("fastv", 20)]
    packing = "stock" if vlm.model.config.model_type == "llava" else "base"
    end, vlm.model.generation_config.eos_token_id = vlm.model.generation_config.eos_token_id, END
    looked, read = look(vlm, [picture(1)]), []
    first = vlm.decoder.layers[0].register_forward_hook(lambda *of: read.append(of[2].shape[1]))
    try:
        told = replies(vlm, looked, rules, texts, max_new_tokens=4)
        first.remove()
        stocks = [[stock(vlm, maker, rule, text, [picture(1)], packing, None) for text in texts]
                  for rule in rules]  # fmt: skip
    finally:
        first.remove()
        vlm.model.generation_config.eos_token_id = end
    ends = vlm.processor.tokenizer.convert_ids_to_tokens(END)
    for one, expected in zip(told, stocks, strict=True):
        said = [[word for word in text.split() if word not in ends] for text, *_ in expected]
        assert [text.split() for text in one.texts] == said
        stayed = [[kept.kept.tolist() for kept in each] for each in one.chosen]
        assert stayed == [numbers for *_, numbers in expected]
    lengths = {len(said.split()) for one in told for said in one.texts}
    assert len(lengths) > 1 and told[0].texts != told[2].texts
    apart = told[0].chosen[0][0].kept.tolist() != told[0].chosen[2][0].kept.tolist()
    assert apart, "every question must have its own choice, or the test shows nothing"
    assert sum(length >= 25 for length in read) == 1, "the image is read once"


def test_a_batch_of_questions_is_each_of_them(made):
    vlm, _ = made
    looked, rule = look(vlm, [picture(1)]), Rule("sparsevlm", 6)
    texts = [*TEXTS, "on the left of a red plate in this picture ?"]
    end, vlm.model.generation_config.eos_token_id = vlm.model.generation_config.eos_token_id, END
    try:
        together = reply(vlm, looked, rule, texts, max_new_tokens=6)
        alone = [reply(vlm, looked, rule, [text], max_new_tokens=6) for text in texts]
    finally:
        vlm.model.generation_config.eos_token_id = end
    assert together.texts == [one.texts[0] for one in alone]
    assert len({len(text.split()) for text in together.texts}) > 1, "some must end early"
    stayed = [[kept.kept.tolist() for kept in each] for each in together.chosen]
    assert stayed == [[kept.kept.tolist() for kept in one.chosen[0]] for one in alone]


def test_the_two_ends(made):
    vlm, _ = made
    looked = look(vlm, [picture(1)])
    whole, nothing = (leave(vlm, looked, Rule(name, 0)) for name in (UNPRUNED, NONE))
    newlines = vlm.model.config.model_type != "llava"
    tokens = vlm.visual(vlm.encode([picture(1)]).tokens[0])
    torch.testing.assert_close(whole.rows, tokens, rtol=0, atol=1e-12)
    assert (whole.kept[0].after, len(nothing.rows), nothing.kept) == (25, newlines, [])
    assert reply(vlm, looked, Rule(NONE, 0), TEXTS, max_new_tokens=2).kept == 0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("codebook", 4), "codebook needs codebook="),
        (Rule("best", 4), "no method 'best'"),
        (Rule("grid", 0), "keep must be a whole number"),
        (Rule("fastv", 4), "leaves no fixed rows"),
    ],
)
def test_bad_rules_are_named(made, rule, message):
    vlm, _ = made
    with pytest.raises(RedlibError, match=message):
        leave(vlm, look(vlm, [picture(0)]), rule)


def test_bad_settings_are_named(made):
    vlm, _ = made
    with pytest.raises(RedlibError, match="setting must be one of base, split"):
        look(vlm, [picture(0)], setting="unpadded")
    with pytest.raises(RedlibError, match="shows one image; got 2"):
        look(vlm, [picture(0), picture(1)])
