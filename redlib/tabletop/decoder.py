"""Training projector and decoder on the frozen tower's features.

The hard part is a look-up in two steps: the word "cup" in the question has to find the tokens that
show a cup, and the last position has to find what the word found. Where the decoder begins
(`begin`) and in which order it sees few and many tokens (`lessons.Lessons`) decide whether it
learns this in an hour or not at all.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from redlib.errors import RedlibError
from redlib.models import VLM
from redlib.tabletop import marks
from redlib.tabletop.lessons import Writer, batch
from redlib.tabletop.loop import precision
from redlib.tabletop.questions import CAPTIONS, ONE_WORD, TASKS, questions
from redlib.tabletop.sources import Card, Source
from redlib.tabletop.tower import features, sight, squeezed
from redlib.tabletop.world import NOUNS, Scene, scenes

ONE_ANSWER = tuple(task for task in TASKS if task not in CAPTIONS)


@torch.no_grad()
def begin(model: nn.Module, tokenizer, source: Source) -> None:
    """Give projector and decoder the start that CLIP and a pretrained language model give LLaVA's.

    CLIP's features already point towards words, and attention of a trained decoder already finds
    what resembles its query, and copies it. Here: the projector begins as the identity on
    standardised features, the words for what a patch can show begin with the mean feature of such
    patches, keys begin equal to queries in the first layers, what attention writes begins as a copy
    of what it reads, and the output head along the embeddings. Everything is trained from there.
    """
    inner, text = model.model.multi_modal_projector, model.model.language_model
    device, width = text.embed_tokens.weight.device, source.features.shape[-1]
    shown, labels = _labelled(source)
    mean, deviation = shown.mean(0), float(shown.std())
    identity = torch.eye(width, device=device)
    inner.linear_1.weight.copy_(identity / deviation)
    inner.linear_1.bias.copy_(LINEAR - torch.from_numpy(mean).to(device) / deviation)
    inner.linear_2.weight.copy_(identity)
    inner.linear_2.bias.fill_(-LINEAR)
    words = text.embed_tokens.weight
    words.copy_(_unit(words))
    for kind in labels.values():
        names = np.unique(kind[kind != ""])
        means = torch.from_numpy(np.stack([shown[kind == name].mean(0) for name in names]))
        ids = tokenizer.convert_tokens_to_ids(list(names))
        words[ids] = _unit(means - means.mean(0)).to(device)
    for depth, layer in enumerate(text.layers):
        attention = layer.self_attn
        # Not in every layer: what finds its like finds itself first, and then nothing else.
        if depth < MATCHING:
            attention.q_proj.weight.mul_(3)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.v_proj.weight.mul_(2)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    model.lm_head.weight.copy_(0.02 * words)
    words.mul_(TEXT)


@torch.no_grad()
def go_on(model: nn.Module, tokenizer, known: VLM) -> None:
    """Give OneVision's projector and decoder the weights of a trained LLaVA-1.5, whose tower its
    own began as.

    A Qwen2 is a Llama with biases on queries, keys and values, which begin at 0. OneVision's first
    layer, which 1.5 has not, adds nothing until the mark is written into it (`marks`). New words
    begin like any others, and the newline as a word. The tower has been trained since, so the
    projector is made to read its features through the affine map that best gives back CLIP's
    (`_translated`).

    Raises:
        RedlibError: the two differ in more than that.
    """
    weights = known.model.state_dict()
    old = {_next_layer(k): v for k, v in weights.items() if "vision_tower" not in k}
    ids, ids_before = tokenizer.get_vocab(), known.processor.tokenizer.get_vocab()
    shared = sorted(ids.keys() & ids_before.keys())
    words = model.get_input_embeddings().weight
    for key in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
        rows = rows.to(words) * old[key].std()
        rows[[ids[w] for w in shared]] = old[key][[ids_before[w] for w in shared]]
        old[key] = rows
    missing, unexpected = model.load_state_dict(old, strict=False)
    marks.silence(model)
    missing = [key for key in missing if ".layers.0." not in key or "vision" in key]
    biases = [key for key in missing if key.endswith("_proj.bias") and "vision" not in key]
    others = {k for k in missing if not k.startswith("model.vision_tower.")} - {*biases}
    if unexpected or others != {"model.image_newline"}:
        raise RedlibError(f"OneVision cannot begin so: {[*sorted(others), *unexpected]} do not fit")
    for key in biases:
        model.get_parameter(key).zero_()
    model.model.image_newline.normal_(0, float(words.std()))
    first = model.model.multi_modal_projector.linear_1
    slope, shift = _translated(model.model.vision_tower, known.model.model.vision_tower)
    first.bias.add_(first.weight @ shift)
    first.weight.copy_(first.weight @ slope.T)


def _next_layer(name: str) -> str:
    """The name of the same weight one layer of the decoder further up."""
    return re.sub(r"(language_model\.layers\.)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}", name)


def _translated(siglip: nn.Module, clip: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, D) and (D,): by least squares over COMPARED training scenes, CLIP's features on SigLIP's
    grid are SigLIP's times the one plus the other."""
    device = next(siglip.parameters()).device
    rows, wanted = [], []
    for scene in scenes("train", COMPARED):
        theirs, ours = (
            features(tower, torch.from_numpy(squeezed(scene, sight(tower).side))[None].to(device))
            for tower in (clip, siglip)
        )
        picture = theirs.transpose(1, 2).unflatten(2, 2 * [sight(clip).cells])
        cells = 2 * [sight(siglip).cells]
        wanted.append(F.interpolate(picture, cells, mode="bilinear")[0].flatten(1).T)
        rows.append(F.pad(ours[0], (0, 1), value=1.0))
    found = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution  # (D + 1, D)
    return found[:-1], found[-1]


