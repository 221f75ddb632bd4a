"""From answers to verdicts: which rule judges which task, and whose rule it is.

A model answers in words and a benchmark counts in rights and wrongs; what lies between is a parser,
and parsers differ by more than pruning methods do. So every rule has a name and a source (RULES),
and every task a rule that is taken unless another is named:

    is_correct("pope-random", "No.", "no")                        # True, by LLaVA's script
    is_correct("pope-random", "No.", "no", rule="lmms-eval")      # False: not the bare word
    RULES["lmms-eval"].source                                     # "lmms-eval, task pope"

The readers and tables themselves stand by family: `pope_mme`, `letters` (MMBench, SEED,
RealWorldQA), `several` (Mantis, MuirBench, MVBench), `captions` and `coco` (NoCaps, Flickr30k). The
names of the tasks tell the benchmarks (mmbench, realworldqa, mantis-eval, muirbench, mvbench) from
what stands in for them on the tabletop (mmb, rwqa, mantis, muir, film).
"""

from collections.abc import Callable
from dataclasses import dataclass

from redlib.bench import letters, several
from redlib.bench.pope_mme import POPE_SUBSETS, YesNoRule, yes_no
from redlib.bench.words import exact_match, normalise
from redlib.errors import RedlibError

Judge = Callable[[str, str, str], bool]


@dataclass(frozen=True)
class Rule:
    """How answers are judged.

    Attributes:
        source: whose rule it is.
        right: (answer, gold, question) -> whether the answer is right; the text of the question
            holds the options.
    """

    source: str
    right: Judge


def _says(rule: YesNoRule) -> Judge:
    return lambda answer, gold, _: yes_no(answer, rule=rule) == normalise(gold)


def _world(rule: letters.RealWorldQARule) -> Judge:
    return lambda answer, gold, question: letters.realworldqa(answer, gold, question, rule=rule)


def _first(answer: str, gold: str, question: str) -> bool:
    return letters.choice_letter(answer, letters="ABCDEFGH", rule="first") == gold.strip().upper()


def _tabletop(answer: str, gold: str, question: str) -> bool:
    if len(gold) == 1 and gold.isalpha():
        return letters.choice_letter(answer, letters="ABCDEFGH") == gold.upper()
    return exact_match(answer, gold)


RULES = {
    "llava": Rule("LLaVA, eval_pope.py", _says("llava")),
    "lmms-eval": Rule("lmms-eval, task pope", _says("lmms-eval")),
    "mme": Rule("lmms-eval, task mme", _says("mme")),
    "mmbench": Rule(
        "lmms-eval, task mmbench_en_dev_static",
        lambda answer, gold, question: letters.mmbench_letter(answer, question) == gold.upper(),
    ),
    "seed": Rule("lmms-eval, task seedbench", _first),
    "realworldqa until 2026-04": Rule("lmms-eval 0.6, task realworldqa", _world("until 2026-04")),
    "realworldqa since 2026-04": Rule("lmms-eval 0.7, task realworldqa", _world("since 2026-04")),
    "mantis": Rule("lmms-eval, task mantis", several.mantis),
    "muirbench": Rule(
        "lmms-eval, task muirbench", lambda answer, gold, _: several.muirbench(answer, gold)
    ),
    "mvbench": Rule(
        "lmms-eval, tasks mvbench_*",
        lambda answer, gold, _: several.mvbench_letter(answer) == gold.upper(),
    ),
    "tabletop": Rule("redlib: the delimited letter of an option, else word for word", _tabletop),
}
RULE_OF = {
    **dict.fromkeys(POPE_SUBSETS, "llava"),
    "mme": "mme",
    "mmbench": "mmbench",
    "seed": "seed",
    "realworldqa": "realworldqa until 2026-04",
    "mantis-eval": "mantis",
    "muirbench": "muirbench",
    "mvbench": "mvbench",
}
"""The rule of each task, "tabletop" for those that are not named."""


def is_correct(
    task: str, answer: str, gold: str, *, question: str = "", rule: str | None = None
) -> bool:
    """Whether `answer` is right.

    Args:
        task: its name decides the rule (RULE_OF), unless `rule` names one.
        answer, gold: what was said, and what is right.
        question: the text of the question, where options are listed in it; MMBench's, RealWorldQA's
            and Mantis' rules read them there.
        rule: one of RULES.

    Raises:
        RedlibError: there is no such rule.
    """
    rule = rule or RULE_OF.get(task, "tabletop")
    if rule not in RULES:
        raise RedlibError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    return RULES[rule].right(answer, gold, question)
