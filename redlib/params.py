"""Typed parameters: every knob of every notebook, with one meaning everywhere.

papermill injects whatever a file says: it only warns about a name that no notebook knows, it hands
`seed: no` on as False, and it reads `tau_jsd: 1e-4` as the text "1e-4", because YAML 1.1 wants a
dot in a number. A study that ran for an hour with a misspelt threshold is worth nothing, so each
value is checked twice against the one table below: by `redlib run` before a kernel starts, and by
the first code cell of each notebook (`redlib.begin`).

    >>> Params(tau_prob=0.2).tau_prob
    0.2
    >>> Params(preset="paper").tau_prob
    0.1

The table is flat. Its defaults are the smoke profile: the smallest run that still draws every
figure, and the same values that stand in the notebooks' `parameters` cells.

Definitions and presets. Where the paper and its released code differ, the value is a *definition*,
and None means "as the preset says". There are three presets:

    paper       the paper's text
    released    the code that its authors released
    calibrated  the paper's definitions, but each threshold is chosen on the calibration split
                (notebook 05), for models that the paper's thresholds were not made for

A value in a file always wins over the preset. Some values depend on the model family, which is read
from the model's name.
"""

import difflib
import json
import math
import os
import re
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from redlib.errors import RedlibError

NOTEBOOKS: dict[str, str] = {
    "01": "01_attention_background.ipynb",
    "02": "02_single_token_probe.ipynb",
    "03": "03_cascaded_leave_one_out.ipynb",
    "04": "04_vqav2_patch_study.ipynb",
    "05": "05_codebook.ipynb",
    "06": "06_pruning_evaluation.ipynb",
    "07": "07_qualitative_examples.ipynb",
    "08": "08_controls.ipynb",
}

ONE_WORD_PROMPT = (
    "What does this image show? You must provide a single word that best describes the image."
)

FAMILIES: tuple[str, ...] = ("llava-1.5", "llava-next", "llava-onevision")
KINDS = dict(zip(("llava", "llava_next", "llava_onevision"), FAMILIES, strict=True))
"""Families by the model_type in config.json."""

# The largest number of visual tokens that a family can keep, of the base tile alone: 24 x 24 or
# 27 x 27.
TOKENS: dict[str, int] = {"llava-1.5": 576, "llava-next": 576, "llava-onevision": 729}

# One value, or one per family in the order of FAMILIES.
_PAPER: dict[str, Any] = {
    "top_prob": 50,
    "top_jsd": 20,
    "jsd_definition": "paper",
    "k_region": 1.0,
    "k_global": 16.0,
    "repeats": (1, 24, 27),
    "tau_prob": (0.1, 0.1, 0.08),
    "tau_out": (8, 8, 3),
    "rule_out": "below",
    "tau_in": (64, 64, 16),
    "rule_in": "size",
    "tau_jsd": (2e-3, 2e-3, 1.5e-3),
    "dpc_neighbours_image": 16,
    "dpc_neighbours_candidates": (64, 64, 24),
    # The paper names no number of centres; these are the released code's.
    "dpc_centres_image": 8,
    "dpc_centres_candidates": (64, 64, 24),
    "r_threshold": 0.5,
    "rule_keep": "at-most",
    "codebook_images": 500,
    "codebook_ranks": "all",
    "study_images": 100,
    "study_patches": 64,
    "random_seeds": 3,
}
_RELEASED: dict[str, Any] = _PAPER | {
    "top_jsd": 10,
    "jsd_definition": "released",
    "repeats": 1,
    "tau_prob": (0.15, 0.1, 0.08),
    "rule_out": "at-most",
    "rule_in": "images",
    "tau_jsd": (2e-3, 2e-3, 1.8e-3),
    # The clustering helper is not in the release; the well-known one uses 5 neighbours.
    "dpc_neighbours_image": 5,
    "dpc_neighbours_candidates": 5,
    # OneVision keeps a fixed fraction by another score there: no threshold to copy.
    "r_threshold": (0.45, 0.11, "calibrated"),
    "rule_keep": "below",
    "codebook_images": (500, 338, 1200),
    "codebook_ranks": "release",
}
_CALIBRATED: dict[str, Any] = _PAPER | {
    "tau_prob": "calibrated",
    "tau_out": "calibrated",
    "tau_in": "calibrated",
    "tau_jsd": "calibrated",
    "r_threshold": "calibrated",
    "codebook_ranks": "release",
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "released": _RELEASED,
    "calibrated": _CALIBRATED,
}


