import literal
import numpy as np
import pytest
import torch
from conftest import PROMPT

from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.probe import single


@pytest.fixture(scope="module")
def expected(vlm: VLM, tokens: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """Literal logits (25, V) at the step that is read, and whether an article was skipped."""
    logits, articles = [], []
    for token in tokens:
        answer = literal.article_of(vlm.model, vlm.processor, token[None], PROMPT)
        articles.append(bool(answer))
        logits.append(literal.next_logits(vlm.model, vlm.processor, token[None], PROMPT, answer))
    assert 0 < sum(articles) < len(articles), "both cases must occur"
    return torch.stack(logits), articles


def test_single_equals_one_stock_forward_a_patch(
    vlm: VLM, tokens: torch.Tensor, expected, bars: dict[str, float]
):
    logits, articles = expected
    frame = single(vlm, tokens, range(25), prompt=PROMPT, top=10)
    assert frame["patch"].tolist() == list(range(25))
    assert frame["article"].tolist() == articles
    assert frame["token_id"].tolist() == logits.argmax(dim=1).tolist()
    decode = vlm.processor.tokenizer.decode
    assert frame["word"].tolist() == [decode([i]).strip() for i in frame["token_id"]]
    np.testing.assert_allclose(frame["logit"], logits.max(dim=1).values, atol=bars["logits"])

    weights = logits.double().exp()  # eq. 5, written out
    top1 = weights.max(dim=1).values / weights.sum(dim=1)
    head = weights.sort(dim=1, descending=True).values[:, :10]
    assert top1.min() > 0 and top1.std() > 0.01
    np.testing.assert_allclose(frame["top1"], top1, rtol=bars["relative"])
    np.testing.assert_allclose(
        frame["top1_head"], head[:, 0] / head.sum(dim=1), rtol=bars["relative"]
    )
    p = weights / weights.sum(dim=1, keepdim=True)
    np.testing.assert_allclose(frame["entropy"], -(p * p.log()).sum(dim=1), rtol=bars["relative"])
    best = logits.sort(dim=1, descending=True).values
    np.testing.assert_allclose(frame["margin"], best[:, 0] - best[:, 1], atol=2 * bars["logits"])


def test_patches_may_come_in_any_order_and_batch(vlm: VLM, tokens: torch.Tensor):
    all_of_them = single(vlm, tokens, range(25), prompt=PROMPT, top=10).set_index("patch")
    some = single(vlm, tokens, np.array([17, 3, 24]), prompt=PROMPT, top=10, batch=2)
    assert some["patch"].tolist() == [17, 3, 24]
    np.testing.assert_allclose(some["top1"], all_of_them.loc[[17, 3, 24], "top1"], rtol=1e-5)


def test_best_candidates_can_be_kept(vlm: VLM, tokens: torch.Tensor, expected):
    logits, _ = expected
    frame = single(vlm, tokens, [4, 9], prompt=PROMPT, top=3, keep_top=5)
    best, ids = logits[[4, 9]].topk(5, dim=1)
    assert frame["top_ids"].tolist() == ids.tolist()
    np.testing.assert_allclose(np.stack(frame["top_logits"]), best, atol=1e-4)


def test_repeats_and_line_end(vlm: VLM, tokens: torch.Tensor, bars: dict[str, float]):
    """Families that refuse a lone token see it repeated and closed like an image line."""
    from dataclasses import replace

    newline = vlm.embed([9])[0]
    frame = single(
        replace(vlm, repeats=4, newline=newline), tokens, range(6), prompt=PROMPT, top=10
    )
    for patch in range(6):
        line = torch.cat([tokens[patch].repeat(4, 1), newline[None]])
        answer = literal.article_of(vlm.model, vlm.processor, line, PROMPT)
        logits = literal.next_logits(vlm.model, vlm.processor, line, PROMPT, answer)
        assert frame["logit"][patch] == pytest.approx(float(logits.max()), abs=bars["logits"])


def test_mistakes_are_named(tiny_vlm: VLM, tiny_tokens: torch.Tensor):
    for patches, top, words in (
        ([1.9], 10, "patches must be a list of whole numbers"),
        ([True], 10, "patches must be a list of whole numbers"),
        (["a"], 10, "patches must be a list of whole numbers"),
        (3, 10, "patches must be a list of whole numbers"),
        ([[1], [2, 3]], 10, "patches must be a list of whole numbers"),
        ([25], 10, r"patch 25 lies outside 0\.\.24"),
        ([-1], 10, "patch -1"),
        ([], 10, "no patches"),
        ([0], 1000, "top must lie in"),
        ([0], 1, "top must lie in"),
    ):
        with pytest.raises(RedlibError, match=words):
            single(tiny_vlm, tiny_tokens, patches, prompt=PROMPT, top=top)
