"""One image, measured patch by patch in all the ways that the paper compares (notebooks 01 to 03).

    describe   what a token says alone; [cls] similarity; attention; what it adds (eq. 3-6)
    measure    the same at 64 patches, with what their removal changes (eq. 7-11)

Where the image is a scene, its truth stands beside the numbers: which object covers the patch, how
much of it, and whether the decoded word is that object's noun. Of a photograph, or of a reader's
own file, nobody knows that.

    subject = subject_of(vlm, scenes("test", 1)[0])
    table = describe(vlm, subject, prompt=ONE_WORD, top_prob=50)
    table[table["coverage"] > 0.5]["right"].mean()      # how often the word is the object's noun
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from redlib import leave_one_out, probe, states
from redlib.data.photographs import Picture
from redlib.data.sources import captioned
from redlib.models import VLM
from redlib.notebook import Session
from redlib.params import Params
from redlib.pictures import open_image
from redlib.tabletop import Scene, questions, scenes
from redlib.tabletop.questions import DESCRIBE

CODE = (
    "engine", "geometry", "leave_one_out", "memory", "models", "pictures", "planner", "probe",
    "states", "study/subjects", "tabletop/world",
)  # fmt: skip
"""Modules whose change makes stored rows stale."""

DEPTHS = ("shallow", "middle", "deep")
LEVELS = ("region", "global", "token")
VARIANTS = {
    "": ("paper", leave_one_out.TOP),
    "_row6": ("paper", leave_one_out.TOP_RELEASED),
    "_row7": ("released", leave_one_out.TOP),
    "_released": ("released", leave_one_out.TOP_RELEASED),
}
"""Column suffix -> (formula, candidates): the paper's divergence, each of the release's two changes
alone, and both."""


def settings(params: Params) -> dict[str, Any]:
    """What the rows of `measure` depend on beside model and image: its keywords, and a store's key.

    The divergence of these notebooks is the paper's; the released one stands beside it in columns
    of its own.
    """
    return {
        "prompt": params.prompt,
        "top_prob": params.top_prob,
        "top_jsd": params.top_jsd,
        "weights": (params.k_region, params.k_global),
    }


@dataclass(frozen=True, eq=False)
class Subject:
    """One image under study.

    Attributes:
        name: id of the scene or photograph, or the file's name.
        picture: the square that the model sees.
        tokens: (L, D) visual tokens.
        cls_similarity: (L,) cosine with [cls] at the feature layer.
        shown: the scene or photograph, or None for a file.
    """

    name: str
    picture: Image.Image
    tokens: Tensor
    cls_similarity: np.ndarray
    shown: Scene | Picture | None

    @property
    def scene(self) -> Scene | None:
        """The scene, where it is one: then the truth is known."""
        return self.shown if isinstance(self.shown, Scene) else None

    @property
    def text(self) -> str:
        """What the picture shows, as far as it is known."""
        return self.shown.caption if self.shown else f"the file {self.name}"

    @property
    def told(self) -> str:
        """The same in a sentence, for a notebook."""
        if self.scene is not None:
            return f"Scene `{self.name}` truly shows: {self.text}"
        return f"Photograph `{self.name}`: {self.text}"


def looked_at(session: Session) -> dict[Hashable, Scene | Picture]:
    """The `probe_scenes` images of notebooks 01 to 03, by the name of their rows in a table: scenes
    by their number, photographs by their id."""
    p = session.params
    return _named(session, session.images("probed", p.probe_scenes, start=p.scene))


def subject_of(vlm: VLM, shown: Scene | Picture) -> Subject:
    """A scene or photograph as the model sees it."""
    return _subject(vlm, shown.id, shown.image, shown)


def subject(vlm: VLM, *, image: str | None, shown: Scene | Picture) -> Subject:
    """The reader's own image file if one is named, else what would be shown."""
    if image is None:
        return subject_of(vlm, shown)
    picture = open_image(image)
    return _subject(vlm, str(image).replace("\\", "/").rsplit("/", 1)[-1], picture, None)


def _subject(vlm: VLM, name: str, image: Image.Image, shown: Scene | Picture | None) -> Subject:
    encoded = vlm.encode([image])
    similarity = encoded.cls_similarity[0].cpu().numpy()
    return Subject(name, vlm.view(image), encoded.tokens[0], similarity, shown)


