"""What a run will cost, before it begins and without a weight: forwards, tokens, operations, hours.

The engine's plan of an experiment depends on lengths alone: how many words stand around the image,
how many visual tokens it has, which patches are asked about. Of two images the plan is the same. So
the plan of one, made by `redlib.planner` as the engine would make it, times the number of images is
the plan of a run:

    plan(params)              # notebook, stage, images, forwards, tokens, pflop, hours
    memory(params)            # GB of weights; what is free beside them the engine fills by itself

A forward through the decoder costs 2 operations per parameter and token, 4 per head dimension and
pair of positions in attention, and the head once per reading. It takes as long as the slower of two
things: computing that, or reading all weights from memory, which bounds the single words of an
answer. Both are stated for one named card, the paper's own (CARD); a faster card divides.

Three things no plan can know. What the lazy codebook rules out depends on the images: the shares
that it is expected to leave are EXPECTED. How long answers get: they are taken at their longest.
And the time of all that is not the model (drawing, clustering, t-SNE): left out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from redlib import hub
from redlib.engine import TOKENS_PER_FORWARD
from redlib.geometry import Grid, release_ranks
from redlib.leave_one_out import ablation_paths
from redlib.params import FAMILIES, Params, family
from redlib.planner import Budget, Plan
from redlib.planner import plan as planned
from redlib.prune import sparsevlm
from redlib.prune.inside import read_a_layer
from redlib.study.asking import CAPTIONED, FIVE_TASKS
from redlib.study.codebooks import GRID, SCORED_AT
from redlib.study.patches import sample
from redlib.study.pruning import ASKED_ALL, LONGEST, LONGEST_CAPTION, PAPER, TILE_BUDGETS
from redlib.study.several import FRAMES, FURTHER, TOKENS
from redlib.study.stability import PARAPHRASES, PATCHES, REPLACED, SAMPLES
from redlib.tabletop.pairs import KINDS

CARD = "RTX 3090"
TERAFLOPS = 46.0
"""Half-precision operations per second that large products reach on CARD; an A100 reaches about
180, an H200 430."""

GIGABYTES = 0.9e3
"""Bytes per second, in billions, that CARD reads from its memory."""

HALF = 2  # bytes of a weight

EXPECTED = {"single": 0.6, "region": 0.1, "global": 0.1}
"""Share of the probed tokens that each stage of Algorithm 1 is expected to read: about what the
small LLaVA-1.5 leaves to it, rounded up."""

UNCHOSEN = {"single": 1.0, "region": 0.3, "global": 0.3}
"""The same where the thresholds are still to be calibrated, so that a grid of them is read for."""

TABLE_3, CONTROLS, DRAWN_CONTROLS = 6, 3, 2
"""Codebooks of Table 3, and of notebook 08: those made once, and those made with several seeds."""

PER_TASK = sum(4 if task == "mmb" else 1 for task in FIVE_TASKS)
"""Answers for each question per task: POPE has three subsets, MMBench asks in four rotations."""

SQUARE_AND_WIDE = 1.5  # images for each question per task: half as many wide ones as square ones
ASKED = 30  # words of a question
TOGETHER = 64  # questions in one forward
POSITIONS = 25  # of a caption, ranked in notebook 01
FASTV_LAYERS = 2  # that see all visual tokens
TILES = 5
PER_FILM, PER_PAIR = 4, 1  # questions


@dataclass(frozen=True)
class Shape:
    """What a plan has to know of a LLaVA.

    Attributes:
        layers, width, mlp, heads, key_heads, head, vocabulary: of the language model; `head` is the
            width of one.
        bias: whether queries, keys and values have one.
        cells: patches along a side of the grid.
        tower: (layers run, width, mlp) of the vision tower; CLIP's last layer is run though unused.
        cls: whether the tower has a [cls] beside the patches.
        newline: whether one embedding ends the visual tokens.
        before, after: words of the one-word prompt before and behind the image, by its template.
    """

    layers: int
    width: int
    mlp: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    bias: bool
    cells: int
    tower: tuple[int, int, int]
    cls: bool
    newline: bool
    before: int
    after: int

    @cached_property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        asked, told = self.heads * self.head, self.key_heads * self.head
        biases = asked + 2 * told if self.bias else 0
        return 2 * self.width * (asked + told) + 3 * self.width * self.mlp + 2 * self.width + biases

    @cached_property
    def tower_layer(self) -> int:
        """Parameters of one layer of the tower, biases and norms included."""
        _, width, mlp = self.tower
        return 4 * width * (width + 1) + 2 * width * mlp + mlp + width + 4 * width

    @property
    def parameters(self) -> int:
        """Of the whole model but for embeddings of positions and patches and a few norms."""
        layers, width, _ = self.tower
        projector = (width + 1) * self.width + (self.width + 1) * self.width
        words = 2 * self.vocabulary * self.width
        return self.layers * self.layer + words + projector + layers * self.tower_layer

    @property
    def grid(self) -> Grid:
        """The patches of the base tile."""
        return Grid(self.cells, self.cells)


_CLIP, _SIGLIP = (24, 1024, 4096), (26, 1152, 4304)
SHAPES: dict[str, Shape] = {
    "llava-hf/llava-1.5-7b-hf": Shape(
        32, 4096, 11008, 32, 32, 128, 32064, False, 24, _CLIP, True, False, 5, 25
    ),
    "llava-hf/llama3-llava-next-8b-hf": Shape(
        32, 4096, 14336, 32, 8, 128, 128320, False, 24, _CLIP, True, True, 5, 24
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": Shape(
        28, 3584, 18944, 28, 4, 128, 152128, True, 27, _SIGLIP, False, True, 3, 23
    ),
}
"""The real models, by the config.json of each on the Hugging Face hub and the scripts of
transformers that made them (convert_llava*_weights_to_hf.py). Words of the prompt: counted from the
form of their chat templates with the tokenizers' documented treatment of it, so good to a few."""

