"""Redundancy scores: one number per visual token, high for tokens that can go.

The codebook's score of a token is its largest cosine similarity with any prototype (eq. 2 and
section 4.2): a token that looks like one of N tokens known to say nothing probably says nothing.

    scores = redundancy(tokens, codebook)        # tokens (L, D) -> (L,)

The baseline is a random score, which keeps a random subset under the same keep rules.

What it costs (section 5.3) follows from the shapes: each of the L x N similarities is a dot product
of width d, that is d multiplications and d - 1 additions.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from redlib.codebook import Codebook
from redlib.errors import RedlibError


def redundancy(tokens: torch.Tensor, codebook: Codebook | torch.Tensor) -> torch.Tensor:
    """Redundancy score of every token, (..., L): its maximum cosine over the prototypes (eq. 2).

    Args:
        tokens: (..., L, D) visual tokens after the projector.
        codebook: a `Codebook` or its prototypes (N, D).

    Half-precision tokens are scored in float32, so that rounding does not decide who stays; of the
    codebook's unit vectors, float16 is kept then, N x D x 2 bytes, and the cosines are those of
    float32 to 2e-5 at width 4,096. A token of norm zero scores 0.

    Raises:
        RedlibError: the widths differ.
    """
    return cosines(tokens, codebook).amax(dim=-1)


_BLOCK = 64
"""Prototypes that are widened to float32 at a time."""


def cosines(tokens: torch.Tensor, codebook: Codebook | torch.Tensor) -> torch.Tensor:
    """(..., L, N) cosine of every token with every prototype; arguments and errors as there."""
    prototypes = codebook.vectors if isinstance(codebook, Codebook) else codebook
    if tokens.shape[-1] != prototypes.shape[-1]:
        raise RedlibError(
            f"the visual tokens have width {tokens.shape[-1]} but the codebook has width "
            f"{prototypes.shape[-1]}: it belongs to another model"
        )
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    unit = F.normalize(tokens.to(dtype), dim=-1)
    if not isinstance(codebook, Codebook):
        return unit @ F.normalize(prototypes.to(tokens.device, dtype), dim=-1).T
    if dtype == tokens.dtype:
        return unit @ codebook.unit(tokens.device, dtype).T
    kept = codebook.unit(tokens.device, torch.float16)  # finer than bfloat16 for numbers below 1
    found = unit.new_empty(*unit.shape[:-1], len(kept))
    for start in range(0, len(kept), _BLOCK):  # never all of them in float32
        part = slice(start, start + _BLOCK)
        found[..., part] = unit @ kept[part].to(dtype).T
    return found


def random_scores(count: int, seed: int | Sequence[int]) -> torch.Tensor:
    """(count,) uniform scores.

    Give `[seed, number of the image]` to draw another subset for every image, and the same one
    whenever this image is seen.
    """
    return torch.from_numpy(np.random.default_rng(seed).random(count))


def operations(tokens: int, prototypes: int, width: int) -> int:
    """Floating-point operations of eq. 2 for one image: L x N x (2d - 1) (section 5.3).

    576 tokens, 454 prototypes, width 4,096: 2,141,979,264.
    """
    return tokens * prototypes * (2 * width - 1)


def codebook_bytes(prototypes: int, width: int, *, dtype: torch.dtype = torch.float16) -> int:
    """Memory of N prototypes; 969 x 4,096 in float16 are 7.9 MB."""
    return prototypes * width * dtype.itemsize
