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

How many images there are and what is asked of each, `redlib.study` says: the rules themselves
(`pruning.rules`) and `extent`, which knows without data how many questions a data set yields.

Three things no plan can know. What the lazy codebook rules out depends on the images: the shares
that it is expected to leave are EXPECTED. How long answers get: they are taken at their longest,
and most end before. And the time of all that is not the language model at work: drawing,
clustering, t-SNE, images that the tower alone looks at; it is left out, and so are the few inputs
behind a figure of one or two images.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from redlib import hub
from redlib.data import prompts
from redlib.engine import TOKENS_PER_FORWARD
from redlib.geometry import Grid, release_ranks
from redlib.leave_one_out import ablation_paths
from redlib.params import FAMILIES, NOTEBOOKS, Params, family
from redlib.planner import Budget, Plan
from redlib.planner import plan as planned
from redlib.prune import sparsevlm
from redlib.prune.inside import read_a_layer
from redlib.study import describing, extent, pruning
from redlib.study.asking import JUDGED
from redlib.study.codebooks import GRID, SCORED_AT
from redlib.study.extent import Extent
from redlib.study.patches import sample
from redlib.study.pruning import ASKED_ALL, LONGEST, LONGEST_CAPTION
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

_SMALL, _SILENT = EXPECTED["single"], EXPECTED["region"] / EXPECTED["single"]
ABLATED = {"single": 1.0} | dict.fromkeys(("region", "global"), 1 - (1 - _SMALL) * (1 - _SILENT))
"""The same for the codebooks of Table 3: without tau_out every token is probed, and what passes
one of tau_out and tau_prob is ablated for the row that leaves out the other (of the small LLaVA-1.5
between a half and four fifths)."""

TABLE_3, CONTROLS = 6, 3
"""Codebooks of Table 3, and those of notebook 08 that are made once."""

ASKED = 30  # words of a question
TOGETHER = 64  # questions in one forward
POSITIONS = {"tabletop": 25, "real": 12}  # of a caption, ranked in notebook 01
FASTV_LAYERS = 2  # that see all visual tokens
TILES = 5


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
    tokens: float = 0
    operations: float = 0.0
    seconds: float = 0.0

    def forward(self, rows: float, start: int, end: int, *, read: float = 0) -> None:
        """One call of the decoder on positions `start` to `end` of some rows, of which a mean image
        may have a broken number; `read` of them reach the head."""
        s, own = self.shape, end - start
        pairs = (end * (end + 1) - start * (start + 1)) / 2  # positions and those before them
        done = rows * s.layers * (2 * own * s.layer + 4 * s.heads * s.head * pairs)
        done += 2 * read * s.width * s.vocabulary
        self.tokens += rows * own
        self._call(done, s.layers * s.layer)

    def see(self, tiles: float = 1) -> None:
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


