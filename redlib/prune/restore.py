"""The prompt that a caller of `generate` knows.

While a model is pruned, `generate` works on shorter prompts than it was given. Whoever called it
cuts the answer off behind the prompt it knows, counts `max_length` with it, stops on conditions
that look at it. So whatever shows ids to the caller shows the old prompt in front of the new ids.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Restored:
    """Sequences that begin with the old prompt.

    Attributes:
        prompt: (B, T_old) ids as they were given.
        length: T of the shortened prompts.
    """

    prompt: Tensor
    length: int

    def __call__(self, ids: Tensor) -> Tensor:
        """(B * k, T + t) to (B * k, T_old + t): k beams or sequences per prompt."""
        prompt = self.prompt.repeat_interleave(len(ids) // len(self.prompt), 0).to(ids.device)
        return torch.cat([prompt, ids[:, self.length :]], 1)

    def before(self, function: object) -> object:
        """A stopping criterion or logits processor that is shown restored ids."""

        def shown(ids: Tensor, *more: object, **named: object) -> object:
            return function(self(ids), *more, **named)

        return shown

    def prefix(self, function: object) -> object:
        """The same for a `prefix_allowed_tokens_fn`, which is shown one sequence."""

        def shown(row: int, ids: Tensor) -> object:
            return function(row, torch.cat([self.prompt[row].to(ids.device), ids[self.length :]]))

        return shown


class Streamer:
    """A streamer that is handed the old prompt first."""

    def __init__(self, streamer: object, prompt: Tensor) -> None:
        self._streamer, self._prompt = streamer, prompt

    def put(self, value: Tensor) -> None:
        """Hand on what `generate` gives; for the prompt, which comes first, the old one."""
        if self._prompt is not None:
            value, self._prompt = self._prompt.cpu(), None
        self._streamer.put(value)

    def end(self) -> None:
        """Hand on that nothing more comes."""
        self._streamer.end()
