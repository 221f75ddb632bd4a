import literal
import numpy as np
import pytest
import torch
from conftest import PROMPT, random_image

from redlib.errors import RedlibError
from redlib.models import VLM, load
from redlib.states import attention, read, token_ranks


def eager_copy(vlm: VLM, folder) -> torch.nn.Module:
    """A second stock model that returns attention weights; `vlm` itself stays as it is."""
    copy = load(str(folder), device="cpu", dtype=str(vlm.dtype).split(".")[1]).model
    copy.load_state_dict(vlm.model.state_dict())
    copy.set_attn_implementation("eager")
    return copy


def literal_states(vlm: VLM, tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Attention and contribution norms by eq. 3-4, head by head and token by token, in float64.

    Queries, keys and values are taken from the stock projections by hooks; rotary embedding,
    softmax and output projection are written out.
    """
    model = vlm.model
    answer = literal.article_of(model, vlm.processor, tokens, PROMPT)
    rows = literal.embedded_prompt(model, vlm.processor, tokens, PROMPT, answer)
    caught: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, out, name=name: caught.update({name: out[0]}))
        for name, module in model.named_modules()
        if "language_model" in name and name.endswith(("q_proj", "k_proj", "v_proj"))
    ]
    with torch.no_grad():
        model(inputs_embeds=rows, use_cache=False)
    for hook in hooks:
        hook.remove()
    text = model.config.text_config
    length, width = rows.shape[1], text.head_dim
    steps = torch.arange(0, width, 2, dtype=torch.float32) / width
    frequencies = 1.0 / text.rope_parameters["rope_theta"] ** steps
    angles = (torch.arange(length)[:, None].float() * frequencies).repeat(1, 2)
    # The stock model rounds its angles to float32 before it widens them; so does this.
    cos, sin = angles.cos().double(), angles.sin().double()

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = width // 2
        return x * cos + torch.cat([-x[:, half:], x[:, :half]], dim=1) * sin

    start = len(vlm.prompt(PROMPT)[0])
    shared = text.num_attention_heads // text.num_key_value_heads
    weights, norms = [], []
    for layer in range(text.num_hidden_layers):
        name = f"model.language_model.layers.{layer}.self_attn."
        q, k, v = (caught[f"{name}{part}_proj"].double() for part in "qkv")
        out = model.get_submodule(f"{name}o_proj").weight.detach().double()
        of_head, added = [], torch.zeros(len(tokens), text.hidden_size, dtype=torch.float64)
        for head in range(text.num_attention_heads):
            at = slice(head * width, (head + 1) * width)
            kv = slice(head // shared * width, (head // shared + 1) * width)
            query, key = turned(q[:, at])[-1], turned(k[:, kv])
            softmax = (key @ query / width**0.5).exp()
            softmax = softmax / softmax.sum()
            of_head.append(softmax[start : start + len(tokens)])
            for j in range(len(tokens)):
                added[j] += out[:, at] @ (of_head[-1][j] * v[start + j, kv])
        weights.append(torch.stack(of_head).mean(dim=0))
        norms.append(added.norm(dim=1))
    return torch.stack(weights).numpy(), torch.stack(norms).numpy()


def test_states_equal_the_equations_written_out(
    vlm: VLM, tokens: torch.Tensor, bars: dict[str, float]
):
    weights, norms = literal_states(vlm, tokens)
    assert weights.shape == (3, 25) and weights.min() > 0
    assert (weights.std(axis=1) > 0.1 * weights.mean(axis=1)).all()
    assert (norms.std(axis=1) > 0.1 * norms.mean(axis=1)).all()
    states = read(vlm, tokens, prompt=PROMPT)
    np.testing.assert_allclose(states.attention, weights, rtol=bars["relative"])
    np.testing.assert_allclose(states.contribution, norms, rtol=bars["relative"])
    assert states.article == bool(literal.article_of(vlm.model, vlm.processor, tokens, PROMPT))


def test_attention_equals_what_stock_eager_attention_returns(
    vlm: VLM, tokens: torch.Tensor, tiny_folder
):
    model = eager_copy(vlm, tiny_folder)
    answer = literal.article_of(model, vlm.processor, tokens, PROMPT)
    assert answer, "the article's position must be the one that asks"
    rows = literal.embedded_prompt(model, vlm.processor, tokens, PROMPT, answer)
    with torch.no_grad():
        stock = model(inputs_embeds=rows, output_attentions=True, use_cache=False).attentions
    start = len(vlm.prompt(PROMPT)[0])
    expected = torch.stack([layer[0, :, -1, start : start + 25].mean(dim=0) for layer in stock])
    # Stock eager attention takes its softmax in float32 whatever the model's precision.
    np.testing.assert_allclose(attention(vlm, tokens, prompt=PROMPT), expected, rtol=1e-5)


def test_the_asking_position_is_the_prompt_without_an_article(tiny_vlm64: VLM):
    for seed in range(40):
        tokens = tiny_vlm64.encode([random_image(seed)]).tokens[0]
        if not literal.article_of(tiny_vlm64.model, tiny_vlm64.processor, tokens, PROMPT):
            break
    states = read(tiny_vlm64, tokens, prompt=PROMPT)
    assert not states.article
    weights, norms = literal_states(tiny_vlm64, tokens)
    np.testing.assert_allclose(states.attention, weights, rtol=1e-9)
    np.testing.assert_allclose(read(tiny_vlm64, tokens, prompt=PROMPT).contribution, norms)
    logits = literal.next_logits(tiny_vlm64.model, tiny_vlm64.processor, tokens, PROMPT, [])
    assert states.word == tiny_vlm64.word(int(logits.argmax()))


def literal_rank(logits: torch.Tensor, token: int) -> int:
    order = sorted(range(len(logits)), key=lambda i: -float(logits[i]))
    return 1 + order.index(token)


def test_token_ranks_of_text(vlm: VLM):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (12,), generator=generator)
    frame = token_ranks(vlm, ids)
    assert len(frame) == 4 * 11
    assert frame["depth"].unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    with torch.no_grad():
        output = vlm.model.model.language_model(input_ids=ids[None], output_hidden_states=True)
        final = vlm.model(input_ids=ids[None]).logits[0]
    norm, head = vlm.model.model.language_model.norm, vlm.model.lm_head
    for row in frame.itertuples():
        with torch.no_grad():
            state = output.hidden_states[row.layer][0, row.position]
            logits = final[row.position] if row.layer == 3 else head(norm(state))
        assert row.rank_current == literal_rank(logits, int(ids[row.position]))
        assert row.rank_next == literal_rank(logits, int(ids[row.position + 1]))
        assert row.next == vlm.word(int(ids[row.position + 1]))
    assert frame["rank_next"].nunique() > 5


def test_token_ranks_with_an_image_keep_to_the_text(vlm: VLM, tokens: torch.Tensor):
    before, after = vlm.prompt(PROMPT)
    marker = torch.tensor([vlm.model.config.image_token_id])
    frame = token_ranks(vlm, torch.cat([before, marker, after]), tokens=tokens)
    assert frame["position"].unique().tolist() == [0, *range(3, 9)]
    rows = literal.embedded_prompt(vlm.model, vlm.processor, tokens, PROMPT, [])
    with torch.no_grad():
        final = vlm.model(inputs_embeds=rows).logits[0]
    last = frame[frame["layer"] == 3].set_index("position")
    for position in range(3, 9):
        logits = final[position + len(tokens) - 1]
        assert last["rank_next"][position] == literal_rank(logits, int(after[position - 2]))


def test_mistakes_are_named(tiny_vlm: VLM, tiny_tokens: torch.Tensor):
    with pytest.raises(RedlibError, match="at least two ids"):
        token_ranks(tiny_vlm, torch.tensor([5]))
    with pytest.raises(RedlibError, match="got 2 ids with 0"):
        token_ranks(tiny_vlm, torch.tensor([5, 6]), tokens=tiny_tokens)