def _named(session: Session, shown: Sequence[Scene | Picture]) -> dict[Hashable, Scene | Picture]:
    first = session.params.scene
    return {one.id if isinstance(one, Picture) else first + n: one for n, one in enumerate(shown)}


def describe(
    vlm: VLM,
    subject: Subject,
    *,
    prompt: str,
    top_prob: int,
    patches: Sequence[int] | None = None,
    batch: int | None = None,
) -> pd.DataFrame:
    """One row a patch (all L by default): what the token says and what intermediate states say.

    Columns: image, those of `probe.single`, cls_similarity; for each of shallow, middle and deep,
    attention_<depth> and contribution_<depth>, and their sums over the three, attention and
    contribution; the truth, where the image is a scene: noun of the object that covers most of the
    patch ("" for none), coverage (0..1) by it, right (the word is that noun), named (the word is
    the noun of any object of the image), card (share under the card with the written word), present
    (all nouns of the image).
    """
    patches = range(vlm.grid.size) if patches is None else patches
    frame = probe.single(
        vlm, subject.tokens, patches, prompt=prompt, top=_fit(vlm, top_prob), batch=batch
    )
    frame.insert(0, "image", subject.name)
    at = frame["patch"].to_numpy()
    frame["cls_similarity"] = subject.cls_similarity[at]
    read = states.read(vlm, subject.tokens, prompt=prompt)
    for name, values in (("attention", read.attention), ("contribution", read.contribution)):
        chosen = values[list(vlm.layers)][:, at]  # (3, patches)
        for depth, row in zip(DEPTHS, chosen, strict=True):
            frame[f"{name}_{depth}"] = row
        frame[name] = chosen.sum(axis=0)
    return frame if subject.scene is None else _with_truth(vlm, frame, subject.scene)


def measure(
    vlm: VLM,
    subject: Subject,
    *,
    prompt: str,
    top_prob: int,
    top_jsd: int,
    weights: Sequence[float],
    batch: int | None = None,
) -> pd.DataFrame:
    """The rows of `describe` at every third row and column, with the leave-one-out divergences.

    Adds jsd_region, jsd_global, jsd_token and jsd_final (eq. 11), each once per entry of VARIANTS;
    `top_jsd` stands for the paper's 20. Further, answer_drop: by how much the logit of the image's
    own answer falls when the one token is ablated in the whole image.
    """
    patches = vlm.grid.stride()
    frame = describe(vlm, subject, prompt=prompt, top_prob=top_prob, patches=patches, batch=batch)
    kept = max(top_jsd, *(top for _, top in VARIANTS.values()))
    changes = leave_one_out.ablations(
        vlm, subject.tokens, patches, prompt=prompt, levels=LEVELS, top=kept, batch=batch
    )
    for suffix, (formula, top) in VARIANTS.items():
        top = top_jsd if top == leave_one_out.TOP else top
        for level, change in changes.items():
            value = leave_one_out.jsd(
                change.intact, change.ablated, top=_fit(vlm, top), definition=formula
            )
            frame[f"jsd_{level}{suffix}"] = value.numpy()
        frame[f"jsd_final{suffix}"] = (
            weights[0] * frame[f"jsd_region{suffix}"] + weights[1] * frame[f"jsd_global{suffix}"]
        )
    token = changes["token"]  # the image's own answer leads its candidates
    frame["answer_drop"] = (token.intact - token.ablated)[:, 0].cpu().numpy()
    return frame


def pair_candidates(
    vlm: VLM, subject: Subject, patches: Sequence[int], *, prompt: str, top: int
) -> pd.DataFrame:
    """Leading candidates before and after ablation at both levels of the cascade (Figure 3).

    Rows of `leave_one_out.candidates` for each patch and level (region, global), with the
    probabilities over those candidates (eq. 9-10) as before and after. Further columns: image,
    patch, level, place (1 is the best of the intact run).
    """
    frames = []
    for patch in patches:
        for level in ("region", "global"):
            found = leave_one_out.candidates(
                vlm, subject.tokens, int(patch), prompt=prompt, level=level, top=_fit(vlm, top)
            )
            for side in ("before", "after"):
                logit = found[f"logit_{side}"]
                odds = np.exp(logit - logit.max())
                found[side] = odds / odds.sum()
            found["place"] = range(1, len(found) + 1)
            frames.append(found.assign(image=subject.name, patch=int(patch), level=level))
    return pd.concat(frames, ignore_index=True)