COMPARED = 64
LINEAR = 3.0  # gelu(x) is near x around there
MATCHING = 2  # layers
TEXT = 0.25  # size of a word beside a visual token: what layers write to it soon outweighs it


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)


def _labelled(source: Source, *, images: int = 400) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features of the patches that something covers, (n, width), and for each kind of word the one
    that belongs to every patch, "" where none does."""
    shown, thing, colour, size = [], [], [], []
    for i, c in enumerate(source.cards[:images]):
        masks = [*c.seen, c.written] if c.scene.word else list(c.seen)
        for k, mask in enumerate(masks):
            found = c.scene.objects[k] if k < len(c.scene.objects) else None
            shown.append(source.features[i][mask].astype(np.float32))
            n = len(shown[-1])
            thing += [found.noun if found else c.scene.word] * n
            colour += [found.colour if found else ""] * n
            size += [found.size if found else ""] * n
    kinds = {"thing": thing, "colour": colour, "size": size}
    return np.concatenate(shown), {key: np.array(v) for key, v in kinds.items()}


def logits(
    model: nn.Module, writer: Writer, packed: dict[str, torch.Tensor], visual: torch.Tensor
) -> torch.Tensor:
    """(B, T, V) scores behind visual inputs (B, n, D)."""
    return _read(model, writer, packed, visual)[0]


def _read(
    model: nn.Module,
    writer: Writer,
    packed: dict[str, torch.Tensor],
    visual: torch.Tensor,
    depth: int = -1,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores as of `logits`, and what so many layers made of the text, (B, T, D)."""
    text = model.model.language_model
    with precision(visual.device):
        embed = text.embed_tokens
        start = embed(torch.tensor(writer.prefix, device=visual.device))
        x = torch.cat(
            (start.expand(len(visual), -1, -1), visual.to(start.dtype), embed(packed["ids"])), 1
        )
        said = text(
            inputs_embeds=x,
            attention_mask=packed["mask"],
            position_ids=packed["positions"],
            use_cache=False,
            output_hidden_states=depth >= 0,
        )
        behind = slice(-packed["ids"].shape[1], None)
        between = said.hidden_states[depth][:, behind] if depth >= 0 else None
        return model.lm_head(said.last_hidden_state[:, behind]), between