def check_revision(model: str, revision: str | None, remedy: str = "set revision: null") -> None:
    """A folder's files are those that lie there, whatever commit is named, which the notes beside
    the figures would repeat.

    Raises RedlibError for a revision of a model that is embedded or a folder.
    """
    if revision is not None and (model in embedded() or local(model).is_dir()):
        raise RedlibError(
            f"revision: got {revision!r}, but model {model!r} lies on this machine, and only an id "
            f"on the Hugging Face hub has commits; {remedy}"
        )


def is_hub_id(model: str) -> bool:
    """Whether a model's name has the form of a Hugging Face id; "./mine" is a path."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) is not None


def embedded() -> dict[str, Path]:
    """Name -> folder of the checkpoints shipped with the package."""
    folder = Path(__file__).parent / "checkpoints"
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def local(path: str | Path) -> Path:
    """A path that a parameter names, ~ being the reader's home; of a user who has none, as is.

    Raises RedlibError for one that cannot be looked up, of 5,000 letters or in another's folder,
    and for a file or folder that the reader may not read.
    """
    path = Path(path)
    with suppress(RuntimeError):
        path = path.expanduser()
    try:
        there = path.exists()  # where nothing lies it says so; where nothing can lie it raises
    except OSError as error:
        raise RedlibError(f"{str(path)!r} cannot be looked up: {error.strerror}") from None
    if there and not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise RedlibError(
            f"{str(path)!r} cannot be read: Permission denied; change who may read it, or name "
            "another"
        )
    return path


def family(model: str) -> str:
    """The model family (one of FAMILIES): what a folder's config.json says, or else its name."""
    with suppress(RedlibError, OSError, ValueError, LookupError, TypeError):
        kind = json.loads((local(model) / "config.json").read_text(encoding="utf-8"))["model_type"]
        return KINDS[kind]
    name = Path(model).name.lower()
    if "onevision" in name or re.search(r"(^|[-_])ov([-_]|$)", name):
        return "llava-onevision"
    if "next" in name or "v1.6" in name:
        return "llava-next"
    return "llava-1.5"


def preset_value(preset: str, name: str, model: str) -> Any:
    """What `preset` says about the definition `name` for the family of `model`."""
    value = PRESETS[preset][name]
    return value[FAMILIES.index(family(model))] if isinstance(value, tuple) else value


def _read_exponent(value: Any) -> Any:
    """`1e-4` is a number to everybody but YAML 1.1, which hands it over as text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _number(*, ge: float | None = None, le: float | None = None) -> Any:
    return Annotated[
        float, BeforeValidator(_read_exponent), Field(ge=ge, le=le, allow_inf_nan=False)
    ]


def _whole(ge: int, le: int | None = None) -> Any:
    return Annotated[int, Field(ge=ge, le=le)]


_Share = _number(ge=0, le=1)
_Positive = _number(ge=0)
_Cosine = _number(ge=-1, le=1)
_Calibrated = Literal["calibrated"]
_Pruner = Literal[
    "prumerge", "fastv", "sparsevlm", "prumerge+", "visionzip", "divprune", "cls-attention",
    "received-attention", "codebook-softmax", "grid", "downsample", "probe", "oracle",
    "oracle-inverse",
]  # fmt: skip
NAME = 64  # letters of a run_name
_Notebook = Literal["01", "02", "03", "04", "05", "06", "07", "08"]
_RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=NAME)]
_Address = Annotated[str, Field(pattern=r"^(tcp|tls)://\S+:\d+$")]
_Text = Annotated[str, Field(min_length=1)]

PLACES = ("device_map", "workers", "scheduler", "notebooks")
"""Parameters that say where a run is computed, and how much of it; no result depends on them."""

BUILDS = (
    "model", "revision", "dtype", "quantization", "data", "seed", "prompt", "top_prob",
    "top_jsd", "jsd_definition", "k_region", "k_global", "repeats", "codebook_images",
    "codebook_ranks", "tau_prob", "tau_out", "rule_out", "tau_in", "rule_in", "tau_jsd",
    "dpc_neighbours_image", "dpc_centres_image", "dpc_neighbours_candidates",
    "dpc_centres_candidates", "dpc_squared", "n_calibration", "n_questions",
)  # fmt: skip
"""Parameters that the codebook of notebook 05 follows from; the last two choose its thresholds."""

CODEBOOK = "codebook.safetensors"
"""The file of that codebook, in the run's folder of working files."""


