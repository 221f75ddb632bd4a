"""Where memory ends: half as much at a time, told once, and one line where not even one fits.

How much goes into a GPU at a time depends on the model, on the lengths at hand and on whoever else
computes there, so nobody knows it beforehand. Batches are therefore tried as large as they are
wanted, and what did not fit is tried again in halves:

    parts = in_parts(answer, questions, 64, device=vlm.device, what="questions",
                     one="one question behind 600 positions")

Nobody depends on how much went together: an input of a batch is computed as it would be alone, up
to rounding. What cannot be halved, since it is one already, ends in a `RedlibError`:

    prefix = undivided(extend, vlm, rows, device=vlm.device, one="one forward of 600 positions")

What failed must not live on in the traceback of its error, or the second try would find the memory
as full as the first. So `attempt` leaves the error behind before anybody goes on.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from redlib.errors import RedlibError

FULL = object()
"""What `attempt` returns in place of a result."""

_TOLD: set[str] = set()  # of what this process has said already that it is halved


def out_of_memory(error: Exception) -> bool:
    """Whether this is how torch says so: by a class of its own on CUDA, mostly; in words else."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(part in str(error) for part in words)


def attempt(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns, or FULL if memory did not suffice for it."""
    try:
        return work(*arguments)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    return FULL  # here, behind the except clause, whose traceback would keep the tensors alive


def undivided(work: Callable[..., Any], *arguments: Any, device: torch.device, one: str) -> Any:
    """What `work` returns, of which there is no half.

    Raises RedlibError, naming `one`, if memory does not suffice for it.
    """
    done = attempt(work, *arguments)
    if done is FULL:
        raise _too_large(device, one)
    return done


def in_parts(
    work: Callable[[Any], Any],
    items: Sequence[Any] | torch.Tensor,
    size: int,
    *,
    device: torch.device,
    what: str,
    one: str,
) -> list[Any]:
    """What `work` returns for each part of the items, in order; parts that do not fit are halved.

    Args:
        work: takes some of the items, one after another as they stand.
        items: anything that can be sliced.
        size: at most so many at a time.
        device: where the memory is.
        what: the items, in a message.
        one: one of them, in an error.

    Raises:
        RedlibError: not even one item fits into memory.
    """
    parts, start = [], 0
    while start < len(items):
        part = items[start : start + size]
        done = attempt(work, part)
        if done is FULL:
            size = halved(len(part), device=device, what=what, one=one)
            release(device)
        else:
            parts.append(done)
            start += len(part)
    return parts


def halved(size: int, *, device: torch.device, what: str, one: str) -> int:
    """Half of a size that did not fit. A warning says so, once in a process for every `what`.

    Raises RedlibError, naming `one`, where there is no half.
    """
    if size == 1:
        raise _too_large(device, one)
    if what not in _TOLD:
        _TOLD.add(what)
        warnings.warn(
            f"memory of {device} ended within one forward of {size} {what}; going on with half as "
            "many at a time, here and wherever it ends again",
            stacklevel=2,
        )
    return size // 2


def release(device: torch.device) -> None:
    """Give back what torch holds for tensors that are gone, so that other sizes find room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _too_large(device: torch.device, one: str) -> RedlibError:
    return RedlibError(
        f"memory of {device} ends within {one}; free some, or choose a smaller model or dtype"
    )
