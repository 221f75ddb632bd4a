"""A tested statement: what is claimed, whether this run bears it out, and the numbers.

A notebook that only prints what it hoped for teaches nothing. Every claim here is worded with the
rule that decides it; the run then fills in `holds` and the evidence:

    verdict = probing.transition_verdict(shares)
    session.claim(**verdict.note)        # into the page's list of claims
    verdict                              # shown in the notebook
"""

from dataclasses import asdict, dataclass
from typing import Any

from redlib.bench.intervals import Interval
from redlib.study import LEAST_IMAGES

NEEDS_TRUTH = "needs known truth: nobody knows which object covers a patch of a photograph."
WORDS = {True: "holds", False: "does not hold", None: "not decided by these data"}


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it.

    Attributes:
        statement: the claim, in one sentence.
        holds: True, False, or None where the interval leaves it open.
        evidence: the numbers, with n and interval.
        paper_item: the item of the paper that it belongs to.
    """

    statement: str
    holds: bool | None
    evidence: str
    paper_item: str = ""

    @property
    def note(self) -> dict[str, Any]:
        """The fields, as `session.claim` takes them."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"{self.statement} - {WORDS[self.holds]}: {self.evidence}"

    def _repr_markdown_(self) -> str:
        return f"> **{self.statement}**  \n> *{WORDS[self.holds]}*: {self.evidence}"


def untold(statement: str, paper_item: str = "") -> Verdict:
    """The verdict on a claim that only scenes with masks can decide, where photographs are shown.

    It stands in the ledger like any other, undecided, so that nothing is passed over in silence.
    """
    return Verdict(statement, None, NEEDS_TRUTH, paper_item)


def above(found: Interval, bound: float) -> bool | None:
    """Whether the interval lies above `bound` (True), below it (False), or across it (None).

    Fewer than LEAST_IMAGES images decide nothing, whatever the interval looks like.
    """
    if found.clusters < LEAST_IMAGES:
        return None
    if found.low > bound:
        return True
    return False if found.high < bound else None


def percent(found: Interval) -> str:
    """An interval of shares, e.g. "41% (95% interval 35% to 47%)"."""
    return f"{found.mean:.0%} (95% interval {found.low:.0%} to {found.high:.0%})"


def bounds(low: float, high: float) -> str:
    """The ends of an interval of differences of shares, in percentage points, e.g. "+1.8 to +5.3".

    What is not zero does not read as zero: +0.04 stays, since a claim may hold by it.
    """
    return f"{_end(100 * low)} to {_end(100 * high)}"


def _end(points: float) -> str:
    rounded = f"{points:+z.1f}"
    lost = rounded == "+0.0" and abs(points) > 1e-9  # below it, the rounding of a sum
    return f"{points:+.1g}" if lost else rounded


def number(found: Interval, digits: int = 2) -> str:
    """An interval of plain numbers, e.g. "0.31 (95% interval 0.22 to 0.40)"."""
    mean, low, high = (f"{value:.{digits}f}" for value in (found.mean, found.low, found.high))
    return f"{mean} (95% interval {low} to {high})"