class Params(BaseModel):
    """Every parameter of every notebook; read-only, and nothing is converted in silence.

    Construct with keywords to get pydantic's own errors, or through `check`, `load_file` and
    `load_set` to get one line of `RedlibError`. A definition that is None on the way in holds the
    preset's value on the way out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    # What runs, and where its results go.
    run_name: _RunName = Field(
        "smoke", description="folder of the results; a parameter file's own name if it gives none"
    )
    publish: bool = Field(
        False, description="write figures to figures/ and outputs into notebooks/, to be committed"
    )
    notebooks: Annotated[list[_Notebook], Field(min_length=1)] | None = Field(
        None,
        description="the part of the notebooks that the file runs, publishing no outputs into "
        "notebooks/ but its log; null: all",
    )
    model: _Text = Field(
        "tiny-llava-1.5", description="embedded name, folder, or Hugging Face id of the model"
    )
    revision: _Text | None = Field(
        None, description="commit of the model on the Hugging Face hub; null: the newest"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto takes cuda, else mps, else cpu"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16", "float64"] = Field(
        "auto", description="numbers the model computes in; auto: the checkpoint's own"
    )
    device_map: Literal["auto"] | None = Field(
        None, description="auto loads straight onto the GPU (needs accelerate); null: through RAM"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="bits that weights are stored in; no threshold was chosen for fewer"
    )
    workers: _whole(1, 1024) = Field(
        1, description="processes of this machine that share the images; 1: the notebook's own"
    )
    scheduler: _Address | None = Field(
        None, description="address of a running Dask scheduler whose workers share the images"
    )
    data: Literal["tabletop", "real"] = Field(
        "tabletop", description="scenes of known truth, or the paper's data sets"
    )
    data_dir: _Text | None = Field(
        None, description="folder that holds the data sets; null: the Hugging Face hub"
    )
    prompts: Literal["release", "lmms-eval"] = Field(
        "release", description="wording of the benchmarks' questions, with data: real"
    )
    caption_metric: Literal["SPICE", "CIDEr"] = Field(
        "SPICE", description="judges captions of photographs; both need Java, SPICE CoreNLP too"
    )
    games_dir: _Text | None = Field(
        None, description="folder of your own pictures for spot-the-difference, with data: real"
    )
    seed: _whole(0, 2**32 - 1) = Field(0, description="start of every random choice")
    preset: Literal["paper", "released", "calibrated"] = Field(
        "calibrated", description="where a definition that is null takes its value"
    )

    # The single-token probe and the cascaded leave-one-out (notebooks 01 to 03).
    prompt: _Text = Field(ONE_WORD_PROMPT, description="the one-word prompt of both probes")
    image: _Text | None = Field(
        None, description="an image file of your own for 02 and 03; null: the scene below"
    )
    scene: _whole(0) = Field(0, description="number of the held-out tabletop scene in 01 to 03")
    probe_scenes: _whole(2) = Field(
        2, description="held-out scenes, from `scene` on, behind each statement of 01 to 03"
    )
    attention_positions: _whole(200) = Field(
        200, description="text positions whose current and next token are ranked in 01"
    )
    top_prob: _whole(2) | None = Field(
        None, description="candidates that the top-1 probability is normalised over"
    )
    top_jsd: _whole(2) | None = Field(
        None, description="candidates of the intact run that the divergence compares"
    )
    jsd_definition: Literal["paper", "released"] | None = Field(
        None, description="eq. 7 as printed, or as the released code computes it"
    )
    k_region: _Positive | None = Field(
        None, description="weight of the 3 x 3 region's divergence, eq. 11"
    )
    k_global: _Positive | None = Field(
        None, description="weight of the whole image's divergence, eq. 11"
    )
    repeats: _whole(1, 256) | None = Field(
        None, description="copies of the one visual token that the single-token probe feeds"
    )

    # The study of many patches (notebook 04).
    study_images: _whole(1) | None = Field(2, description="images of the patch study")
    study_patches: _whole(1, 729) | None = Field(
        16, description="patches of each image, evenly spaced over the grid; the paper takes 64"
    )
    bootstrap: _whole(100) = Field(200, description="resamples behind each 95 % interval")

    # The codebook (notebook 05).
    codebook_images: _whole(1) | None = Field(
        3, description="training images that prototypes are searched in"
    )
    codebook_ranks: Literal["release", "all"] | None = Field(
        "release", description="patches probed per image: the release's 96 [cls] ranks, or all"
    )
    tau_prob: _Share | _Calibrated | None = Field(
        None, description="a candidate's top-1 probability lies below this"
    )
    tau_out: _Positive | _Calibrated | None = Field(
        None, description="a candidate's cluster in its own image is smaller than this"
    )
    rule_out: Literal["below", "at-most"] | None = Field(
        None, description="whether a cluster of exactly tau_out tokens counts as small"
    )
    tau_in: _Positive | _Calibrated | None = Field(
        None, description="a prototype's cluster among all candidates is larger than this"
    )
    rule_in: Literal["size", "images"] | None = Field(
        None, description="what tau_in counts: tokens of the cluster, or distinct images in it"
    )
    tau_jsd: _Positive | _Calibrated | None = Field(
        None, description="a candidate's divergence (eq. 11) lies below this"
    )
    dpc_neighbours_image: _whole(1) | None = Field(
        None, description="k nearest neighbours of the density within one image, eq. 12"
    )
    dpc_centres_image: _whole(1) | None = Field(
        None, description="clusters within one image, by largest rho x delta"
    )
    dpc_neighbours_candidates: _whole(1) | None = Field(
        None, description="k nearest neighbours of the density over all candidates, eq. 12"
    )
    dpc_centres_candidates: _whole(1) | None = Field(
        None, description="clusters over all candidates, by largest rho x delta"
    )
    dpc_squared: bool = Field(True, description="squared distances in eq. 12; false: plain ones")
    tsne_images: _whole(1) = Field(
        2, description="images behind the outlier statement that goes with the t-SNE map"
    )
    ablation_images: _whole(1) = Field(
        3, description="training images behind Table 3, of codebook_images"
    )
    ablation_questions: _whole(1) = Field(
        2, description="questions per task that judge a codebook of Table 3"
    )

    # Controls and stability (notebook 08).
    control_seeds: _whole(1) = Field(
        1, description="codebooks of each control that depends on chance"
    )
    control_questions: _whole(1) = Field(2, description="questions per task that judge a control")
    stability_images: _whole(1) = Field(
        1, description="images behind other replacements and other prompts"
    )

    # Pruning and its evaluation (notebook 06).
    codebook: _Text | None = Field(
        None,
        description="file of the codebook that 06 to 08 prune with, imported or of another run; "
        "null: the one that 05 builds",
    )
    budgets: Annotated[list[_whole(1)], Field(min_length=1)] = Field(
        [144, 64], description="visual tokens to keep, one evaluation each"
    )
    curve: Annotated[list[_whole(1)], Field(min_length=1)] = Field(
        [8, 64], description="visual tokens along Figure 9"
    )
    methods: Annotated[list[_Pruner], Field(min_length=1)] = Field(
        ["prumerge", "fastv"], description="rivals of Ours and Random; see redlib.prune.METHODS"
    )
    r_threshold: _Cosine | _Calibrated | None = Field(
        None, description="redundancy score up to which a token is kept, Algorithm 2"
    )
    rule_keep: Literal["at-most", "below"] | None = Field(
        None, description="whether a score of exactly r_threshold is kept"
    )
    random_seeds: _whole(1) | None = Field(1, description="draws of the Random baseline")
    n_questions: _whole(1) = Field(4, description="questions per task")
    n_further: _whole(1) = Field(
        2, description="questions per task of FastV, the further methods and the curve's budgets"
    )
    n_captions: _whole(1) = Field(2, description="images that are described, for either column")
    n_tiled: _whole(1) = Field(
        2, description="questions per task about images in five tiles, LLaVA-Next only"
    )
    n_several: _whole(1) = Field(
        4, description="questions per multi-image set, and at least so many about films"
    )
    n_calibration: _whole(1) = Field(2, description="images that thresholds are calibrated on")

    # Qualitative examples (notebook 07).
    example_tokens: _whole(2, 576) = Field(
        64, description="visual tokens kept in the examples beside FastV and PruMerge"
    )
    n_described: _whole(2) = Field(
        2, description="scenes of each sort, plain and text-rich, that are described"
    )
    caption_tokens: _whole(1, 576) = Field(
        144, description="visual tokens kept where plain scenes are described"
    )
    text_tokens: _whole(1, 576) = Field(
        280, description="visual tokens kept where text-rich scenes are described"
    )
    n_games: _whole(2) = Field(
        2, description="composite images of spot-the-difference; LLaVA-OneVision only"
    )
    game_tokens: _whole(1, 729) = Field(
        508, description="visual tokens kept in spot-the-difference"
    )

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, values: Any) -> Any:
        """Replace each definition that is missing or None by the preset's value."""
        if not isinstance(values, Mapping):
            return values
        preset = values.get("preset", "calibrated")
        model = values.get("model", "tiny-llava-1.5")
        if not isinstance(preset, str) or preset not in PRESETS or not isinstance(model, str):
            return values  # the field itself will complain
        filled = dict(values)
        for name in PRESETS[preset]:
            if filled.get(name, cls.model_fields[name].default) is None:
                filled[name] = preset_value(preset, name, model)
        return filled


