"""What the vision tower's attention says about its patches.

[cls] is the row that a CLIP tower trains to stand for the whole image, so where it looks is a first
guess at what matters: its attention to a patch, softmax(q k^T * scale), is the score of a family of
pruning methods. SigLIP's tower has no [cls]. There the methods fall back on the attention that a
patch receives, the mean over all patches that could look at it.

The tower itself runs as it always does, with whatever fast attention it was loaded with, and hands
out no weights. They are computed again here, from the queries and keys of the one layer that a
method asks for: the row of [cls] alone costs a thousandth of the tower.
"""

from torch import Tensor

from redlib.errors import RedlibError
from redlib.prune.context import Context, Trace, precise


def from_cls(trace: Trace) -> Tensor:
    """(n, H, P) attention of [cls] to each patch; its attention to itself, left out, is the
    missing part of the sum."""
    return _softmax(trace, slice(0, 1))[..., 0, 1:]


def received(trace: Trace) -> Tensor:
    """(n, H, S) attention that each row receives, the mean over all queries."""
    return _softmax(trace, slice(None)).mean(dim=-2)


def one_head(trace: Trace) -> Trace:
    """The trace as a layer of a single head would have it: (n, 1, S, C), with scale C ** -0.5.

    PruMerge takes a layer's projections as they come, before they are split into heads.
    """
    n, heads, rows, width = trace.queries.shape
    joined = [
        part.transpose(1, 2).reshape(n, 1, rows, heads * width)
        for part in (trace.queries, trace.keys)
    ]
    return Trace(*joined, scale=(heads * width) ** -0.5)


def to_patches(context: Context, trace: Trace) -> Tensor:
    """(H, L) attention to the visual tokens, tile after tile: [cls]'s where the tower has one, else
    the mean over queries. A token pooled from several patches gets their mean.

    Raises:
        RedlibError: the trace has another number of patches than the context.
    """
    attention = received(trace) if context.cls is None else from_cls(trace)  # (n, H, P)
    attention = context.of_patches(attention.transpose(1, 2)).T  # (H, L)
    if attention.shape[1] != len(context):
        raise RedlibError(
            f"the traced attention covers {attention.shape[1]} patches but the context has "
            f"{len(context)} visual tokens; trace every tile of it"
        )
    return attention


def keys_of_patches(context: Context, trace: Trace) -> Tensor:
    """(H, L, c) keys of the visual tokens, tile after tile, without [cls]; of one pooled from
    several patches the mean of theirs."""
    keys = precise(trace.keys)
    if context.cls is not None:
        keys = keys[:, :, 1:]
    return context.of_patches(keys.transpose(1, 2)).transpose(0, 1)


def _softmax(trace: Trace, queries: slice) -> Tensor:
    """(n, H, Q, S) attention weights of the queries named."""
    q, k = precise(trace.queries[:, :, queries]), precise(trace.keys)
    return (q @ k.transpose(-1, -2) * trace.scale).softmax(dim=-1)