_TEXT = dict(zip(FAMILIES, [(s.before, s.after) for s in SHAPES.values()], strict=True))


@dataclass
class Work:
    """What has been planned so far: tokens through the decoder, operations, seconds on CARD."""

    shape: Shape
    tokens: int = 0
    operations: float = 0.0
    seconds: float = 0.0

    def forward(self, rows: int, start: int, end: int, *, read: int = 0) -> None:
        """One call of the decoder on positions `start` to `end` of some rows; `read` of them reach
        the head."""
        s, own = self.shape, end - start
        pairs = (end * (end + 1) - start * (start + 1)) / 2  # positions and those before them
        done = rows * s.layers * (2 * own * s.layer + 4 * s.heads * s.head * pairs)
        done += 2 * read * s.width * s.vocabulary
        self.tokens += rows * own
        self._call(done, s.layers * s.layer)

    def see(self, tiles: int = 1) -> None:
        """The tower on some tiles, and the projector."""
        s, (layers, width, _) = self.shape, self.shape.tower
        n = s.cells**2 + s.cls
        done = tiles * layers * (2 * n * s.tower_layer + 4 * n * n * width)
        done += tiles * 2 * s.cells**2 * s.width * (width + s.width)
        self._call(done, layers * s.tower_layer)

    def run(self, plan: Plan) -> None:
        """A plan of the engine: its shared text, then batch by batch."""
        self.forward(1, 0, plan.tree.shared)
        for batch in plan.batches:
            self.forward(len(batch.rows), batch.start, batch.end, read=len(batch.rows))

    def _call(self, done: float, weights: int) -> None:
        self.operations += done
        self.seconds += max(done / (TERAFLOPS * 1e12), weights * HALF / (GIGABYTES * 1e9))