def check(values: Mapping[str, Any], *, source: str = "") -> Params:
    """Check `values` against the table.

    source: name of the file (or notebook) to open each message with.
    Raises RedlibError, one line that names the parameter: unknown name (with the nearest known
    one), wrong type, out of range, more tokens to keep or to study than the model has, a method
    that it lacks a part for, too few captions for their metric.
    """
    prefix = f"{source}: " if source else ""
    for name in values:
        if name not in Params.model_fields:
            raise RedlibError(f"{prefix}unknown parameter {name!r}; {_nearest(str(name))}")
    try:
        params = Params.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]["loc"]
        name = str(first[0])
        got = values.get(name)
        raise RedlibError(
            f"{prefix}{name} must be {describe(name)}; got {_short(got)}{_hint(name, got)}"
        ) from None
    if params.scheduler and params.workers > 1:
        raise RedlibError(
            f"{prefix}workers counts processes of this machine; with scheduler, whose own workers "
            f"are taken, leave it out; got {params.workers!r}"
        )
    searched = [
        n
        for n in ("tau_prob", "tau_out", "tau_jsd", "tau_in")
        if getattr(params, n) == "calibrated"
    ]
    if params.data == "real" and searched:
        raise RedlibError(
            f"{prefix}{searched[0]} cannot be calibrated with data: real, since the questions that "
            "judge thresholds are about scenes; set preset: paper, or give a number"
        )
    if math.isqrt(params.study_patches) ** 2 != params.study_patches:
        raise RedlibError(
            f"{prefix}study_patches must be a square number, so that the patches form a grid; got "
            f"{params.study_patches!r}"
        )
    kind = family(params.model)
    limit = TOKENS[kind]
    if params.study_patches > limit:
        raise RedlibError(
            f"{prefix}study_patches must be at most {limit}, the visual tokens of {params.model}; "
            f"got {params.study_patches!r}"
        )
    for name in ("n_captions", "n_tiled") if kind == "llava-next" else ("n_captions",):
        judged = params.data == "real" and params.caption_metric == "CIDEr"
        if judged and getattr(params, name) < 2:
            raise RedlibError(
                f"{prefix}{name} must be 2 or more with caption_metric: CIDEr, which weighs words "
                f"by how rare they are over the images; got {getattr(params, name)!r}"
            )
    if kind == "llava-onevision" and "cls-attention" in params.methods:
        raise RedlibError(
            f"{prefix}methods must be without 'cls-attention', since {params.model} has no [cls]; "
            "take received-attention"
        )
    for name in ("budgets", "curve"):
        if len(set(getattr(params, name))) < len(getattr(params, name)):
            got = getattr(params, name)
            raise RedlibError(f"{prefix}{name} must be different numbers; got {got!r}")
    for name, keep in [(n, keep) for n in ("budgets", "curve") for keep in getattr(params, n)]:
        if keep > limit:
            raise RedlibError(
                f"{prefix}{name} must be from 1 to {limit}, the visual tokens of {params.model}; "
                f"got {keep!r}"
            )
    return params


