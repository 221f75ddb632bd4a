"""The redundancy codebook: which visual tokens become prototypes (section 4.1, Algorithm 1).

A prototype is a visual token of a training image that tells the language model nothing. Four
criteria decide (eq. 1), each with one threshold:

| criterion | from | a token passes when |
|---|---|---|
| tau_prob | single-token probe | its top-1 probability is low: no word comes to mind |
| tau_out | clusters within its image | its cluster is small: it is an outlier |
| tau_jsd | cascaded leave-one-out | its JSD is low: nobody misses it |
| tau_in | clusters of all candidates | its cluster is large: other images have such tokens too |

The first three are per token; who passes all three is a *candidate*. The fourth looks at the
candidates of all images together, and what is left are the *prototypes*:

    mask, survivors = candidates(table, criteria)                       # table: one row per token
    chosen, clusters = prototypes(vectors[mask], table.image[mask], criteria,
                                  neighbours=64, centres=64, survivors=survivors)
    codebook = Codebook(vectors[mask][chosen], ...)
    codebook.save("codebook.safetensors")

`redlib.stages` fills such a table without computing what cannot matter any more.

The paper's text and the released code differ in three places, each a field of `Criteria`: whether
a cluster of exactly tau_out still counts as small, whether tau_in counts the tokens of a cluster
or the distinct images in it (the released 1.5 codebook is two clusters, 454 tokens; by the size
rule the same candidates would give seven clusters, 868 tokens), and the thresholds.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from redlib.clustering import Clusters, dpc_knn
from redlib.errors import RedlibError
from redlib.params import local
from redlib.store import atomic

_FORMAT = "redlib codebook 1"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RULES = {"rule_in": ("size", "images"), "rule_out": ("below", "at-most")}

# tau_prob, tau_out, tau_in, tau_jsd (section 9.1; the released configuration files)
_PAPER = {
    "llava-1.5": (0.1, 8, 64, 2e-3),
    "llava-next": (0.1, 8, 64, 2e-3),
    "llava-onevision": (0.08, 3, 16, 1.5e-3),
}
_RELEASED = {
    "llava-1.5": (0.15, 8, 64, 2e-3),
    "llava-next": (0.1, 8, 64, 2e-3),
    "llava-onevision": (0.08, 3, 16, 1.8e-3),
}


class NoPrototype(RedlibError):
    """The criteria leave no prototype."""


@dataclass(frozen=True)
class Criteria:
    """The four thresholds of eq. 1 and how each is compared.

    A criterion is switched off by an infinite `tau_prob`, `tau_out` or `tau_jsd`, or `tau_in` 0.

    Attributes:
        tau_prob: a token passes when its top-1 probability is below.
        tau_out: ... when the size of its cluster within the image is below.
        tau_in: ... when its cluster of candidates is larger.
        tau_jsd: ... when its final JSD (eq. 11) is below.
        rule_in: what tau_in counts: "size", the candidates in the cluster (the paper's text), or
            "images", the distinct images in it (the released code).
        rule_out: whether a cluster of exactly tau_out is small: "below", it is not (the paper's
            text), or "at-most", it is (the released code).

    Raises:
        RedlibError: a threshold is no number or negative, or there is no such rule.
    """

    tau_prob: float
    tau_out: float
    tau_in: float
    tau_jsd: float
    rule_in: Literal["size", "images"] = "size"
    rule_out: Literal["below", "at-most"] = "below"

    def __post_init__(self) -> None:
        for name in ("tau_prob", "tau_out", "tau_in", "tau_jsd"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise RedlibError(f"{name} must be a number; got {value!r}")
            if value < 0:
                raise RedlibError(f"{name} must be 0 or more; got {value!r}")
        for name, rules in _RULES.items():
            if getattr(self, name) not in rules:
                wanted = " or ".join(map(repr, rules))
                raise RedlibError(f"{name} must be {wanted}; got {getattr(self, name)!r}")

    @classmethod
    def paper(cls, family: str = "llava-1.5") -> Self:
        """The paper's thresholds (section 9.1) and its text's rules."""
        return cls(*_thresholds(_PAPER, family))

    @classmethod
    def released(cls, family: str = "llava-1.5") -> Self:
        """The released code's thresholds and rules.

        Its tau_jsd belongs to its own JSD, a mean over candidates with the arguments exchanged:
        use it with that column of the leave-one-out table.
        """
        return cls(*_thresholds(_RELEASED, family), rule_in="images", rule_out="at-most")

    def passes(self, name: str, values: Sequence | np.ndarray) -> np.ndarray:
        """Which of `values` (n,) pass `name`: "tau_prob", "tau_out" or "tau_jsd"; (n,) bool.

        NaN, a value that was not computed, passes only a criterion that is switched off.
        """
        values, threshold = np.asarray(values, float), getattr(self, name)
        if math.isinf(threshold):
            return np.ones(len(values), bool)
        at_most = name == "tau_out" and self.rule_out == "at-most"
        return values <= threshold if at_most else values < threshold

    def for_images(self, n: int, *, of: int = 500) -> Self:
        """The same criteria for `n` training images instead of `of`: tau_in in proportion.

        64 for 500 images becomes 13 for 100. What is switched off stays so, and nothing becomes so:
        a tau_in of 0 stays 0, any other is at least 1, and an infinite one stays infinite. Raises
        RedlibError if `n` is below 1.
        """
        if n < 1:
            raise RedlibError(f"the number of training images must be at least 1; got {n!r}")
        if self.tau_in == 0 or math.isinf(self.tau_in):
            return self
        return replace(self, tau_in=max(1, round(self.tau_in * n / of)))


def candidates(
    table: pd.DataFrame,
    criteria: Criteria,
    *,
    probability: str = "top1_head",
    jsd: str = "jsd_final",
) -> tuple[np.ndarray, pd.Series]:
    """Redundant candidates (Algorithm 1, lines 7-17) and how many pass each criterion.

    Args:
        table: one row per probed token, columns `cluster_size` (within the token's image),
            `probability` and `jsd`. A NaN means "not computed, since another criterion failed
            already" and does not pass, unless its criterion is switched off.
        criteria: the thresholds.
        probability: column with the top-1 probability: "top1_head", among the top 50 (section
            9.1), or "top1", over the whole vocabulary (eq. 6).
        jsd: column with the final JSD (eq. 11).

    Returns:
        mask: (n,) bool, the candidates.
        survivors: counts; index "probed", "tau_prob", "tau_out", "tau_jsd" (each criterion by
            itself, among the tokens that it was computed for) and "candidates" (all three).

    Raises:
        RedlibError: the table lacks one of the three columns.
    """
    for column in (probability, "cluster_size", jsd):
        if column not in table:
            raise RedlibError(f"the table of probed tokens has no column {column!r}")
    columns = {"tau_prob": probability, "tau_out": "cluster_size", "tau_jsd": jsd}
    passed = {name: criteria.passes(name, table[column]) for name, column in columns.items()}
    mask = np.logical_and.reduce(list(passed.values()))
    counts = {"probed": len(table)}
    counts |= {name: int(flags.sum()) for name, flags in passed.items()}
    counts["candidates"] = int(mask.sum())
    return mask, pd.Series(counts, name="tokens")


def prototypes(
    vectors: torch.Tensor,
    images: Sequence,
    criteria: Criteria,
    *,
    neighbours: int,
    centres: int,
    squared: bool = True,
    scaled: bool = False,
    survivors: pd.Series | None = None,
) -> tuple[np.ndarray, Clusters]:
    """The candidates that other images share (Algorithm 1, lines 18-24).

    With fewer candidates than `neighbours` + 1 or `centres` all of them are neighbours, or each
    is a cluster; `Clusters.neighbours` and `len(Clusters.centre_index)` say what was used.

    Args:
        vectors: (n, D) the candidates.
        images: (n,) the image of each.
        criteria: `tau_in` and `rule_in` are used.
        neighbours, centres, squared, scaled: as in `dpc_knn`.
        survivors: counts as in the second result of `candidates`, told in the error.

    Returns:
        mask: (n,) bool, the prototypes.
        clusters: the clusters of all candidates.

    Raises:
        NoPrototype: there is no candidate, or no cluster of them is large enough.
    """
    told = f" ({_tell(survivors)})" if survivors is not None else ""
    n = len(vectors)
    if n < 2:
        raise NoPrototype(
            f"{'no patch survives' if n == 0 else 'only one patch survives'} the criteria{told}: "
            "raise tau_prob, tau_out or tau_jsd"
        )
    clusters = dpc_knn(
        vectors,
        neighbours=min(neighbours, n - 1),
        centres=min(centres, n),
        squared=squared,
        scaled=scaled,
    )
    distinct = clusters.distinct(images)
    count = distinct if criteria.rule_in == "images" else clusters.cluster_sizes
    mask = (count > criteria.tau_in)[clusters.labels]
    if not mask.any():
        what = "images" if criteria.rule_in == "images" else "candidates"
        raise NoPrototype(
            f"no patch survives the criteria{told}: the largest of {len(count)} clusters has "
            f"{count.max()} {what}, not more than tau_in {criteria.tau_in:g}: lower tau_in"
        )
    return mask, clusters


@dataclass(frozen=True, eq=False)
class Codebook:
    """N redundant prototypes, with where each came from.

    Attributes:
        vectors: (N, D) float32, as the projector made them (not normalised); given in any of the
            dtypes that models compute in.
        image: (N,) name of the training image of each prototype.
        patch: (N,) raster index of its patch in that image.
        model, revision: the checkpoint whose projector made the vectors; another model's tokens
            live in another space.
        criteria: how they were chosen.

    Raises:
        RedlibError: no prototype, another dtype, NaN or infinite values, or lengths that do not fit
            together.
    """

    vectors: torch.Tensor
    image: tuple[str, ...]
    patch: tuple[int, ...]
    model: str
    revision: str
    criteria: Criteria
    _unit: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        # Integers and their kin are no projector's output: of another file, or quantised without
        # the scale that would give them a meaning.
        if self.vectors.dtype not in _DTYPES:
            raise RedlibError(
                "the vectors of a codebook must be float16, bfloat16, float32 or float64; got "
                f"{str(self.vectors.dtype).removeprefix('torch.')}"
            )
        vectors = self.vectors.detach().to("cpu", torch.float32).contiguous()
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "image", tuple(str(name) for name in self.image))
        object.__setattr__(self, "patch", tuple(int(index) for index in self.patch))
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise RedlibError(f"a codebook has shape (N, D); got {tuple(vectors.shape)}")
        if len(vectors) == 0:
            raise RedlibError("the codebook is empty: it holds no prototype")
        if not bool(torch.isfinite(vectors).all()):
            raise RedlibError("the codebook has NaN or infinite values")
        if not len(vectors) == len(self.image) == len(self.patch):
            raise RedlibError(
                f"the codebook names {len(self.image)} images and {len(self.patch)} patches "
                f"for {len(vectors)} prototypes"
            )
        if not bool(vectors.any(dim=1).all()):
            number = int((~vectors.any(dim=1)).nonzero()[0])
            raise RedlibError(f"prototype {number} of the codebook is zero and has no direction")

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def width(self) -> int:
        """D, the width of the language model."""
        return self.vectors.shape[1]

    @property
    def digest(self) -> str:
        """Twelve letters that tell codebooks of different prototypes apart."""
        return hashlib.sha256(self.vectors.numpy().tobytes()).hexdigest()[:12]

    def unit(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """(N, D) prototypes of length 1, there and in that precision, normalised in float32 at
        least; made once and kept."""
        if (device, dtype) not in self._unit:
            self._unit.clear()
            with torch.inference_mode(False):  # else it could not be used outside of such a mode
                exact = torch.promote_types(dtype, torch.float32)
                vectors = self.vectors.clone().to(device, exact)
                unit = torch.nn.functional.normalize(vectors, dim=-1)
                self._unit[device, dtype] = unit.to(dtype)
        return self._unit[device, dtype]

    def save(self, path: str | Path) -> Path:
        """Write as safetensors; the same codebook always gives the same bytes.

        The file appears whole or not at all. Raises RedlibError if it cannot be written.
        """
        path = Path(path)
        # JSON has no infinity, the value that switches a criterion off
        criteria = {k: "inf" if v == math.inf else v for k, v in asdict(self.criteria).items()}
        about = {
            "format": _FORMAT,
            "model": self.model,
            "revision": self.revision,
            "criteria": criteria,
            "image": self.image,
        }
        tensors = {"prototypes": self.vectors, "patch": torch.tensor(self.patch)}
        # One metadata key: the order of several is not fixed in the file.
        metadata = {"redlib": json.dumps(about, sort_keys=True)}
        # Not save_file, whose errors no longer say what the file system said.
        with atomic(path) as temporary:
            temporary.write_bytes(save(tensors, metadata=metadata))
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        width: int | None = None,
        model: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Read a codebook, and check that it belongs to the model at hand.

        Args:
            path: file written by `save`.
            width, model, revision: what the model at hand has; whatever is given must agree.

        Raises:
            RedlibError: the file is missing, not to be read, not a codebook, empty, of a dtype
                that is none of a model's, has NaN, or was made with another width, model or
                revision.
        """
        path = local(path)
        if not path.is_file():
            raise RedlibError(
                f"no codebook at {str(path)!r}: run notebook 05 to make one, or `redlib codebook "
                "import` to make one of the authors' file"
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise RedlibError(
                f"cannot read {str(path)!r} as a codebook: it is not a safetensors file ({error})"
            ) from error
        try:
            about = json.loads(metadata["redlib"])
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']!r}")
            stored = about["criteria"]
            codebook = cls(
                tensors["prototypes"],
                _all(str, about["image"], "image"),
                _all(int, tensors["patch"].tolist(), "patch"),
                *_all(str, [about["model"], about["revision"]], "model, revision"),
                Criteria(**{k: math.inf if v == "inf" else v for k, v in stored.items()}),
            )
        except RedlibError as error:
            raise RedlibError(f"{str(path)!r}: {error}") from error
        except (
            AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError
        ) as error:  # fmt: skip
            raise RedlibError(
                f"{str(path)!r} is a safetensors file but not a codebook: run notebook 05 to make"
                f" one ({error})"
            ) from error
        if width is not None and codebook.width != width:
            raise RedlibError(
                f"codebook {str(path)!r} has width {codebook.width}, the model has {width}: "
                "run notebook 05 for this model"
            )
        for name, wanted in (("model", model), ("revision", revision)):
            found = getattr(codebook, name)
            if wanted is not None and found != wanted:
                raise RedlibError(
                    f"codebook {str(path)!r} was made with {name} {found!r}, not {wanted!r}: "
                    "run notebook 05 for this model"
                )
        return codebook


def _all(kind: type, values: list, name: str) -> list:
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        wanted = "texts" if kind is str else "whole numbers"
        raise TypeError(f"{name}: {wanted} are needed; got {str(values):.40}")
    return values


def _thresholds(presets: dict[str, tuple], family: str) -> tuple:
    if family not in presets:
        raise RedlibError(f"family must be one of {', '.join(presets)}; got {family!r}")
    return presets[family]


def _tell(survivors: pd.Series) -> str:
    """One line: how many tokens were probed and how many pass each criterion."""
    each = ", ".join(f"{name} {n}" for name, n in survivors.items() if name.startswith("tau_"))
    probed, left = survivors["probed"], survivors["candidates"]
    return f"of {probed} probed patches pass: {each}; all three {left}"
