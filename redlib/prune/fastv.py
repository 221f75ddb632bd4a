"""FastV: where the last word of the prompt looks (arXiv 2403.06764).

The first K layers of the language model read every visual token. Behind them those stay to which
the last token of the prompt paid most attention: the probabilities of layer K - 1, mean over the
heads. What stays keeps the position it had.
"""

from numbers import Integral

import torch
from torch import Tensor, nn

from redlib.errors import RedlibError
from redlib.prune.inside import Candidates, Inside
from redlib.prune.method import Method

LAYER = 2
"""K of the method's paper."""


class FastV(Inside):
    """FastV in a stock model.

    Args:
        model: a stock LLaVA.
        layer: K, how many layers see everything.

    Raises:
        RedlibError: the model has no layer K, or attention that takes no masks.
    """

    def __init__(self, model: nn.Module, *, layer: int = LAYER) -> None:
        depth = len(model.model.language_model.layers)
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 1 <= layer < depth:
            raise RedlibError(
                f"layer must be a whole number from 1 to {depth - 1}, the model has {depth}; got "
                f"{layer!r}"
            )
        super().__init__(model, [int(layer) - 1], compact=False)

    def counts(self, size: int, keep: int) -> tuple[int, ...]:
        """`keep`, behind the only cut."""
        return (keep,)

    def raters(self, each: Candidates, last: int) -> Tensor:
        """(1,) the last word."""
        return torch.tensor([last])


METHOD = Method("fastv", "FastV", inside=FastV, positions="original", options=("layer",))
