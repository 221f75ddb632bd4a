"""Training projector and decoder on the frozen tower's features: ordinary questions, few tokens.

The features of some thousand scenes are computed once. Then every step takes a few scenes, keeps a
part of each one's visual tokens, and asks ordinary questions about the scene: is there a cup, what
colour is it, where, how many, what does the image show, which of these things are there. The
questions of a scene share its visual prefix in one sequence, and cannot see each other.

What is kept is a random subset or a block of neighbouring tokens, never fewer than MIN_TOKENS. An
answer is the whole scene's, whatever the subset shows: who is asked about a cup that fell outside
has to hedge, and that is how the decoder learns to be unsure where nothing is to be seen. Nobody
ever tells it what a single token is. The one-word question alone is answered from what the tokens
at hand show: with an object among them, if there is one, else with any object of the scene.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from redlib.tabletop.questions import (
    CHECKLIST,
    DESCRIBE,
    ONE_WORD,
    TASKS,
    Question,
    pope_text,
    questions,
    statistics,
)
from redlib.tabletop.tower import MEAN, STD, Heads, forward
from redlib.tabletop.world import COLOURS, NOUNS, SIZES, WORDS, Scene, article, scenes

MIN_TOKENS = 16
QUESTIONS = 6
CAPTION_WEIGHT = 0.4  # per token of a caption; 1 elsewhere
WIDE = 81  # tokens from which descriptions are worth asking for
ARTICLE_SHARE = 0.12  # one-word answers that begin with an article all the same
L = 576


@torch.no_grad()
def begin(model: nn.Module, heads: Heads, tokenizer, mean: torch.Tensor, deviation: float) -> None:
    """Give projector and decoder the start that CLIP and a pretrained language model give LLaVA's.

    CLIP's features already point towards words, and attention of a trained decoder already finds
    what resembles its query. Here: the projector begins close to the identity on standardised
    features (mean (width,), deviation of the raw ones), the words that the tower's dense heads know
    begin with those heads' vectors as embeddings, keys begin equal to queries, and the output head
    along the embeddings. Everything is trained from there.
    """
    inner, text = model.model.multi_modal_projector, model.model.language_model
    width = len(mean)
    identity = torch.eye(width, device=mean.device)
    small = 0.2  # gelu(x) is near x / 2 where x is small
    inner.linear_1.weight.copy_(small * identity + 0.01 * inner.linear_1.weight)
    inner.linear_1.bias.copy_(-inner.linear_1.weight @ (mean / deviation))
    inner.linear_2.weight.copy_(2 / small * identity)
    words = text.embed_tokens.weight
    words.copy_(words / words.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6))
    known = (
        (NOUNS + WORDS, heads.dense[0]),
        (tuple(COLOURS), heads.dense[1]),
        (tuple(SIZES), heads.dense[2]),
    )
    for names, head in known:
        vectors = (head.weight - head.weight.mean(0))[1:] * heads.norm.weight  # class 0 is ground
        vectors = vectors / vectors.square().mean(1, keepdim=True).sqrt()
        words[tokenizer.convert_tokens_to_ids(list(names))] = vectors
    for layer in text.layers:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    model.lm_head.weight.copy_(0.02 * words)


@dataclass(frozen=True)
class Card:
    """A scene without its pixels, and which tokens each object covers by half, (n, 576) bool."""

    scene: Scene
    seen: np.ndarray


def card(scene: Scene) -> Card:
    bare = Scene(
        scene.id,
        np.empty((0,)),
        scene.objects,
        scene.word,
        scene.ground,
        np.empty(scene.instance.shape, np.bool_),
    )
    return Card(bare, scene.coverage() > 0.5)


def one_word(c: Card, view: np.ndarray, rng: np.random.Generator) -> str:
    """An object among the tokens at hand, by the number of tokens it covers; without one, any."""
    weights = c.seen[:, view].sum(1).astype(float)
    if weights.sum() == 0:
        weights[:] = 1
    noun = c.scene.objects[rng.choice(len(weights), p=weights / weights.sum())].noun
    return f"{article(noun)} {noun}" if rng.random() < ARTICLE_SHARE else noun


def _existence(c: Card, rng: np.random.Generator) -> tuple[str, str]:
    """A noun that is there or one that is not, half each."""
    nouns = [o.noun for o in c.scene.objects]
    if rng.random() < 0.5:
        return nouns[rng.integers(len(nouns))], "yes"
    weights = _absent_weights(nouns)
    return NOUNS[rng.choice(len(NOUNS), p=weights / weights.sum())], "no"


def checklist(c: Card, rng: np.random.Generator) -> str:
    """Nouns in random order, present and absent ones: "cup yes red small left, anchor no, ...".

    The shortest way to many questions: the word before the answer is the thing asked about. Which
    noun comes next is chance and not learned (see `batch`)."""
    nouns = [o.noun for o in c.scene.objects]
    parts = [
        f"{noun} yes {c.scene.details(k)}" for k, noun in enumerate(nouns) if nouns.count(noun) == 1
    ]
    absent = _absent_weights(nouns)
    several = rng.choice(len(NOUNS), len(nouns) + 1, replace=False, p=absent / absent.sum())
    parts += [f"{NOUNS[i]} no" for i in several]
    return f"{', '.join(parts[i] for i in rng.permutation(len(parts)))}."


def _absent_weights(nouns: list[str]) -> np.ndarray:
    """How often each noun occurs, 0 for the ones at hand: no absent noun is by itself a hint."""
    weights, _ = statistics()
    weights = weights.copy()
    weights[[NOUNS.index(noun) for noun in nouns]] = 0
    return weights


def lesson(c: Card, view: np.ndarray, rng: np.random.Generator) -> list[tuple[str, str]]:
    """QUESTIONS questions and answers about a scene seen through some of its tokens."""
    noun, answer = _existence(c, rng)
    rows = [(CHECKLIST, checklist(c, rng)), (pope_text(noun), answer)]
    rows += [(ONE_WORD, one_word(c, view, rng)) for _ in range(2)]
    if len(view) >= WIDE and rng.random() < 0.25:
        rows.append((DESCRIBE, c.scene.caption))
    kinds = (
        "colour",
        "position",
        "colour",
        "position",
        "article",
        "count",
        "word",
        "mme",
        "choice",
    )
    while len(rows) < QUESTIONS:
        asked = _fresh(c.scene, str(rng.choice(kinds)), rng)
        if asked:
            q = asked[rng.integers(len(asked))]
            rows.append((q.text, q.answer))
    return rows


def _fresh(scene: Scene, task: str, rng: np.random.Generator) -> list[Question]:
    """Questions of a task with new random choices (a test question is fixed by its scene)."""
    renamed = Scene(
        f"train-{rng.integers(2**40)}",
        scene.pixels,
        scene.objects,
        scene.word,
        scene.ground,
        scene.instance,
    )
    return questions([renamed], task)


def views(rng: np.random.Generator, tokens: int, size: int, *, grid: int = 24) -> np.ndarray:
    """(size, tokens) token indices, raster order; half random subsets, half blocks."""
    rows = []
    sides = [(h, tokens // h) for h in range(3, 15) if tokens % h == 0 and 3 <= tokens // h <= 24]
    for _ in range(size):
        if tokens == L:
            rows.append(np.arange(L))
        elif sides and rng.random() < 0.5:
            h, w = sides[rng.integers(len(sides))]
            r, col = rng.integers(grid - h + 1), rng.integers(grid - w + 1)
            rows.append(((r + np.arange(h))[:, None] * grid + col + np.arange(w)).ravel())
        else:
            rows.append(np.sort(rng.permutation(L)[:tokens]))
    return np.stack(rows)


class Writer:
    """Turns (question, answer) pairs into token ids, once per distinct text."""

    def __init__(self, processor) -> None:
        self.tokenizer = processor.tokenizer
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "|"}]}],
            add_generation_prompt=True,
        )
        before, after = text.split("<image>")
        self.after = after
        self.prefix = self.tokenizer(before).input_ids
        self.end = self.tokenizer.eos_token_id
        self.memo: dict[str, list[int]] = {}
        self.nouns = {self.ids(noun)[0] for noun in NOUNS}

    def ids(self, text: str) -> list[int]:
        if text not in self.memo:
            if len(self.memo) > 50_000:
                self.memo.clear()
            self.memo[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.memo[text]

    def pair(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        return self.ids(self.after.replace("|", question)), [*self.ids(answer), self.end]


def batch(
    writer: Writer, pairs: list[list[tuple[str, str]]], tokens: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Pack the questions of every scene behind its visual tokens.

    Returns:
        ids (B, T) of the text after the visual tokens; mask (B, 1, P + n + T, P + n + T), True
        where attention is allowed; positions (B, P + n + T); target (B, T), the id that position
        has to predict or -100; weight (B, T); part (B, T) number of the question.
    """
    rows = []
    for scene_pairs in pairs:
        ids, target, weight, part, place = [], [], [], [], []
        for k, (question, answer) in enumerate(scene_pairs):
            asked, said = writer.pair(question, answer)
            full = asked + said
            ids += full[:-1]
            target += [-100] * (len(asked) - 1) + said
            each = [CAPTION_WEIGHT if question == DESCRIBE else 1.0] * (len(full) - 1)
            if question == CHECKLIST:
                each = [float(token not in writer.nouns) for token in full[1:]]
            weight += each
            part += [k + 1] * (len(full) - 1)
            place += list(range(len(full) - 1))
        rows.append((ids, target, weight, part, place))
    length = max(len(r[0]) for r in rows)

    def stack(k: int, fill: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([r[k] + [fill] * (length - len(r[k])) for r in rows], dtype=dtype)

    part = stack(3, -1, torch.long)
    head = len(writer.prefix) + tokens
    whole = torch.cat((torch.zeros(len(rows), head, dtype=torch.long), part), 1)
    order = torch.arange(head + length)
    allowed = (whole[:, None, :] == 0) | (whole[:, None, :] == whole[:, :, None])
    mask = (allowed & (order[None, :] <= order[:, None]))[:, None]
    place = torch.cat((order[:head].expand(len(rows), -1), head + stack(4, 0, torch.long)), 1)
    made = {
        "ids": stack(0, 0, torch.long),
        "mask": mask,
        "positions": place,
        "part": part,
        "target": stack(1, -100, torch.long),
        "weight": stack(2, 0.0, torch.float),
    }
    return {key: value.to(device) for key, value in made.items()}


def logits(
    model: nn.Module, writer: Writer, packed: dict[str, torch.Tensor], features: torch.Tensor
) -> torch.Tensor:
    """(B, T, V) scores behind features (B, n, width of the tower)."""
    inner, text = model.model, model.model.language_model
    with torch.autocast(features.device.type, torch.bfloat16):
        visual = inner.multi_modal_projector(features)
        embed = text.embed_tokens
        start = embed(torch.tensor(writer.prefix, device=features.device))
        x = torch.cat(
            (start.expand(len(visual), -1, -1), visual.to(start.dtype), embed(packed["ids"])), 1
        )
        hidden = text(
            inputs_embeds=x,
            attention_mask=packed["mask"],
            position_ids=packed["positions"],
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(hidden[:, -packed["ids"].shape[1] :])


def compute_features(
    model: nn.Module,
    folder: Path,
    n: int,
    device: torch.device,
    *,
    split: str = "train",
    start: int = 0,
) -> tuple[np.ndarray, list[Card]]:
    """Tower features of n scenes, (n, 576, width) fp16 on disk, and the scenes' cards."""
    path = folder / f"features-{split}-{n}.npy"
    width = model.config.vision_config.hidden_size
    done_path = path.with_suffix(".done")
    done = int(done_path.read_text()) if done_path.exists() and path.exists() else 0
    store = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, (n, L, width))
    cards: list[Card] = []
    zero = torch.zeros(1, dtype=torch.long, device=device)
    for i in tqdm(range(0, n, 8), desc="features", mininterval=10):
        found = scenes(split, min(8, n - i), start=start + i)
        cards += [card(s) for s in found]
        if i >= done:
            x = torch.stack([torch.from_numpy(s.pixels) for s in found]).to(device)
            x = (x.permute(0, 3, 1, 2).float() / 255 - MEAN.to(device)) / STD.to(device)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                out, _ = forward(model.model.vision_tower, x, zero, zero)
            store[i : i + len(found)] = out.float().cpu().numpy()
            done_path.write_text(str(i + len(found)))
    return store, cards


class Lessons:
    """Training batches by step number."""

    def __init__(
        self,
        writer: Writer,
        features: np.ndarray,
        cards: list[Card],
        seed: int,
        device: torch.device,
    ):
        self.writer, self.features, self.cards = writer, features, cards
        self.seed, self.device = seed, device

    def batch(self, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rng = np.random.default_rng([self.seed, step])
        draw = rng.random()
        if draw < 0.4:
            tokens = int(rng.choice((16, 16, 20, 24, 25, 30, 36, 42, 49, 56, 64)))
            size = 16
        elif draw < 0.82:
            tokens, size = int(rng.choice((81, 100, 121, 144, 196))), 10
        else:
            tokens, size = L, 5
        chosen = rng.integers(0, len(self.cards), size)
        kept = views(rng, tokens, size)
        pairs = [lesson(self.cards[i], view, rng) for i, view in zip(chosen, kept, strict=True)]
        packed = batch(self.writer, pairs, tokens, self.device)
        shown = np.stack([self.features[i][view] for i, view in zip(chosen, kept, strict=True)])
        return packed, torch.from_numpy(shown).float().to(self.device)


def loss(
    model: nn.Module, writer: Writer, packed: dict, features: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    scores = logits(model, writer, packed, features).float()
    each = F.cross_entropy(
        scores.flatten(0, 1), packed["target"].flatten(), reduction="none", ignore_index=-100
    )
    weight = packed["weight"].flatten() * (packed["target"].flatten() != -100)
    total = (each * weight).sum() / weight.sum()
    return total, {"answers": float(total.detach())}


@torch.no_grad()
def accuracy(
    model: nn.Module,
    writer: Writer,
    features: np.ndarray,
    cards: list[Card],
    device: torch.device,
    *,
    tokens: int = L,
    tasks: tuple[str, ...] = TASKS,
    seed: int = 0,
) -> dict[str, float]:
    """Share of questions whose every answer token ranks first given the ones before (equal to
    greedy decoding being right), by task, over the scenes at hand."""
    rng = np.random.default_rng(seed)
    hits: dict[str, list[float]] = {task: [] for task in tasks}
    for i, c in enumerate(cards):
        view = np.sort(rng.permutation(L)[:tokens])
        asked = [q for task in tasks for q in questions([c.scene], task)]
        packed = batch(writer, [[(q.text, q.answer) for q in asked]], tokens, device)
        shown = torch.from_numpy(features[i][view]).float().to(device)[None]
        best = logits(model, writer, packed, shown).argmax(-1)
        wrong = (best != packed["target"]) & (packed["target"] != -100)
        for k, q in enumerate(asked):
            hits[q.task].append(float(not wrong[packed["part"] == k + 1].any()))
    return {f"{task}@{tokens}": float(np.mean(v)) for task, v in hits.items() if v}


@torch.no_grad()
def single_tokens(
    model: nn.Module, writer: Writer, features: np.ndarray, found: list[Scene], device: torch.device
) -> dict[str, float]:
    """The single-token probe in short: share of covered patches whose best word is their noun,
    and the mean top-1 probability on covered and on bare patches."""
    right, high, low = [], [], []
    nouns = np.array([writer.ids(noun)[0] for noun in NOUNS])
    for i, scene in enumerate(found):
        cover = scene.coverage()
        covered = np.flatnonzero(cover.max(0) >= 0.8)[::3]
        bare = np.flatnonzero((cover.max(0) == 0) & (scene.word_coverage() == 0))[::24]
        where = np.concatenate((covered, bare))
        packed = batch(writer, [[(ONE_WORD, "cup")]] * len(where), 1, device)
        shown = torch.from_numpy(features[i][where]).float().to(device)[:, None]
        p = logits(model, writer, packed, shown).float().softmax(-1)
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
