"""The planner against sets of prefixes and against the closed forms of the real geometry."""

from types import SimpleNamespace

import literal
import numpy as np
import pytest

from redlib.errors import RedlibError
from redlib.geometry import Grid
from redlib.leave_one_out import ablation_plan
from redlib.planner import OVERHEAD, Budget, batches, grow, plan
from redlib.probe import single_plan

FULL = Budget(2048)
BEFORE, AFTER = 35, 25


class Numbers:
    """What the plans need of `engine.Pieces`: a prompt of 35 + 25 words around the image."""

    shared, pad = BEFORE, 9999

    def path(self, visual) -> np.ndarray:
        return np.concatenate([np.arange(10_000, 10_035), visual, np.arange(20_000, 20_025)])


def model(side: int, repeats: int = 1) -> SimpleNamespace:
    return SimpleNamespace(grid=Grid(side, side), repeats=repeats)


@pytest.fixture(autouse=True)
def budget_of_a_cpu(monkeypatch):
    """The plans of the experiments ask for the budget of a model that these tests do not have."""
    for module in ("probe", "leave_one_out"):
        monkeypatch.setattr(f"redlib.{module}.budget", lambda vlm, batch: FULL)


def test_a_chain_of_thousands():
    """Each path continues the one before by one token: no deeper than Python's own stack allows."""
    chain = [np.arange(length) for length in range(3, 3000)]
    made = plan(chain, shared=2, budget=Budget(1))
    in_order(made)
    assert made.tokens == 2 + len(chain) and len(made.batches) == len(chain)


def prefixes(paths) -> int:
    """Distinct beginnings: what a trie of the paths has to compute, one token each."""
    return len({tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)})


def in_order(made) -> None:
    """Every batch continues an earlier one, and finds there what it needs."""
    tree = made.tree
    ran: set[int] = set()
    for number, batch in enumerate(made.batches):
        for place, row in enumerate(batch.rows):
            assert batch.start <= tree.start[row] < len(tree.paths[row]) <= batch.end
            if batch.parent is None:
                assert batch.start == tree.shared and tree.donor[row] == -1
                continue
            parent = made.batches[batch.parent]
            donor = parent.rows[batch.donors[place]]
            assert batch.parent < number and batch.start <= parent.keep <= parent.end
            alike = tree.paths[row][: batch.start] == tree.paths[donor][: batch.start]
            assert alike.all() and len(alike) == batch.start
            assert tree.like[row] == row or tree.like[row] in ran
        assert not ran & set(batch.rows)
        ran |= set(batch.rows)
    assert ran == set(range(len(tree.paths)))


def test_a_tree_computes_every_distinct_beginning_once():
    rng = np.random.default_rng(0)
    paths = [np.append([7, 7], rng.integers(0, 3, rng.integers(1, 7))) for _ in range(200)]
    # A path that another one continues is computed to its end twice, since it is read there.
    whole = [np.append(path, 100 + len(path)) for path in paths]
    tree = grow(whole, shared=2)
    computed = sum(len(p) - s for p, s in zip(tree.paths, tree.start, strict=True))
    assert len(tree.paths) == len({tuple(path) for path in whole}) < 200
    assert tree.shared + computed == prefixes(whole)
    assert all(
        np.array_equal(tree.paths[at], path) for at, path in zip(tree.of, whole, strict=True)
    )
    in_order(plan(whole, shared=2, budget=Budget(20)))
    in_order(plan(paths, shared=2, budget=FULL))


def test_a_path_that_ends_within_another_still_computes_its_last_position():
    tree = grow([np.arange(9), np.arange(6)], shared=2)
    assert tree.start == (2, 5) and tree.donor == (-1, 0)


@pytest.mark.parametrize(("side", "windows"), [(24, 484), (27, 625)])
def test_equal_windows_are_merged(side: int, windows: int):
    made, pairs = ablation_plan(model(side), Numbers(), range(side**2), ["region", "global"])
    assert len(pairs["region"][0]) == side**2
    of, like = made.tree.of, np.asarray(made.tree.like)
    assert len(set(of[pairs["region"][0]])) == windows
    assert len(set(of[pairs["region"][1]])) == side**2
    assert len(set(of[pairs["global"][0]])) == 1
    assert len(set(of[pairs["global"][1]])) == windows
    for before, after in pairs.values():
        assert (like[of[after]] == of[before]).all()
    in_order(made)


def test_planned_tokens_of_single_probes():
    made = single_plan(model(24), Numbers(), range(576))
    assert made.naive_tokens == 576 * (35 + 1 + 25)
    assert made.tokens == 35 + 576 * (1 + 25)
    assert made.naive_tokens / made.tokens == pytest.approx(2.34, abs=0.005)
    several = single_plan(model(24, repeats=24), Numbers(), [5, 5, 6])
    assert several.naive_tokens == 3 * (35 + 24 + 25)
    assert several.tokens == 35 + 2 * (24 + 25)