def single_candidates(
    vlm: VLM, subject: Subject, patch: int, *, prompt: str, top: int
) -> pd.DataFrame:
    """The leading candidates of one token read on its own: word, before (probability), place."""
    top = _fit(vlm, top)
    found = probe.single(vlm, subject.tokens, [patch], prompt=prompt, top=max(top, 2), keep_top=top)
    row = found.iloc[0]
    logit = np.asarray(row["top_logits"])
    # top1 is the first candidate's probability over the whole vocabulary; the others follow.
    before = row["top1"] * np.exp(logit - logit[0])
    words = [vlm.word(token) for token in row["top_ids"]]
    return pd.DataFrame(
        {"word": words, "before": before, "place": range(1, top + 1), "image": subject.name,
         "patch": int(patch), "level": "single"}
    )  # fmt: skip


def article_question(session: Session) -> str:
    """A question whose answer begins with an article: of the generators' the first from test scene
    `scene` on, and about photographs the request to describe them."""
    index = session.params.scene
    if session.source.real:
        return DESCRIBE
    while not (asked := questions(scenes("test", 1, start=index), "article")):
        index += 1
    return asked[0].text


def caption_ranks(vlm: VLM, shown: Scene | Picture) -> pd.DataFrame:
    """`states.token_ranks` over the caption of an image, told to the model as its own answer.

    Only positions whose next token belongs to the caption are kept: at those the model has
    something to predict. Adds a column image.
    """
    subject = subject_of(vlm, shown)
    before, after = vlm.prompt(DESCRIBE)
    caption = torch.tensor(_caption_ids(vlm, shown), device=vlm.device)
    image = torch.tensor([vlm.model.config.image_token_id], device=vlm.device)
    ids = torch.cat([before, image, after, caption])
    ranks = states.token_ranks(vlm, ids, tokens=subject.tokens)
    ranks = ranks[ranks["position"] >= len(ids) - len(caption) - 1]
    return ranks.assign(image=subject.name).reset_index(drop=True)


def with_captions(session: Session) -> dict[Hashable, Scene | Picture]:
    """As many images with captions, from `scene` on, as have `attention_positions` positions in
    them; by the name of their rows, as `looked_at`."""
    p, missing = session.params, session.params.attention_positions
    shown = _named(session, session.images("captioned", captioned(p), start=p.scene))
    found: dict[Hashable, Scene | Picture] = {}
    for name, one in shown.items():
        if missing <= 0:
            break
        found[name] = one
        missing -= len(_caption_ids(session.model, one))
    return found


def _caption_ids(vlm: VLM, shown: Scene | Picture) -> list[int]:
    return vlm.processor.tokenizer(shown.caption, add_special_tokens=False)["input_ids"]


def is_named(word: str, noun: str) -> bool:
    """Whether a decoded token names the noun: equal, or a first piece of three letters or more."""
    word = word.lower()
    return word == noun or (len(word) >= 3 and noun.startswith(word))


def _with_truth(vlm: VLM, frame: pd.DataFrame, scene: Scene) -> pd.DataFrame:
    at = frame["patch"].to_numpy()
    coverage = scene.coverage(vlm.sight)[:, at]  # (objects, patches)
    best = coverage.argmax(axis=0)
    most = coverage.max(axis=0)
    nouns = [scene.objects[k].noun if c > 0 else "" for k, c in zip(best, most, strict=True)]
    present = {thing.noun for thing in scene.objects}
    words = frame["word"]
    return frame.assign(
        noun=nouns,
        coverage=most,
        right=[is_named(w, noun) if noun else False for w, noun in zip(words, nouns, strict=True)],
        named=[any(is_named(word, noun) for noun in present) for word in words],
        card=scene.word_coverage(vlm.sight)[at],
        present=" ".join(sorted(present)),
    )


def _fit(vlm: VLM, top: int) -> int:
    """Candidates, at most the whole vocabulary (small in the embedded models)."""
    return min(top, vlm.model.config.text_config.vocab_size)