def plan(params: Params, notebooks: Sequence[str] = tuple(NOTEBOOKS)) -> pd.DataFrame:
    """The stages of notebooks under these parameters, as far as the model has to compute and
    nothing is there already. What two notebooks need is computed by the first of them.

    Returns notebook, stage, images, forwards (inputs that the experiments ask about, whatever the
    engine shares between them), tokens (that go through the decoder), pflop (10^15 operations),
    hours (on one CARD); one row per stage, in the order of the notebooks.

    Raises:
        RedlibError: nothing is known of the model: it is none of SHAPES and its config.json cannot
            be read.
    """
    stages = _Planner(params, shape_of(params.model, params.revision)).stages()
    rows = [
        (
            next(number for number in stage.notebooks if number in notebooks),
            stage.name,
            stage.images,
            round(stage.images * stage.forwards),
            round(stage.images * stage.work.tokens),
            stage.images * stage.work.operations / 1e15,
            stage.images * stage.work.seconds / 3600,
        )
        for stage in stages
        if stage.images * stage.forwards and set(stage.notebooks) & set(notebooks)
    ]
    columns = ["notebook", "stage", "images", "forwards", "tokens", "pflop", "hours"]
    return pd.DataFrame(rows, columns=columns)


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
    """A stage of those notebooks that need it: `forwards` and `work` of one of its images."""

    notebooks: tuple[str, ...]
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
        self.shares = UNCHOSEN if params.tau_prob == "calibrated" else EXPECTED
        self.real = params.data == "real"
        self.judged, self.longest, self.caption, self.detail = (
            JUDGED, LONGEST, LONGEST_CAPTION, describing.LONGEST
        )  # fmt: skip
        if self.real:
            self.judged = self.longest = prompts.LONGEST
            self.caption = prompts.longest_caption(params.prompts, family(params.model))
            self.detail = prompts.LONGEST_DETAIL

    def stages(self) -> Iterator[_Stage]:
        yield from self._attention()
        yield from self._probes()
        yield from self._study()
        yield from self._codebook()
        yield from self._pruning()
        yield from self._examples()
        yield from self._controls()

    # The experiments of one image

    def _work(self, *, tiles: float = 1) -> Work:
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

    def _spread(self, share: float) -> np.ndarray:
        """So many of the tokens that the codebook looks at, evenly."""
        taken = np.linspace(0, len(self.ranks) - 1, math.ceil(share * len(self.ranks)))
        return np.sort(self.ranks[taken.astype(int)])

    def _whole(self, work: Work, more: int = 0) -> int:
        """A stock forward of the whole image (`redlib.states`)."""
        end = len(self.numbers.path(np.arange(self.size))) + more
        work.forward(1, 0, end, read=1)
        return 1

    def _asked(self, work: Work, kept: float, questions: float, words: int) -> float:
        """Questions about what is left of an image (`redlib.bench.answering`)."""
        prefix = self.shape.before + round(kept) + self.shape.newline
        work.forward(1, 0, prefix)
        for start in range(0, math.ceil(questions), TOGETHER):
            rows = min(TOGETHER, questions - start)
            work.forward(rows, prefix, prefix + ASKED, read=rows)
            for word in range(1, words):
                at = prefix + ASKED + word
                work.forward(rows, at - 1, at, read=rows)
        return questions

    def _inside(
        self, work: Work, budgets: Sequence[int], questions: float, words: int, tiles: int
    ) -> float:
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

    def _apart(self, work: Work, kept: int, questions: float, words: int) -> float:
        """The same for SparseVLM (`redlib.bench.apart`): each question reads the whole image."""
        depth = self.shape.layers
        layers = sparsevlm.relative(depth)
        counts = (self.size, *sparsevlm.falling(self.size, kept, len(layers)))
        equal = self.shape.before + round(read_a_layer(layers, counts, depth)) + ASKED
        for word in range(words):
            start = equal + word - 1 if word else 0
            work.forward(questions, start, equal + word, read=questions)
        return questions

    def _ruled(
        self, work: Work, rules: Sequence[pruning.Asked], questions: float, words: int, tiles: int
    ) -> float:
        """The same questions under each of some rules of notebook 06."""
        n, fastv = 0.0, [asked.rule.tokens for asked in rules if asked.method == "fastv"]
        for asked in rules:
            if asked.method == "sparsevlm":
                n += self._apart(work, asked.rule.tokens, questions, words)
            elif asked.method != "fastv":
                n += self._asked(work, tiles * asked.rule.tokens, questions, words)
        return n + (self._inside(work, fastv, questions, words, tiles) if fastv else 0)

    # The notebooks

    def _attention(self) -> Iterator[_Stage]:
        work = self._work()
        n = self._measured(work)
        name = f"{len(self.grid.stride())} patches in every way (for 03 too)"
        yield _Stage(("01", "03"), name, self.p.probe_scenes, n, work)
        work, positions = self._work(), POSITIONS[self.p.data]
        n = self._whole(work, positions)
        images = math.ceil(self.p.attention_positions / positions)
        yield _Stage(("01",), "ranks of current and next token", images, n, work)

    def _measured(self, work: Work) -> int:
        patches = self.grid.stride()
        n = self._single(work, patches) + self._whole(work)
        return n + self._ablated(work, patches, ("region", "global", "token"))

    def _probes(self) -> Iterator[_Stage]:
        work = self._work()
        n = self._single(work, range(self.size)) + self._whole(work)
        yield _Stage(("02",), "every token alone", self.p.probe_scenes + 2, n, work)

    def _study(self) -> Iterator[_Stage]:
        patches = sample(self.grid, self.p.study_patches)
        work = self._work()
        n = self._single(work, patches)
        yield _Stage(("04",), "single-token probe", self.p.study_images, n, work)
        for level in ("region", "global"):
            work = Work(self.shape)
            n = self._ablated(work, patches, (level,))
            yield _Stage(("04",), f"leave-one-out, {level}", self.p.study_images, n, work)
        work = Work(self.shape)
        n = self._whole(work) + self._whole(work)
        yield _Stage(("04",), "attention", self.p.study_images, n, work)

    def _codebook(self) -> Iterator[_Stage]:
        p = self.p
        # 08 reads the tokens for its controls even if the codebook comes from elsewhere.
        needed = ("05",) if p.codebook is None else ("05", "08")
        for stage, share in self.shares.items():
            work = self._work() if stage != "global" else Work(self.shape)
            n = self._read(work, stage, share)
            name = f"Algorithm 1, {stage}: {share:.0%} of the tokens expected"
            yield _Stage(needed, name, p.codebook_images, n, work)
        work = self._work()
        n = self._single(work, range(self.size))
        yield _Stage(("05",), "t-SNE and outliers, every token alone", p.tsne_images + 1, n, work)
        if not self.real:  # of photographs the thresholds are given, and nobody is asked
            calibrated = [name for name in GRID if getattr(p, name) == "calibrated"]
            sets = math.prod(len(GRID[name]) for name in calibrated)
            about = extent.exam(p, p.n_questions, scenes=p.n_calibration)
            needed = needed if calibrated else ("05",)
            yield self._judged(needed, "grid of thresholds", about, sets + 1)
        work, n = self._work(), 0
        for stage, share in ABLATED.items():
            n += self._read(work, stage, max(0, share - self.shares[stage]))
        images = min(p.ablation_images, p.codebook_images)
        yield _Stage(("05",), "Table 3, what its codebooks read beyond that", images, n, work)
        about, more = extent.exam(p, p.ablation_questions), p.random_seeds + TABLE_3
        yield self._judged(("05",), "Table 3", about, more)

    def _read(self, work: Work, stage: str, share: float) -> int:
        """A stage of Algorithm 1 for a share of the tokens."""
        if stage == "single":
            return self._single(work, self._spread(share))
        return self._ablated(work, self._spread(share), (stage,))

    def _judged(self, notebooks: tuple[str, ...], name: str, about: Extent, books: int) -> _Stage:
        """Questions of the five tasks to all tokens and, under `books` choices, to 64."""
        work = self._work()
        n = self._asked(work, self.size, about.each, self.judged)
        for _ in range(books):
            n += self._asked(work, SCORED_AT, about.each, self.judged)
        return _Stage(notebooks, name, about.images, n, work)

    def _pruning(self) -> Iterator[_Stage]:
        p, kind = self.p, family(self.p.model)
        yield from self._answers(
            "base", p.n_questions, p.n_captions,
            ("answers of Ours, PruMerge and Random",
             "answers of FastV, further methods and Figure 9", "captions"),
        )  # fmt: skip
        if "probe" in p.methods:
            images = extent.exam(p, p.n_questions).images
            work = Work(self.shape)
            n = self._single(work, range(self.size))
            n += self._ablated(work, range(self.size), ("region", "global"))
            yield _Stage(("06",), "the method probe, every token", images, n, work)
        if kind == "llava-next":
            yield from self._answers(
                "split", p.n_tiled, min(p.n_tiled, p.n_captions),
                ("answers about five tiles", "FastV's answers about five tiles",
                 "captions of five tiles"),
            )  # fmt: skip
        if kind == "llava-onevision":
            pooled = math.ceil(self.shape.cells / 2) ** 2
            for name in KINDS:
                yield self._several(name, "several images", extent.seen(p, name), self.size)
            yield self._several("film", "films", FRAMES, pooled)

    def _answers(
        self, setting: str, full: int, described: int, names: tuple[str, str, str]
    ) -> Iterator[_Stage]:
        """Answers of the rules that are asked everything, of the others, and captions."""
        p, tiles = self.p, 1 if setting == "base" else TILES
        limits = pd.DataFrame({"budget": p.budgets, "r": 0.0})
        rules = pruning.rules(p, self.size, limits, setting)
        known = ("unpruned", "none", *ASKED_ALL)
        everything = [asked for asked in rules if asked.limit == full and asked.method in known]
        others = [asked for asked in rules if asked not in everything]
        captions = [asked for asked in rules if asked.captions]
        few = extent.exam(p, min(p.n_further, full), scenes=full)
        for name, work, about, words, own in (
            (names[0], self._work(tiles=tiles), extent.exam(p, full), self.longest, everything),
            (names[1], Work(self.shape), few, self.longest, others),  # the tower has seen these
            (names[2], self._work(tiles=tiles), extent.described(p, described), self.caption,
             captions),
        ):  # fmt: skip
            n = self._ruled(work, own, about.each, words, tiles)
            yield _Stage(("06",), name, about.images, n, work)

    def _several(self, name: str, told: str, seen: float, size: int) -> _Stage:
        """A set of Table 2: samples of `seen` images or frames of `size` tokens."""
        about, kept = extent.several(self.p, name), TOKENS[name]
        work = self._work(tiles=seen)
        n = self._asked(work, seen * size, about.each, self.longest)
        for _ in range(2 + len(FURTHER) + self.p.random_seeds):
            n += self._asked(work, seen * kept, about.each, self.longest)
        told = told if name == "film" else f"{told} ({name})"
        return _Stage(("06",), f"Table 2, {told}", about.images, n, work)

    def _examples(self) -> Iterator[_Stage]:
        p, kept = self.p, describing.budgets(self.p)
        if self.real:  # the same photographs at both budgets
            of = {"photographs described": (list(kept.values()), 1)}
        else:  # text-rich scenes are asked for their word too
            of = {
                "plain scenes described": ([kept["plain"]], 1),
                "text-rich scenes described": ([kept["text-rich"]], 2),
            }
        stages = [(name, extent.detailed(p), *how) for name, how in of.items()]
        if family(p.model) == "llava-onevision":
            stages.append(("spot the difference", extent.games(p), [p.game_tokens], 1))
        for name, images, budgets, questions in stages:
            work, n = self._work(), 0.0
            for tokens in (self.size, *budgets):
                n += self._asked(work, tokens, questions, self.detail)
            yield _Stage(("07",), name, images, n, work)

    def _controls(self) -> Iterator[_Stage]:
        p = self.p
        # Of those that depend on chance: tokens kept by lot, and codebooks of tokens by lot and of
        # ground, which nobody knows of a photograph.
        drawn = 2 if self.real else 3
        books = 1 + CONTROLS + drawn * p.control_seeds + min(SAMPLES, p.codebook_images)
        yield self._judged(("08",), "controls", extent.exam(p, p.control_questions), books)
        work, n = self._work(), 0
        patches = sample(self.grid, PATCHES)
        for _ in REPLACED:
            n += self._ablated(work, patches, ("region", "global"))
        for _ in PARAPHRASES:
            n += self._single(work, self._spread(self.shares["single"]))
        yield _Stage(("08",), "replacements and paraphrases", p.stability_images, n, work)
