"""The class that lmms-eval instantiates: its requests in, answers out.

A harness and a model have to agree on little: the harness owns the questions, the form of the chat
and the metric, the model answers. lmms-eval hands over requests, each with a function that builds
the conversation of one document; `Respondent` answers it with the pruner installed, and the texts
go back in the order of the requests. How many visual tokens stayed is logged at the end: it is the
other half of the result.

One conversation at a time in one process; what a metric would need beyond that, likelihoods and
several turns, is refused by name.
"""

import os

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from redlib.errors import RedlibError
from redlib.harness.answering import SETTINGS, Respondent

LONGEST = 1024
"""New tokens of an answer where the task sets no limit, as lmms-eval's own LLaVA has it."""


class Redlib(lmms):
    """A LLaVA of redlib; `--model_args` are those of `Respondent`.

    Raises:
        RedlibError: as `Respondent`, another batch size than 1, or several processes.
    """

    is_simple = False  # takes conversations, not texts with placeholders

    def __init__(
        self, pretrained: str, batch_size: int | str = 1, device: str = "auto", **how: object
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            raise RedlibError(f"batch_size must be 1; got {batch_size!r}")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise RedlibError("redlib answers in one process: leave `accelerate launch` out")
        self.respondent = Respondent(pretrained, device=device, **how)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests."""
        answers = []
        for request in tqdm(requests, desc="redlib"):
            context, conversation, asked, document, task, split = request.args
            messages = ChatMessages(messages=conversation(self.task_dict[task][split][document]))
            until = asked.get("until") or ()
            text, length = self.respondent.answer(
                messages.model_dump()["messages"],
                max_new_tokens=asked.get("max_new_tokens", LONGEST),
                until=[until] if isinstance(until, str) else until,
                **{name: asked[name] for name in SETTINGS if name in asked},
            )
            answers.append(GenerationResult(text, TokenCounts(output_tokens=length)))
            self.cache_hook.add_partial("generate_until", (context, asked), text)
        seen, kept = self.respondent.seen, self.respondent.kept
        if seen:
            logger.info(f"redlib: {kept} of {seen} visual tokens kept ({kept / seen:.1%})")
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the paper's benchmarks are answered in words."""
        raise NotImplementedError("redlib answers in words; take a task of type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("redlib answers single turns")
