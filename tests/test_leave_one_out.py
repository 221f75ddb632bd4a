import literal
import numpy as np
import pytest
import torch
from conftest import PROMPT

from redlib.errors import RedlibError
from redlib.leave_one_out import candidates, cascade, jsd
from redlib.models import VLM

LEVELS = ("region", "global", "token")


@pytest.fixture(scope="module")
def pairs(vlm: VLM, tokens: torch.Tensor) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Literal logits before and after, per level and patch."""
    return {
        level: [
            literal.pair(vlm.model, vlm.processor, tokens, vlm.pad, patch, PROMPT, level)
            for patch in range(25)
        ]
        for level in LEVELS
    }


@pytest.mark.parametrize("definition", ["paper", "released"])
def test_jsd_equals_the_formula_with_scalars(definition: str):
    generator = torch.Generator().manual_seed(0)
    intact = torch.randn(6, 40, generator=generator, dtype=torch.float64) * 3
    changed = intact + torch.randn(6, 40, generator=generator, dtype=torch.float64)
    values = jsd(intact, changed, top=12, definition=definition)
    expected = [
        literal.divergence(m, n, 12, definition) for m, n in zip(intact, changed, strict=True)
    ]
    assert min(expected) > 0 and np.std(expected) > 0
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    unchanged = jsd(intact, intact, top=12, definition=definition)
    assert (unchanged >= 0).all() and (unchanged < 1e-15).all()


def test_the_two_definitions_agree_for_small_changes_up_to_the_mean():
    generator = torch.Generator().manual_seed(1)
    intact = torch.randn(50, generator=generator, dtype=torch.float64)
    changed = intact + 1e-3 * torch.randn(50, generator=generator, dtype=torch.float64)
    paper = jsd(intact, changed, top=10)
    released = jsd(intact, changed, top=10, definition="released")
    assert float(paper / released) == pytest.approx(10, rel=1e-3)


def test_jsd_keeps_its_digits_when_almost_nothing_changes():
    """Second order in the change: (1/8) of its variance under the intact distribution."""
    intact = torch.linspace(2, -2, 20, dtype=torch.float64)
    step = 1e-6 * torch.linspace(-1, 1, 20, dtype=torch.float64) ** 2
    p = intact.softmax(dim=0)
    variance = (p * step**2).sum() - (p * step).sum() ** 2
    assert float(jsd(intact, intact + step)) == pytest.approx(float(variance / 8), rel=1e-3)


@pytest.mark.parametrize("definition", ["paper", "released"])
def test_cascade_equals_literal_ablations(
    vlm: VLM, tokens: torch.Tensor, pairs, bars: dict[str, float], definition: str
):
    frame = cascade(
        vlm, tokens, range(25), prompt=PROMPT, top=20, definition=definition, levels=LEVELS
    )
    top = {"paper": 20, "released": 10}[definition]
    expected = {}
    for level in LEVELS:
        expected[level] = np.array(
            [literal.divergence(*both, top, definition) for both in pairs[level]]
        )
        assert expected[level].min() > 0 and expected[level].std() > 0.1 * expected[level].mean()
        np.testing.assert_allclose(
            frame[f"jsd_{level}"], expected[level], rtol=bars["relative"], err_msg=level
        )
    final = 1.0 * expected["region"] + 16.0 * expected["global"]  # eq. 11
    np.testing.assert_allclose(frame["jsd_final"], final, rtol=bars["relative"])


def test_the_intact_run_decides_the_step(vlm: VLM, tokens: torch.Tensor, pairs):
    """Region runs with and without a leading article occur, and both are compared above."""
    articles = [
        bool(literal.article_of(vlm.model, vlm.processor, tokens[literal.window(patch, 5)], PROMPT))
        for patch in range(25)
    ]
    assert 0 < sum(articles) < 25
    assert literal.article_of(vlm.model, vlm.processor, tokens, PROMPT)


def test_both_definitions_come_from_one_pass(vlm: VLM, tokens: torch.Tensor):
    both = cascade(vlm, tokens, [6, 12], prompt=PROMPT, definition="both", weights=(2.0, 3.0))
    assert list(both) == [
        "patch",
        *(f"jsd_{name}_paper" for name in ("region", "global", "final")),
        *(f"jsd_{name}_released" for name in ("region", "global", "final")),
    ]
    for definition in ("paper", "released"):
        alone = cascade(
            vlm, tokens, [6, 12], prompt=PROMPT, definition=definition, weights=(2.0, 3.0)
        )
        np.testing.assert_allclose(both[f"jsd_final_{definition}"], alone["jsd_final"])


def test_order_and_batch_do_not_matter(vlm: VLM, tokens: torch.Tensor):
    patches = [24, 0, 12, 13, 7]
    at_once = cascade(vlm, tokens, patches, prompt=PROMPT, levels=LEVELS)
    one_by_one = cascade(vlm, tokens, patches, prompt=PROMPT, levels=LEVELS, batch=1)
    assert at_once["patch"].tolist() == patches
    np.testing.assert_allclose(at_once, one_by_one, rtol=1e-3)


def test_levels_can_be_asked_alone(tiny_vlm: VLM, tiny_tokens: torch.Tensor):
    frame = cascade(tiny_vlm, tiny_tokens, [3], prompt=PROMPT, levels=("token",))
    assert list(frame) == ["patch", "jsd_token"]


@pytest.mark.parametrize("level", LEVELS)
def test_candidates_show_the_logits_of_both_runs(
    vlm: VLM, tokens: torch.Tensor, pairs, bars: dict[str, float], level: str
):
    intact, ablated = pairs[level][12]
    frame = candidates(vlm, tokens, 12, prompt=PROMPT, level=level, top=6)
    ids = intact.topk(6).indices
    assert frame["token_id"].tolist() == ids.tolist()
    decode = vlm.processor.tokenizer.decode
    assert frame["word"].tolist() == [decode([i]).strip() for i in ids.tolist()]
    np.testing.assert_allclose(frame["logit_before"], intact[ids], atol=bars["logits"])
    np.testing.assert_allclose(frame["logit_after"], ablated[ids], atol=bars["logits"])
    np.testing.assert_allclose(frame["diff"], frame["logit_before"] - frame["logit_after"])


def test_mistakes_are_named(tiny_vlm: VLM, tiny_tokens: torch.Tensor):
    with pytest.raises(RedlibError, match=r"levels must be some of .*; got \['local'\]"):
        cascade(tiny_vlm, tiny_tokens, [0], prompt=PROMPT, levels=("local",))
    with pytest.raises(RedlibError, match="got 'mine'"):
        cascade(tiny_vlm, tiny_tokens, [0], prompt=PROMPT, definition="mine")
    for top in (0, 10**6):
        with pytest.raises(RedlibError, match=f"top must lie in 1..*got {top}"):
            cascade(tiny_vlm, tiny_tokens, [0], prompt=PROMPT, top=top)
    with pytest.raises(RedlibError, match="weights must be two numbers"):
        cascade(tiny_vlm, tiny_tokens, [0], prompt=PROMPT, weights=(1,))
    with pytest.raises(RedlibError, match="all 25 tokens"):
        cascade(tiny_vlm, tiny_tokens[:24], [0], prompt=PROMPT)
    with pytest.raises(RedlibError, match="top must lie in"):
        jsd(torch.zeros(4), torch.zeros(4), top=5)
    with pytest.raises(RedlibError, match="got 'other'"):
        jsd(torch.zeros(4), torch.zeros(4), top=2, definition="other")