class _Numbers:
    """A prompt around the visual tokens as the planner sees it (see `engine.Pieces`)."""

    def __init__(self, shape: Shape) -> None:
        size, end = shape.cells**2, shape.newline + shape.after
        self.pad, self.shared = size, shape.before
        self._end = np.arange(size + 1, size + 1 + end)
        self._before = np.arange(size + 1 + end, size + 1 + end + shape.before)

    def path(self, visual: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.concatenate([self._before, visual, self._end])


def plan(params: Params) -> pd.DataFrame:
    """The stages of the notebooks under these parameters, as far as the model has to compute.

    Returns notebook, stage, images, forwards (inputs that the experiments ask about, whatever the
    engine shares between them), tokens (that go through the decoder), pflop (10^15 operations),
    hours (on one CARD); one row per stage, in the order of the notebooks.

    Raises:
        RedlibError: nothing is known of the model: it is none of SHAPES and its config.json cannot
            be read.
    """
    return pd.DataFrame(
        [
            {
                "notebook": stage.notebook,
                "stage": stage.name,
                "images": stage.images,
                "forwards": round(stage.images * stage.forwards),
                "tokens": round(stage.images * stage.work.tokens),
                "pflop": stage.images * stage.work.operations / 1e15,
                "hours": stage.images * stage.work.seconds / 3600,
            }
            for stage in _Planner(params, shape_of(params.model, params.revision)).stages()
            if stage.images * stage.forwards
        ]
    )


def memory(params: Params) -> float:
    """GB (10^9 bytes) of the model's weights in half precision, as they are downloaded.

    Beside them a forward needs a few GB; the engine fills what is free and no more.
    """
    return shape_of(params.model, params.revision).parameters * HALF / 1e9


def shape_of(model: str, revision: str | None = None) -> Shape:
    """The shape of one of the real models, or by config.json of an embedded one, a folder or a
    Hugging Face id."""
    if model in SHAPES:
        return SHAPES[model]
    config = hub.read_config(model, revision)
    text, vision = config.text_config, config.vision_config
    clip = config.vision_feature_select_strategy == "default"
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    before, after = _TEXT[family(model)]
    return Shape(
        text.num_hidden_layers,
        text.hidden_size,
        text.intermediate_size,
        text.num_attention_heads,
        text.num_key_value_heads,
        head,
        text.vocab_size,
        text.model_type == "qwen2",
        vision.image_size // vision.patch_size,
        (vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size),
        clip,
        config.model_type != "llava",
        before,
        after,
    )


@dataclass(frozen=True)
class _Stage:
    """A stage: `forwards` and `work` of one of its images."""

    notebook: str
    name: str
    images: int
    forwards: float
    work: Work


class _Planner:
    """The plans of one parameter file's experiments."""

    def __init__(self, params: Params, shape: Shape) -> None:
        self.p, self.shape = params, shape
        self.size, self.grid = shape.cells**2, shape.grid
        self.numbers = _Numbers(shape)
        self.budget = Budget(TOKENS_PER_FORWARD["cuda"])
        self.ranks = np.arange(self.size)
        if params.codebook_ranks == "release":
            self.ranks = release_ranks(self.size)

    def stages(self) -> Iterator[_Stage]:
        yield from self._attention()
        yield from self._probes()
        yield from self._study()
        yield from self._codebook()
        yield from self._pruning()
        yield from self._examples()
        yield from self._controls()

    # The experiments of one image

    def _work(self, *, tiles: int = 1) -> Work:
        work = Work(self.shape)
        work.see(tiles)
        return work

    def _single(self, work: Work, patches: Sequence[int] | np.ndarray) -> int:
        paths = [self.numbers.path(np.full(self.p.repeats, patch)) for patch in patches]
        if paths:
            work.run(planned(paths, shared=self.numbers.shared, budget=self.budget))
        return len(paths)

    def _ablated(
        self, work: Work, patches: Sequence[int] | np.ndarray, levels: Sequence[str]
    ) -> int:
        if not len(patches):
            return 0
        paths, like, _ = ablation_paths(self.grid, self.numbers, patches, levels)
        work.run(planned(paths, shared=self.numbers.shared, budget=self.budget, like=like))
        return len(paths)

    def _whole(self, work: Work, more: int = 0) -> int:
        """A stock forward of the whole image (`redlib.states`)."""
        end = len(self.numbers.path(np.arange(self.size))) + more
        work.forward(1, 0, end, read=1)
        return 1

    def _asked(self, work: Work, kept: int, questions: int, words: int) -> int:
        """Questions about what is left of an image (`redlib.bench.answering`)."""
        prefix = self.shape.before + kept + self.shape.newline
        work.forward(1, 0, prefix)
        for start in range(0, questions, TOGETHER):
            rows = min(TOGETHER, questions - start)
            work.forward(rows, prefix, prefix + ASKED, read=rows)
            for word in range(1, words):
                at = prefix + ASKED + word
                work.forward(rows, at - 1, at, read=rows)
        return questions

    def _inside(
        self, work: Work, budgets: Sequence[int], questions: int, words: int, tiles: int = 1
    ) -> int:
        """The same for FastV (`redlib.bench.inside`): its first layers read the image once for all
        questions and budgets, the others what each question keeps of it."""
        share = FASTV_LAYERS / self.shape.layers
        # as many tokens in all layers
        work.forward(1, 0, round(share * (self.shape.before + tiles * self.size)))
        for kept in budgets:
            few = self.shape.before + tiles * kept
            equal = round((1 - share) * few) + ASKED
            work.forward(questions, 0, equal, read=questions)
            for word in range(1, words):
                work.forward(questions, equal + word - 1, equal + word, read=questions)
        return questions * len(budgets)

    def _apart(self, work: Work, kept: int, questions: int, words: int) -> int:
        """The same for SparseVLM (`redlib.bench.apart`): each question reads the whole image."""
        depth = self.shape.layers
        layers = sparsevlm.relative(depth)
        counts = (self.size, *sparsevlm.falling(self.size, kept, len(layers)))
        equal = self.shape.before + round(read_a_layer(layers, counts, depth)) + ASKED
        for word in range(words):
            start = equal + word - 1 if word else 0
            work.forward(questions, start, equal + word, read=questions)
        return questions

    # The notebooks

    def _attention(self) -> Iterator[_Stage]:
        work = self._work()
        n = self._measured(work)
        yield _Stage("01", "64 patches in every way (for 03 too)", self.p.probe_scenes, n, work)
        work = self._work()
        n = self._whole(work, POSITIONS)
        images = math.ceil(self.p.attention_positions / POSITIONS)
        yield _Stage("01", "ranks of current and next token", images, n, work)

    def _measured(self, work: Work) -> int:
        patches = self.grid.stride()
        n = self._single(work, patches) + self._whole(work)
        return n + self._ablated(work, patches, ("region", "global", "token"))

    def _probes(self) -> Iterator[_Stage]:
        work = self._work()
        n = self._single(work, range(self.size)) + self._whole(work)
        yield _Stage("02", "every token alone", self.p.probe_scenes + 2, n, work)

    def _study(self) -> Iterator[_Stage]:
        patches = sample(self.grid, self.p.study_patches)
        work = self._work()
        n = self._single(work, patches)
        yield _Stage("04", "single-token probe", self.p.study_images, n, work)
        for level in ("region", "global"):
            work = Work(self.shape)
            n = self._ablated(work, patches, (level,))
            yield _Stage("04", f"leave-one-out, {level}", self.p.study_images, n, work)
        work = Work(self.shape)
        n = self._whole(work) + self._whole(work)
        yield _Stage("04", "attention", self.p.study_images, n, work)

    def _codebook(self) -> Iterator[_Stage]:
        p = self.p
        shares = UNCHOSEN if p.tau_prob == "calibrated" else EXPECTED
        for stage, share in shares.items():
            taken = np.linspace(0, len(self.ranks) - 1, math.ceil(share * len(self.ranks)))
            patches = np.sort(self.ranks[taken.astype(int)])
            work = self._work() if stage != "global" else Work(self.shape)
            if stage == "single":
                n = self._single(work, patches)
            else:
                n = self._ablated(work, patches, (stage,))
            name = f"Algorithm 1, {stage}: {share:.0%} of the tokens expected"
            yield _Stage("05", name, p.codebook_images, n, work)
        work = self._work()
        n = self._single(work, range(self.size))
        yield _Stage("05", "t-SNE and outliers, every token alone", p.tsne_images + 1, n, work)
        sets = math.prod(len(GRID[name]) for name in GRID if getattr(p, name) == "calibrated")
        yield self._judged("05", "grid of thresholds", p.n_calibration, p.n_questions, sets + 1)
        more = p.random_seeds + TABLE_3
        yield self._judged("05", "Table 3", p.ablation_questions, p.ablation_questions, more)

    def _judged(self, notebook: str, name: str, images: int, questions: int, books: int) -> _Stage:
        """Questions of the five tasks to all tokens and, under `books` choices, to 64."""
        images = math.ceil(SQUARE_AND_WIDE * images)
        each = math.ceil(PER_TASK * questions / images)
        work = self._work()
        n = self._asked(work, self.size, each, LONGEST)
        for _ in range(books):
            n += self._asked(work, SCORED_AT, each, LONGEST)
        return _Stage(notebook, name, images, n, work)

    def _pruning(self) -> Iterator[_Stage]:
        p, each = self.p, math.ceil(PER_TASK / SQUARE_AND_WIDE)
        asked_all = [(name, kept) for name in ASKED_ALL for kept in p.budgets]
        asked_all += [("random", kept) for kept in p.budgets] * (p.random_seeds - 1)
        named = dict.fromkeys(["threshold", *p.methods])
        further = [(n, kept) for n in named if n not in ASKED_ALL for kept in p.budgets]
        more = [kept for kept in p.curve if kept not in p.budgets]
        further += [(n, kept) for n in PAPER if n in (*named, "ours", "random") for kept in more]
        work = self._work()
        n = self._asked(work, self.size, each, LONGEST) + self._asked(work, 0, each, LONGEST)
        for _, kept in asked_all:
            n += self._asked(work, kept, each, LONGEST)
        images = math.ceil(SQUARE_AND_WIDE * p.n_questions)
        yield _Stage("06", "answers of Ours, PruMerge and Random", images, n, work)
        work, n = self._work(), 0
        for name, kept in further:
            if name == "sparsevlm":
                n += self._apart(work, kept, each, LONGEST)
            elif name != "fastv":
                n += self._asked(work, kept, each, LONGEST)
        if "fastv" in named:
            n += self._inside(work, [*p.budgets, *more], each, LONGEST)
        images = math.ceil(SQUARE_AND_WIDE * p.n_further)
        yield _Stage("06", "answers of FastV, further methods and Figure 9", images, n, work)
        work = self._work()
        n = self._asked(work, self.size, 1, LONGEST_CAPTION)
        for kept in p.budgets:
            for _ in ASKED_ALL:
                n += self._asked(work, kept, 1, LONGEST_CAPTION)
        if "fastv" in p.methods:
            n += self._inside(work, p.budgets, 1, LONGEST_CAPTION)
        yield _Stage("06", "captions", len(CAPTIONED) * p.n_captions, n, work)
        kind = family(p.model)
        if kind == "llava-next":
            yield self._tiled(math.ceil(SQUARE_AND_WIDE * p.n_tiled), each)
        if kind == "llava-onevision":
            pairs, films = len(KINDS) * p.n_several, math.ceil(p.n_several / PER_FILM)
            pooled = math.ceil(self.shape.cells / 2) ** 2
            yield self._several("two images", pairs, 2, self.size, TOKENS["mantis"], PER_PAIR)
            yield self._several("films", films, FRAMES, pooled, TOKENS["film"], PER_FILM)

    def _tiled(self, images: int, each: int) -> _Stage:
        work = self._work(tiles=TILES)
        n = self._asked(work, TILES * self.size, each, LONGEST)
        for kept in TILE_BUDGETS:
            for _ in range(len(ASKED_ALL) - 1 + self.p.random_seeds):
                n += self._asked(work, TILES * kept, each, LONGEST)
        if "fastv" in self.p.methods:
            n += self._inside(work, TILE_BUDGETS, each, LONGEST, tiles=TILES)
        return _Stage("06", "answers about five tiles", images, n, work)

    def _several(
        self, name: str, samples: int, seen: int, size: int, kept: int, each: int
    ) -> _Stage:
        """Table 2: samples of `seen` images or frames of `size` tokens, `kept` of each."""
        work = self._work(tiles=seen)
        n = self._asked(work, seen * size, each, LONGEST)
        for _ in range(2 + len(FURTHER) + self.p.random_seeds):
            n += self._asked(work, seen * kept, each, LONGEST)
        return _Stage("06", f"Table 2, {name}", samples, n, work)

    def _examples(self) -> Iterator[_Stage]:
        p = self.p
        for name, kept, images in (
            ("plain scenes described", p.caption_tokens, p.n_described),
            ("text-rich scenes described", p.text_tokens, p.n_described),
            ("spot the difference", p.game_tokens, p.n_games),
        ):
            if name.startswith("spot") and family(p.model) != "llava-onevision":
                continue
            work = self._work()
            n = self._asked(work, self.size, 1, LONGEST_CAPTION) + self._asked(
                work, kept, 1, LONGEST_CAPTION
            )
            yield _Stage("07", name, images, n, work)

    def _controls(self) -> Iterator[_Stage]:
        p = self.p
        books = 1 + CONTROLS + (1 + DRAWN_CONTROLS) * p.control_seeds + SAMPLES
        yield self._judged("08", "controls", p.control_questions, p.control_questions, books)
        work, n = self._work(), 0
        patches = sample(self.grid, PATCHES)
        for _ in REPLACED:
            n += self._ablated(work, patches, ("region", "global"))
        for _ in PARAPHRASES:
            n += self._single(work, self.ranks)
        yield _Stage("08", "replacements and paraphrases", p.stability_images, n, work)
