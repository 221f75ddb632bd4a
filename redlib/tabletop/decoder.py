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

The hard part is a look-up in two steps: the word "cup" in the question has to find the tokens that
show a cup, and the last position has to find what the word found. Where the decoder begins
(`begin`) and in which order it sees few and many tokens (`Lessons`) decide whether it learns this
in an hour or not at all.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from redlib.tabletop.loop import precision
from redlib.tabletop.questions import (
    CAPTIONS,
    CHECKLIST,
    DESCRIBE,
    DETAIL,
    ONE_WORD,
    TASKS,
    ask,
    pope_text,
    questions,
    statistics,
)
from redlib.tabletop.tower import MEAN, STD, forward
from redlib.tabletop.world import NOUNS, Scene, article, scenes

MIN_TOKENS = 16
FEW, MANY = 8, 12  # questions per scene
RICH = 8.0
KINDS = {
    "colour": 2,
    "position": 1.5,
    "article": 1.5,
    "mme": 5,
    "mmb": 3,
    "seed": 5,
    "rwqa": 1.5,
    "count": 3,
    "word": 2,
}
KIND_SHARES = np.array(list(KINDS.values())) / sum(KINDS.values())
OUT_OF_VIEW = 0.15  # how much rarer questions about an object none of whose tokens is at hand are
CAPTION_WEIGHT = 0.4  # per token of a caption; 1 elsewhere
WIDE = 81  # tokens from which many questions, and descriptions, are worth asking
TALK = {"more": 0.25, "all": 1.0}  # chance of a sentence about a scene; half of it of a list
ARTICLE_SHARE = 0.12  # one-word answers that begin with an article all the same
ONE_ANSWER = tuple(task for task in TASKS if task not in CAPTIONS)
L = 576
TOKENS = {
    "rich": (16, 20, 24, 30, 36, 49),
    "few": (16, 16, 20, 24, 25, 30, 36, 42, 49, 56, 64),
    "more": (81, 100, 121, 144, 196),
    "all": (L,),
}
SCENES = {"rich": 20, "few": 16, "more": 10, "all": 5}  # in a step
EARLY, LATE = (0.65, 0.15, 0.2, 0.0), (0.1, 0.15, 0.3, 0.45)  # shares of the four kinds of step
EARLY_SHARE = 0.4  # of all steps are early ones


@torch.no_grad()
def begin(model: nn.Module, tokenizer, features: np.ndarray, cards: list["Card"]) -> None:
    """Give projector and decoder the start that CLIP and a pretrained language model give LLaVA's.

    CLIP's features already point towards words, and attention of a trained decoder already finds
    what resembles its query, and copies it. Here: the projector begins as the identity on
    standardised features, the words for what a patch can show begin with the mean feature of such
    patches, keys begin equal to queries in the first layers, what attention writes begins as a copy
    of what it reads, and the output head along the embeddings. Everything is trained from there.
    """
    inner, text = model.model.multi_modal_projector, model.model.language_model
    device, width = text.embed_tokens.weight.device, features.shape[-1]
    shown, labels = _labelled(features, cards)
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


LINEAR = 3.0  # gelu(x) is near x around there
MATCHING = 2  # layers
TEXT = 0.25  # size of a word beside a visual token: what layers write to it soon outweighs it


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)


