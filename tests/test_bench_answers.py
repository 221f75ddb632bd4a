"""Packed answers against stock `generate`, one question at a time, and the evaluation loop."""

from dataclasses import dataclass

import pytest
import torch

from redlib.bench import accuracy, answers, evaluate, keep_none
from redlib.errors import RedlibError
from redlib.prune import keep_lowest, random_scores

QUESTIONS = [
    "what does this image show ?",
    "is a cup on the plate ?",
    "what",
    "red or blue ?",
    "the star in one picture of the crown on the left",
]


def stock(vlm, tokens, question, max_new_tokens):
    """The answer of `generate` to one prompt whose embeddings are put together by hand."""
    text = f"USER: <image>\n{question} ASSISTANT:"
    ids = vlm.processor.tokenizer(text)["input_ids"]
    at = ids.index(vlm.model.config.image_token_id)
    embed = vlm.model.get_input_embeddings()
    rows = torch.cat([embed(torch.tensor(ids[:at])), tokens, embed(torch.tensor(ids[at + 1 :]))])
    with torch.no_grad():
        found = vlm.model.generate(
            inputs_embeds=rows[None],
            attention_mask=torch.ones(1, len(rows), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    return vlm.processor.tokenizer.decode(found[0], skip_special_tokens=True).strip()


def test_answers_are_those_of_generate(tiny_vlm, tiny_tokens):
    expected = [stock(tiny_vlm, tiny_tokens, question, 9) for question in QUESTIONS]
    assert len(set(expected)) == len(expected) and all(expected)
    assert answers(tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=9) == expected


@pytest.mark.parametrize("keep", [0, 1, 7])
def test_kept_subsets_are_those_of_generate(tiny_vlm64, tiny_tokens, keep):
    tokens = tiny_tokens[torch.arange(keep) * 3].double()
    expected = [stock(tiny_vlm64, tokens, question, 5) for question in QUESTIONS]
    assert answers(tiny_vlm64, tokens, QUESTIONS, max_new_tokens=5) == expected


def test_the_kept_tokens_matter(tiny_vlm, tiny_tokens):
    whole = answers(tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=5)
    assert answers(tiny_vlm, tiny_tokens[::5], QUESTIONS, max_new_tokens=5) != whole


def test_an_ended_answer_leaves_the_others_alone(tiny_vlm, tiny_tokens, monkeypatch):
    whole = [stock(tiny_vlm, tiny_tokens, question, 8) for question in QUESTIONS]
    # Let the second word of the first answer end every answer: some stop early, some never.
    end = tiny_vlm.processor.tokenizer.convert_tokens_to_ids(whole[0].split()[1])
    monkeypatch.setattr(tiny_vlm.model.generation_config, "eos_token_id", [end, 3])
    expected = [stock(tiny_vlm, tiny_tokens, question, 8) for question in QUESTIONS]
    stopped = [text.removesuffix(" " + whole[0].split()[1]) for text in expected]
    lengths = {len(text.split()) for text in stopped}
    assert min(lengths) <= 1 and len(lengths) > 1
    assert answers(tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=8) == stopped


def test_neither_order_nor_batch_changes_an_answer(tiny_vlm, tiny_tokens):
    whole = answers(tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=6)
    assert answers(tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=6, batch=2) == whole
    backwards = answers(tiny_vlm, tiny_tokens, QUESTIONS[::-1], max_new_tokens=6)
    assert backwards[::-1] == whole
    assert answers(tiny_vlm, tiny_tokens, [], max_new_tokens=6) == []


def test_common_beginnings_and_equal_questions_are_computed_once(tiny_vlm, tiny_tokens):
    """ "<s> USER:" and 25 tokens, then "red or blue ? ASSISTANT:", and of the second question the
    words behind "red or"."""
    asked = ["red or blue ?", "red or green ?", "red or blue ?"]
    seen = []
    hook = tiny_vlm.decoder.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[0] * output.shape[1])
    )
    try:
        said = answers(tiny_vlm, tiny_tokens, asked, max_new_tokens=6)
    finally:
        hook.remove()
    assert seen[:2] == [2 + 25, 5 + 3] and max(seen[2:]) == 2  # words of two answers
    assert said == [stock(tiny_vlm, tiny_tokens, question, 6) for question in asked]
    assert said[0] != said[1]