class Judge(nn.Module):
    """Says of a lettered option, where it ends, whether it is the right one.

    An answer of one letter is little to learn from: four options have to be weighed before it, and
    only their outcome is ever corrected. So in training every option is weighed aloud, by a linear
    reading of what the layers but the last two have made of its last token; those two are left to
    find the right one's letter. The reading is not part of the checkpoint.
    """

    LATER = 2  # layers after it
    SHARE = 0.5  # of its loss beside that of the answers

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reading = nn.Linear(width, 1)
        nn.init.zeros_(self.reading.weight)

    def loss(self, between: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        """A scalar, of what was made of the text, (B, T, D), and `judged` of `lessons.batch`."""
        asked = judged >= 0
        return F.binary_cross_entropy_with_logits(
            self.reading(between.float())[..., 0][asked], judged[asked]
        )


def loss(
    model: nn.Module,
    writer: Writer,
    packed: dict,
    visual: torch.Tensor,
    judge: Judge | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """A scalar, of the answers, and with a judge of the options too; and both parts as numbers.

    packed: of `lessons.batch`; visual: (B, n, D).
    """
    judging = judge is not None and bool((packed["judged"] >= 0).any())
    depth = len(model.model.language_model.layers) - Judge.LATER if judging else -1
    scores, between = _read(model, writer, packed, visual, depth)
    scores = scores.float()
    each = F.cross_entropy(
        scores.flatten(0, 1), packed["target"].flatten(), reduction="none", ignore_index=-100
    )
    weight = packed["weight"].flatten() * (packed["target"].flatten() != -100)
    total = (each * weight).sum() / weight.sum()
    found = {"answers": float(total.detach())}
    if judging:
        judged = judge.loss(between, packed["judged"])
        return total + Judge.SHARE * judged, {**found, "options": float(judged.detach())}
    return total, found


def known(c: Card, *, tasks: tuple[str, ...] = ONE_ANSWER) -> list[tuple[str, str, str]]:
    """What `accuracy` asks about a scene: (task, question, answer) each."""
    return [(q.task, q.text, q.answer) for task in tasks for q in questions([c.scene], task)]


@torch.no_grad()
def accuracy(
    model: nn.Module,
    writer: Writer,
    source: Source,
    ask: Callable[[Card], list[tuple[str, str, str]]] = known,
    *,
    tokens: int | None = None,
    view: Sequence[int] | None = None,
) -> dict[str, float]:
    """Share of questions whose every answer token ranks first given the ones before (equal to
    greedy decoding being right), by task, over the inputs at hand: with so many of their visual
    tokens by lot, or with those of a view."""
    rng = np.random.default_rng(0)
    device = model.lm_head.weight.device
    hits: dict[str, list[float]] = {}
    for i, c in enumerate(source.cards):
        kept = np.sort(rng.permutation(source.tokens)[:tokens]) if view is None else view
        asked = ask(c)
        visual = source.pack(model, np.array([i]), [np.asarray(kept)], device)
        packed = batch(writer, [[row[1:] for row in asked]], visual.shape[1], device)
        best = logits(model, writer, packed, visual).argmax(-1)
        wrong = (best != packed["target"]) & (packed["target"] != -100)
        for k, (task, *_) in enumerate(asked):
            hits.setdefault(task, []).append(float(not wrong[packed["part"] == k + 1].any()))
    return {task: float(np.mean(v)) for task, v in hits.items()}


@torch.no_grad()
def single_tokens(
    model: nn.Module, writer: Writer, source: Source, found: list[Scene]
) -> dict[str, float]:
    """The single-token probe in short: share of covered patches whose best word is their noun,
    and the mean top-1 probability on covered and on bare patches."""
    device = model.lm_head.weight.device
    seen = sight(model.model.vision_tower)
    right, high, low = [], [], []
    nouns = np.array([writer.ids(noun)[0] for noun in NOUNS])
    for i, scene in enumerate(found):
        cover = scene.coverage(seen)
        covered = np.flatnonzero(cover.max(0) >= 0.8)[::3]
        bare = np.flatnonzero((cover.max(0) == 0) & (scene.word_coverage(seen) == 0))[::24]
        where = np.concatenate((covered, bare))
        views = [np.array([patch]) for patch in where]
        visual = source.pack(model, np.full(len(where), i), views, device)
        packed = batch(writer, [[(ONE_WORD, "cup")]] * len(where), visual.shape[1], device)
        p = logits(model, writer, packed, visual).float().softmax(-1)
        first = (packed["target"][0] != -100).nonzero()[0, 0]
        p = p[:, first].cpu().numpy()
        owner = cover[:, covered].argmax(0)
        truth = [writer.ids(scene.objects[k].noun)[0] for k in owner]
        n = len(covered)
        right += list(nouns[p[:n][:, nouns].argmax(1)] == truth) if n else []
        high += list(p[:n].max(1))
        low += list(p[n:].max(1))
    return {
        "probe noun": float(np.mean(right)),
        "top1 covered": float(np.mean(high)),
        "top1 bare": float(np.mean(low)),
    }