def _labelled(
    features: np.ndarray, cards: list["Card"], *, images: int = 400
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features of the patches that something covers, (n, width), and for each kind of word the one
    that belongs to every patch, "" where none does."""
    shown, thing, colour, size = [], [], [], []
    for i, c in enumerate(cards[:images]):
        masks = [*c.seen, c.written] if c.scene.word else list(c.seen)
        for k, mask in enumerate(masks):
            found = c.scene.objects[k] if k < len(c.scene.objects) else None
            shown.append(features[i][mask].astype(np.float32))
            n = len(shown[-1])
            thing += [found.noun if found else c.scene.word] * n
            colour += [found.colour if found else ""] * n
            size += [found.size if found else ""] * n
    kinds = {"thing": thing, "colour": colour, "size": size}
    return np.concatenate(shown), {key: np.array(v) for key, v in kinds.items()}


@dataclass(frozen=True)
class Card:
    """A scene without its pixels, which tokens each object covers by half, (n, 576) bool, and
    which the card with the word does, (576,) bool."""

    scene: Scene
    seen: np.ndarray
    written: np.ndarray


def card(scene: Scene) -> Card:
    blank = {"pixels": np.empty((0,)), "instance": np.empty(scene.instance.shape, np.bool_)}
    return Card(replace(scene, **blank), scene.coverage() > 0.5, scene.word_coverage() > 0.5)


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
    """Questions and answers about a scene seen through some of its tokens: FEW where these are few,
    MANY where they are so many that a question more costs little beside them."""
    wide = len(view) >= WIDE
    rows = [(CHECKLIST, checklist(c, rng)), (ONE_WORD, one_word(c, view, rng))]
    for _ in range(2 if wide else 1):
        noun, answer = _existence(c, rng)
        rows.append((pope_text(noun), answer))
    rows += _talk(c, TALK["all" if len(view) == L else "more"] if wide else 0.0, rng)
    in_view = np.append(c.seen[:, view].any(1), True)  # the last is for questions about no object
    while len(rows) < (MANY if wide else FEW):
        asked = ask(c.scene, str(rng.choice(list(KINDS), p=KIND_SHARES)), rng)
        if asked:
            weights = np.where(in_view[[q.asked for q in asked]], 1.0, OUT_OF_VIEW)
            q = asked[rng.choice(len(asked), p=weights / weights.sum())]
            rows.append((q.text, q.answer))
    return rows


def _talk(c: Card, chance: float, rng: np.random.Generator) -> list[tuple[str, str]]:
    """A sentence and a list that name everything, in random order: whichever thing is named next,
    it has to be one that has not been named, and one that was passed over is not lost."""
    n = len(c.scene.objects)
    rows = [(DESCRIBE, c.scene.sentence(rng.permutation(n)))] * (rng.random() < chance)
    return rows + [(DETAIL, c.scene.description(rng.permutation(n)))] * (rng.random() < chance / 2)


def view(
    rng: np.random.Generator, tokens: int, c: Card, *, rich: bool = False, grid: int = 24
) -> np.ndarray:
    """(tokens,) token indices in raster order: all of them, or with even chances a random subset
    or a block of neighbours. Three blocks in four lie over an object. A rich view is a random
    subset that takes covered patches RICH times as often as bare ones."""
    if tokens == grid * grid:
        return np.arange(tokens)
    if rich:
        weights = np.where(c.seen.any(0), RICH, 1.0)
        drawn = rng.choice(grid * grid, tokens, replace=False, p=weights / weights.sum())
        return np.sort(drawn)
    sides = [(h, tokens // h) for h in range(3, 15) if tokens % h == 0 and 3 <= tokens // h <= grid]
    if not sides or rng.random() < 0.5:
        return np.sort(rng.permutation(grid * grid)[:tokens])
    h, w = sides[rng.integers(len(sides))]
    row, column = rng.integers(grid - h + 1), rng.integers(grid - w + 1)
    over = np.flatnonzero(c.seen[rng.integers(len(c.seen))])
    if len(over) and rng.random() < 0.75:
        r, col = divmod(int(rng.choice(over)), grid)
        row = np.clip(r - rng.integers(h), 0, grid - h)
        column = np.clip(col - rng.integers(w), 0, grid - w)
    return ((row + np.arange(h))[:, None] * grid + column + np.arange(w)).ravel()


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
            each = [CAPTION_WEIGHT if question in (DESCRIBE, DETAIL) else 1.0] * (len(full) - 1)
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
    with precision(features.device):
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
            with torch.no_grad(), precision(device):
                out, _ = forward(model.model.vision_tower, x, zero, zero)
            store[i : i + len(found)] = out.float().cpu().numpy()
            done_path.write_text(str(i + len(found)))
    return store, cards


class Lessons:
    """Training batches by step number.

    To find among the tokens the ones that a question is about is the hard part, and it is learned
    an order of magnitude sooner from few tokens that show much. So the first steps mostly see rich
    views of few tokens; then come plain subsets and blocks of all sizes, and whole images.
    """

    def __init__(
        self,
        writer: Writer,
        features: np.ndarray,
        cards: list[Card],
        seed: int,
        device: torch.device,
        steps: int,
    ):
        self.writer, self.features, self.cards = writer, features, cards
        self.seed, self.device, self.steps = seed, device, steps

    def batch(self, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rng = np.random.default_rng([self.seed, step])
        kinds = ("rich", "few", "more", "all")
        shares = EARLY if step < EARLY_SHARE * self.steps else LATE
        kind = kinds[rng.choice(len(kinds), p=shares)]
        tokens = int(rng.choice(TOKENS[kind]))
        size = SCENES[kind]
        chosen = rng.integers(0, len(self.cards), size)
        kept = [view(rng, tokens, self.cards[i], rich=kind == "rich") for i in chosen]
        pairs = [lesson(self.cards[i], v, rng) for i, v in zip(chosen, kept, strict=True)]
        packed = batch(self.writer, pairs, tokens, self.device)
        shown = np.stack([self.features[i][v] for i, v in zip(chosen, kept, strict=True)])
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
    tasks: tuple[str, ...] = ONE_ANSWER,
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