def load_file(path: str | Path) -> Params:
    """Read one parameter file: a flat YAML mapping.

    Without a `run_name` in it, the file's own name without the ending is taken.
    Raises RedlibError, one line that names the file: missing, empty, binary, not YAML, not a flat
    mapping, and everything that `check` raises.
    """
    path = Path(path)
    values = _read_yaml(path)
    if "set" in values:
        raise RedlibError(f"{path}: this is a set of parameter files; a single one is needed here")
    return check({"run_name": path.stem} | values, source=str(path))


def load_set(path: str | Path) -> list[Params]:
    """Read a set file, `set: [a, b]`: the parameters of each member, in order.

    Members are parameter files beside the set file, named without ".yaml". A plain parameter file
    is a set of one. Raises RedlibError like `load_file`, and for two members of one run name.
    """
    path = Path(path)
    values = _read_yaml(path)
    if "set" not in values:
        return [load_file(path)]
    members = values.pop("set")
    values.pop("beside", None)
    if values:
        extra = next(iter(values))
        raise RedlibError(
            f"{path}: a set holds only the keys 'set' and 'beside'; got also {extra!r}"
        )
    if not isinstance(members, list) or {type(member) for member in members} != {str}:
        raise RedlibError(f"{path}: set must be a list of parameter files; got {members!r}")
    runs = []
    for member in members:
        try:
            runs.append(load_file(path.parent / f"{member.removesuffix('.yaml')}.yaml"))
        except RedlibError as error:
            raise RedlibError(f"{path}, member {member!r}: {error}") from None
    names = [run.run_name for run in runs] + [path.stem]
    for name in names:
        if names.count(name) > 1:
            raise RedlibError(f"{path}: run_name {name!r} occurs twice; each run needs its own")
    return runs