@pytest.mark.parametrize(
    ("level", "naive", "ratio"),
    [("region", 1152 * 69, 2.35), ("global", 577 * 636, 2.23), ("token", 577 * 636, None)],
)
def test_planned_tokens_come_within_three_per_cent_of_the_bound(level, naive, ratio):
    """The bounds are those of a trie, counted here patch by patch."""
    windows = {tuple(literal.window(patch, 24)) for patch in range(576)}
    if level == "region":
        bound = 35 + len(windows) * (9 + 25)
        bound += sum(34 - literal.window(patch, 24).index(patch) for patch in range(576))
    else:
        firsts = [window[0] for window in windows] if level == "global" else range(576)
        bound = 636 + sum(576 - first + 25 for first in firsts)
    made, _ = ablation_plan(model(24), Numbers(), range(576), [level])
    assert made.naive_tokens == naive
    assert bound <= made.tokens <= bound / 0.97
    if ratio:
        assert naive / bound == pytest.approx(ratio, abs=0.01)


def test_all_levels_in_one_plan_share_the_image():
    made, pairs = ablation_plan(model(5), Numbers(), range(25), ["token", "global", "region"])
    assert pairs["token"][0] == pairs["global"][0] == [0] * 25
    families: dict[int, list[np.ndarray]] = {}  # intact path -> itself and its ablations
    for path, like in zip(made.tree.paths, made.tree.like, strict=True):
        families.setdefault(like, []).append(path)
    assert len(families) == 1 + 9  # the image, and the windows of 5 x 5
    exact = prefixes([family[0] for family in families.values()]) + sum(
        prefixes(family) - len(family[0]) for family in families.values()
    )
    starts = zip(made.tree.paths, made.tree.start, strict=True)
    assert made.tree.shared + sum(len(path) - start for path, start in starts) == exact
    in_order(made)


def test_batches_hold_to_the_budget():
    made, _ = ablation_plan(model(24), Numbers(), range(576), ["region", "global"])
    sizes = [len(batch.rows) * (batch.end - batch.start) for batch in made.batches]
    assert max(sizes) <= 2048 and np.median(sizes) > 1500
    few = batches(made.tree, range(len(made.tree.paths)), Budget(2048, rows=3))
    assert max(len(batch.rows) for batch in few) == 3
    one = batches(made.tree, range(len(made.tree.paths)), Budget(1))
    assert {len(batch.rows) for batch in one} == {1}
    exact = sum(len(p) - s for p, s in zip(made.tree.paths, made.tree.start, strict=True))
    assert sum(batch.end - batch.start for batch in one) == exact


def test_rows_begin_together_where_that_costs_less_than_a_forward():
    near = [np.append(np.arange(40), [0, *([1] * 60)])]
    for first in (38, 39):
        near.append(near[0].copy())
        near[-1][first:] += 1000 * first
    made = plan(near, shared=1, budget=Budget(1000), like=[None, 0, 0])
    assert [batch.rows for batch in made.batches] == [(0,), (1, 2)]
    far = [near[0], near[1], near[0].copy()]
    far[2][38 - OVERHEAD - 1 :] += 50_000
    made = plan(far, shared=1, budget=Budget(1000), like=[None, 0, 0])
    assert sorted(batch.rows for batch in made.batches) == [(0,), (1,), (2,)]


def test_what_is_left_is_planned_again_with_all_that_it_continues():
    made, pairs = ablation_plan(model(5), Numbers(), [12], ["region", "global"])
    of = made.tree.of
    left = batches(made.tree, [of[pairs["global"][1][0]]], FULL)
    assert [row for batch in left for row in batch.rows] == [
        of[pairs["global"][0][0]], of[pairs["global"][1][0]],
    ]  # fmt: skip


def test_mistakes_are_named():
    one, other = np.array([1, 2, 3]), np.array([2, 2, 3])
    with pytest.raises(RedlibError, match="there is no path to plan"):
        plan([], shared=1, budget=Budget(64))
    with pytest.raises(RedlibError, match="path 1 must hold whole numbers"):
        plan([np.array([0, 1]), np.array([0, 1.5])], shared=1, budget=Budget(64))
    with pytest.raises(RedlibError, match="path 1 does not continue the 2 positions"):
        grow([one, other], shared=2)
    with pytest.raises(RedlibError, match="path 0 does not continue the 3 positions"):
        grow([one], shared=3)
    for like in ([1, None], [0, None], [None, -1]):
        with pytest.raises(RedlibError, match="cannot be read like path"):
            grow([one, one], shared=1, like=like)
    with pytest.raises(RedlibError, match="path 2 cannot be read like path 1"):
        grow([one, one, one], shared=1, like=[None, 0, 1])