def test_eager_attention_answers_alike(tiny_vlm, tiny_tokens):
    whole = answers(tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=6)
    before = tiny_vlm.decoder.config._attn_implementation
    assert before == "sdpa"
    tiny_vlm.model.set_attn_implementation("eager")
    try:
        assert answers(tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=6) == whole
    finally:
        tiny_vlm.model.set_attn_implementation(before)


def test_bad_arguments(tiny_vlm, tiny_tokens):
    with pytest.raises(RedlibError, match=r"shape \(K, 48\).*got \(25, 40\)"):
        answers(tiny_vlm, tiny_tokens[:, :40], QUESTIONS)
    with pytest.raises(RedlibError, match="max_new_tokens must be at least 1; got 0"):
        answers(tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=0)
    with pytest.raises(RedlibError, match="batch must be at least 1; got 0"):
        answers(tiny_vlm, tiny_tokens, QUESTIONS, batch=0)


@dataclass(frozen=True)
class Record:
    """A question as the loop reads it."""

    task: str
    image: str
    text: str
    answer: str
    group: str = ""
    asked: int = -1


def test_evaluate_gives_one_row_per_question_in_order(tiny_vlm, tiny_tokens):
    tokens = {"s1": tiny_tokens, "s2": tiny_tokens.flip(0)}
    said = {
        image: answers(tiny_vlm, tokens[image][:6], QUESTIONS, max_new_tokens=3) for image in tokens
    }
    records = [
        Record("colour", image, question, said[image][i] if i % 2 else "nothing", asked=i)
        for i, question in enumerate(QUESTIONS)
        for image in ("s2", "s1")
    ]
    seen = []

    def first_six(image, of):
        seen.append(image)
        return torch.arange(len(of)) < 6

    frame = evaluate(
        tiny_vlm, tokens, records, first_six, method="first", max_new_tokens=3, progress=False
    )
    assert sorted(seen) == ["s1", "s2"]  # once per image
    assert frame.columns.tolist() == [
        "method", "task", "image", "group", "asked", "question", "gold", "answer", "correct",
        "kept",
    ]  # fmt: skip
    assert frame["question"].tolist() == [record.text for record in records]
    assert frame["image"].tolist() == [record.image for record in records]
    assert frame["answer"].tolist() == [said[r.image][r.asked] for r in records]
    assert frame["correct"].tolist() == [record.asked % 2 == 1 for record in records]
    assert (frame["kept"] == 6).all() and (frame["method"] == "first").all()
    assert accuracy(frame)["accuracy"].tolist() == [0.4]


def test_evaluate_baselines(tiny_vlm, tiny_tokens):
    records = [Record("count", "s1", question, "one") for question in QUESTIONS]
    tokens = {"s1": tiny_tokens}

    def run(*keep):
        return evaluate(tiny_vlm, tokens, records, *keep, max_new_tokens=3, progress=False)

    everything, blind = run(), run(keep_none)
    random = run(lambda image, of: keep_lowest(random_scores(len(of), [0, 1]), 5))
    assert [frame["kept"].unique().tolist() for frame in (everything, blind, random)] == [
        [25], [0], [5],
    ]  # fmt: skip
    assert everything["answer"].tolist() == answers(
        tiny_vlm, tiny_tokens, QUESTIONS, max_new_tokens=3
    )
    assert (blind["answer"] != everything["answer"]).any()


def test_evaluate_refuses_what_does_not_fit(tiny_vlm, tiny_tokens):
    record = Record("count", "s9", "what", "one")
    with pytest.raises(RedlibError, match="no visual tokens for image 's9'"):
        evaluate(tiny_vlm, {"s1": tiny_tokens}, [record], progress=False)
    with pytest.raises(RedlibError, match=r"boolean mask \(25,\); got torch.int64 \(6,\)"):
        evaluate(
            tiny_vlm,
            {"s9": tiny_tokens},
            [record],
            lambda image, of: torch.arange(6),
            method="wrong",
            progress=False,
        )