def load_beside(path: str | Path) -> list[Params]:
    """The runs of the set that the set file `path` names with `beside: other`: what its own runs
    leave out is read from their results. Empty without that key. Raises RedlibError like
    `load_set`.
    """
    path = Path(path)
    other = _read_yaml(path).get("beside")
    if other is None:
        return []
    if not isinstance(other, str):
        raise RedlibError(f"{path}: beside must be the name of a set file; got {other!r}")
    try:
        return load_set(path.parent / f"{other.removesuffix('.yaml')}.yaml")
    except RedlibError as error:
        raise RedlibError(f"{path}, beside {other!r}: {error}") from None


def is_set(path: str | Path) -> bool:
    """Whether the file at `path` is a set of parameter files."""
    return "set" in _read_yaml(Path(path))


def describe(name: str) -> str:
    """The type and the bounds of the parameter `name`, in words."""
    field = Params.model_fields[name]
    words = _words(field.annotation, field.metadata)
    return " or ".join(dict.fromkeys(words))


class _Loader(yaml.SafeLoader):
    """YAML without the silent rules that the later of two equal keys wins, and that 010 is 8."""

    def construct_scalar(self, node: yaml.Node) -> Any:
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and re.fullmatch(r"[+-]?0[\d_]+|.*:.*", str(node.value)):
            raise RedlibError(
                f"line {node.start_mark.line + 1}: {node.value} is to YAML no decimal number;"
                " write one without a leading 0 or a colon, or put a text in quotes"
            )
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise RedlibError(
                    f"line {key_node.start_mark.line + 1}: merge keys (<<) are not supported; write"
                    " the values themselves"
                )
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise RedlibError(f"{key!r} cannot be the name of a parameter")
            if key in seen:
                raise RedlibError(f"{key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        names = [f.name for f in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=8, cutoff=0.0)
        are = "there are" if len(near) == len(names) else "the nearest names are"
        there = f"; {are} {', '.join(sorted(near))}" if near else ""
        raise RedlibError(f"{path}: no such parameter file{there}") from None
    except IsADirectoryError:
        raise RedlibError(f"{path}: a folder; a parameter file is wanted") from None
    except OSError as error:
        raise RedlibError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # of a NUL, or half a pair of surrogates
        raise RedlibError(f"{str(path)!r}: no file can have this name ({error})") from None
    try:
        text = raw.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError
    except ValueError:
        raise RedlibError(f"{path}: not a text file; a parameter file is YAML in UTF-8") from None
    try:
        values = yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except RedlibError as error:
        raise RedlibError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unexpected character"
        raise RedlibError(f"{path}: not YAML{where}: {problem}") from None
    except (RecursionError, ValueError) as error:
        raise RedlibError(f"{path}: not YAML that can be read ({_short(str(error))})") from None
    if values is None:
        raise RedlibError(f"{path}: empty; write one `name: value` per line") from None
    if not isinstance(values, dict):
        raise RedlibError(f"{path}: must hold one `name: value` per line; got {_short(values)}")
    return {str(name): value for name, value in values.items()}


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, Params.model_fields, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "`redlib params` lists the known ones"


def _hint(name: str, value: Any) -> str:
    if not isinstance(value, bool):
        return ""
    remedy = "" if "number" in describe(name) else "; put a word in quotes"
    return f" (YAML reads no, off, yes and on as false and true{remedy})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _words(annotation: Any, metadata: list[Any]) -> list[str]:
    """The members of a type annotation in words, e.g. ["a number from 0 to 1", "null"]."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _words(inner, [*more, *metadata])
    if origin in (Union, types.UnionType):
        return [word for member in get_args(annotation) for word in _words(member, [])]
    if origin is Literal:
        return [str(value) for value in get_args(annotation)]
    if origin is list:
        return [f"a list of one or more, each {' or '.join(_words(get_args(annotation)[0], []))}"]
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names[types.NoneType] = "null"
    return [names[annotation] + _bounds(metadata)]


def _bounds(metadata: list[Any]) -> str:
    low = high = None
    for item in metadata:
        for part in getattr(item, "metadata", [item]):  # a FieldInfo holds its own list
            low = getattr(part, "ge", low)
            high = getattr(part, "le", high)
            if pattern := getattr(part, "pattern", None):
                if pattern.startswith("^(tcp"):
                    return " such as tcp://node1:8786"
                return (
                    f" of at most {NAME} letters, digits, dots, dashes and underscores that begins "
                    "with a letter or digit"
                )
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return f" of at least {low}" if low is not None else ""
