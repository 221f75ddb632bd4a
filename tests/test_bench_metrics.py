"""Parsers on awkward answers, metrics by hand, intervals against a literal bootstrap."""

import numpy as np
import pandas as pd
import pytest

from redlib.bench import (
    accuracy,
    choice_letter,
    circular,
    difference,
    exact_match,
    interval,
    is_correct,
    mme,
    normalise,
    pope,
    yes_no,
)
from redlib.errors import RedlibError


@pytest.mark.parametrize(
    ("answer", "llava", "lmms_eval", "mme_rule"),
    [
        ("yes", "yes", "yes", "yes"),
        ("Yes", "yes", "yes", "yes"),
        ("Yes.", "yes", "other", "yes"),
        ("No.", "no", "other", "no"),
        ("no, there isn't", "no", "other", "no"),
        ("No, there is a cup", "no", "other", "no"),
        ("  no\n", "no", "no", "no"),
        ("NO", "yes", "no", "no"),  # LLaVA's script knows No and no only
        ("there is not", "no", "other", "other"),
        ("Nothing", "yes", "other", "no"),  # the first four characters hold "no"
        ("It is. No doubt", "yes", "other", "other"),  # the first sentence alone counts
        ("cup", "yes", "other", "other"),
        ("", "yes", "other", "other"),
    ],
)
def test_yes_no_rules(answer, llava, lmms_eval, mme_rule):
    assert yes_no(answer, rule="llava") == llava
    assert yes_no(answer, rule="lmms-eval") == lmms_eval
    assert yes_no(answer, rule="mme") == mme_rule


def test_yes_no_rule_must_exist():
    with pytest.raises(RedlibError, match=r"rule must be .*; got 'gpt'"):
        yes_no("yes", rule="gpt")


@pytest.mark.parametrize(
    ("answer", "delimited", "first"),
    [
        ("B", "B", "B"),
        ("b", "B", "B"),
        (" B ", "B", "B"),
        ("B.", "B", "B"),
        ("(A)", "A", None),
        ("( a ) cat", "A", None),
        ("A. cat", "A", "A"),
        ("a . cat", "A", "A"),
        ("C: a dog", "C", "C"),
        ("A) cat", "A", "A"),
        ("a cat", None, "A"),
        ("Dog", None, "D"),
        ("The answer is C.", "C", None),
        ("Answer: (D)", "D", "A"),
        ("the answer is a cat", None, None),
        ("E", None, None),
        ("", None, None),
        ("   ", None, None),
        ("cat", None, "C"),
    ],
)
def test_choice_letters(answer, delimited, first):
    assert choice_letter(answer) == delimited
    assert choice_letter(answer, rule="first") == first


def test_choice_letters_on_offer_and_rule():
    assert choice_letter("E", letters="ABCDE") == "E"
    with pytest.raises(RedlibError, match="rule must be 'delimited' or 'first'; got 'last'"):
        choice_letter("A", rule="last")


def test_exact_match_ignores_case_and_punctuation():
    assert normalise("  A Cup!  isn't -- it_here ") == "a cup isnt it here"
    assert exact_match("Red.", "red")
    assert exact_match("a cup", "A  cup")
    assert not exact_match("cup", "a cup")
    assert not exact_match("", "red")


def test_each_task_is_judged_by_its_rule():
    assert is_correct("pope-random", "No, it is not", "no")
    assert is_correct("pope-random", "", "yes")
    assert not is_correct("pope-random", "", "yes", rule="lmms-eval")
    assert is_correct("mme", "Yes.", "yes")
    assert not is_correct("mme", "", "yes")
    assert is_correct("mmb", "(B)", "b")
    assert not is_correct("mmb", "", "b")
    assert is_correct("mantis", "B.", "b") and not is_correct("film", "a", "b")
    assert is_correct("muir", "first.", "first") and not is_correct("muir", "the first", "first")
    assert is_correct("article", "A cup.", "a cup")
    assert not is_correct("article", "cup", "a cup")


@pytest.mark.parametrize(
    ("answer", "letter", "word"),
    [  # right where the letter A, or the word no, is the right answer
        ("A", True, False),
        ("a", True, False),
        ("a.", True, False),
        ("(A)", True, False),
        (" ( a )", True, False),
        ("A. cat", True, False),
        ("A: no", True, False),
        ("The answer is (A).", True, False),
        ("B", False, False),
        ("B. A", False, False),
        ("a cat", False, False),  # an article
        ("cat", False, False),
        ("", False, False),
        ("Yes.", False, False),
        ("No.", False, True),
        ("no", False, True),
        ("no, there isn't", False, False),
        ("AB", False, False),
    ],
)
def test_options_are_read_by_their_letter_and_words_by_themselves(answer, letter, word):
    """RealWorldQA has both forms: which one it is, the right answer tells."""
    for task in ("mmb", "rwqa"):
        assert is_correct(task, answer, "a") == letter
        assert is_correct(task, answer, "A") == letter
    assert is_correct("rwqa", answer, "no") == word
    assert is_correct("colour", answer, "no") == word


@pytest.mark.parametrize(
    ("answer", "yes", "no"),
    [
        ("Yes.", True, False),
        ("no, there isn't", False, True),
        ("Nope", False, True),
        ("(A)", False, False),
        ("", False, False),
    ],
)
def test_mme_is_judged_by_yes_and_no(answer, yes, no):
    assert (is_correct("mme", answer, "yes"), is_correct("mme", answer, "no")) == (yes, no)


def rows(task, pairs):
    return [{"task": task, "answer": answer, "gold": gold} for answer, gold in pairs]


def test_pope_by_hand():
    frame = pd.DataFrame(
        rows("pope-random", [("yes", "yes"), ("no", "yes"), ("no", "no"), ("no", "no")])
        + rows("pope-popular", [("yes", "yes"), ("yes", "no")])
        + rows("pope-adversarial", [("no", "yes"), ("yes", "no")])
        + rows("colour", [("red", "red")])
    )
    table = pope(frame).set_index("subset")
    assert table.index.tolist() == ["random", "popular", "adversarial", "mean"]
    assert table["n"].tolist() == [4, 2, 2, 8]
    assert table["accuracy"].tolist() == pytest.approx([0.75, 0.5, 0.0, 1.25 / 3])
    assert table.loc["random", ["precision", "recall", "f1", "yes"]].tolist() == pytest.approx(
        [1.0, 0.5, 2 / 3, 0.25]
    )
    assert table.loc["adversarial", ["precision", "recall", "f1"]].tolist() == [0, 0, 0]
    with pytest.raises(RedlibError, match="no POPE answers"):
        pope(frame[frame.task == "colour"])


def test_pope_rules_give_different_numbers():
    frame = pd.DataFrame(rows("pope-random", [("Yes.", "yes"), ("", "yes"), ("no", "no")]))
    assert pope(frame).accuracy[0] == pytest.approx(1.0)
    assert pope(frame, rule="lmms-eval").accuracy[0] == pytest.approx(1 / 3)


def test_mme_by_hand():
    frame = pd.DataFrame(
        [
            ("mme", "s1", "existence", "yes", "yes"),
            ("mme", "s1", "existence", "no", "no"),
            ("mme", "s1", "colour", "yes", "yes"),
            ("mme", "s1", "colour", "yes", "no"),
            ("mme", "s2", "existence", "maybe", "yes"),
            ("mme", "s2", "existence", "no.", "no"),
            ("colour", "s2", "", "red", "red"),
        ],
        columns=["task", "image", "group", "answer", "gold"],
    )
    table = mme(frame).set_index("category")
    assert table.index.tolist() == ["colour", "existence", "perception"]
    assert table.loc["colour"].to_dict() == pytest.approx(
        {"n": 2, "pairs": 1, "acc": 1 / 2, "acc_plus": 0, "score": 50}
    )
    assert table.loc["existence"].to_dict() == pytest.approx(
        {"n": 4, "pairs": 2, "acc": 3 / 4, "acc_plus": 1 / 2, "score": 125}
    )
    assert table.loc["perception"].to_dict() == pytest.approx(
        {"n": 6, "pairs": 3, "acc": 5 / 8, "acc_plus": 1 / 4, "score": 175}
    )
    with pytest.raises(RedlibError, match="MME pair 'colour' of image 's1' has 1 questions"):
        mme(frame.drop(index=3))
    with pytest.raises(RedlibError, match="no MME answers"):
        mme(frame[frame.task == "colour"])


def test_mme_agrees_with_a_literal_count_of_many_answers():
    """Per category: questions right, pairs with both right; the sum adds up the scores."""
    rng = np.random.default_rng(0)
    said = ("yes", "Yes.", "no", "No.", "", "no, there isn't")
    records = [
        ("mme", f"s{i}", category, said[rng.integers(len(said))], gold)
        for category, images in (("count", 20), ("position", 31), ("text", 7))
        for i in range(images)
        for gold in ("yes", "no")
    ]
    shuffled = [records[i] for i in rng.permutation(len(records))]
    frame = pd.DataFrame(shuffled, columns=["task", "image", "group", "answer", "gold"])
    table = mme(frame).set_index("category")
    total = 0.0
    for category in ("count", "position", "text"):
        right = {}
        for _, image, group, answer, gold in records:
            if group == category:
                right.setdefault(image, []).append(answer.lower().startswith(gold))
        questions_right = sum(sum(pair) for pair in right.values()) / (2 * len(right))
        pairs_right = sum(all(pair) for pair in right.values()) / len(right)
        row = table.loc[category]
        assert (row["n"], row["pairs"]) == (2 * len(right), len(right))
        assert row["acc"] == pytest.approx(questions_right)
        assert row["acc_plus"] == pytest.approx(pairs_right)
        assert row["score"] == pytest.approx(100 * questions_right + 100 * pairs_right)
        total += 100 * questions_right + 100 * pairs_right
    assert table.loc["perception", "score"] == pytest.approx(total)
    assert 0 < total < 600
    assert table["n"].tolist() == [40, 62, 14, 116] and table["n"].dtype == int


def test_mme_of_perfect_and_of_constant_answers():
    """All right: 200 a category. Always yes: half of the questions and no pair, 50."""
    frame = pd.DataFrame(
        [("mme", "s1", group, gold, gold) for group in "abc" for gold in ("yes", "no")],
        columns=["task", "image", "group", "answer", "gold"],
    )
    assert mme(frame)["score"].tolist() == [200, 200, 200, 600]
    assert mme(frame.assign(answer="yes"))["score"].tolist() == [50, 50, 50, 150]


def test_mmb_is_right_only_in_all_four_rotations():
    """Within one method, image and question; other tasks, whatever they are called within
    themselves, keep their own verdicts and lend none."""
    table = [
        ("all", "mmb", "s1", "colour", [True, True, True, True], [True] * 4),
        ("all", "mmb", "s2", "colour", [True, True, False, True], [False] * 4),
        ("ours", "mmb", "s1", "colour", [False, False, False, False], [False] * 4),
        ("ours", "mmb", "s2", "colour", [True, True, True, True], [True] * 4),
        ("all", "seed", "s1", "colour", [False], [False]),
        ("all", "seed", "s2", "colour", [True], [True]),
        ("all", "mme", "s1", "colour", [True, False], [True, False]),
        ("ours", "rwqa", "s2", "colour", [False, True], [False, True]),
    ]
    frame = pd.DataFrame(
        [
            (method, task, image, group, correct, verdict)
            for method, task, image, group, given, wanted in table
            for correct, verdict in zip(given, wanted, strict=True)
        ],
        columns=["method", "task", "image", "group", "correct", "verdict"],
    )
    for seed in range(3):
        mixed = frame.sample(frac=1, random_state=seed)
        found = circular(mixed)
        assert found.tolist() == mixed["verdict"].tolist()
        assert (found.index == mixed.index).all() and found.dtype == bool


def clustered(seed=0, images=40):
    """0/1 values whose images differ in difficulty."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), rng.integers(1, 9, images))
    values = rng.random(len(image)) < rng.random(images)[image]
    return values.astype(float), image


def test_interval_agrees_with_a_literal_cluster_bootstrap():
    values, image = clustered()
    found = interval(values, image, resamples=4000, seed=1)
    assert (found.mean, found.n, found.clusters) == (values.mean(), len(values), 40)
    rng = np.random.default_rng(2)
    members = [values[image == i] for i in range(40)]
    draws = [
        np.concatenate([members[i] for i in rng.integers(0, 40, 40)]).mean() for _ in range(4000)
    ]
    literal = np.quantile(draws, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], literal, atol=0.012)
    assert found == interval(values, image, resamples=4000, seed=1)


def test_clusters_widen_the_interval():
    values, image = clustered()
    by_image, by_question = interval(values, image), interval(values, range(len(values)))
    assert by_image.high - by_image.low > 1.3 * (by_question.high - by_question.low)


def test_strata_average_their_means():
    values, image = [1, 1, 1, 0], [0, 1, 2, 3]
    assert interval(values, image).mean == 0.75
    found = interval(values, image, strata=["a", "a", "a", "b"])
    assert found.mean == 0.5
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_paired_difference_cancels_what_is_shared():
    values, image = clustered()
    rng = np.random.default_rng(3)
    worse = np.where(rng.random(len(values)) < 0.1, 0.0, values)
    found = difference(values, worse, image)
    assert found.mean == pytest.approx(values.mean() - worse.mean())
    assert found.low > 0
    alone = interval(values, image)
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    nothing = difference(values, values, image)
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)


def test_bad_intervals():
    with pytest.raises(RedlibError, match="at least one value"):
        interval([], [])
    with pytest.raises(RedlibError, match="3 values, 2 clusters"):
        interval([1, 0, 1], [1, 2])
    with pytest.raises(RedlibError, match="level in"):
        interval([1], [1], level=95)
    with pytest.raises(RedlibError, match="got 2 and 1 values"):
        difference([1, 0], [1], [0, 1])


def test_accuracy_table():
    frame = pd.DataFrame(
        {
            "method": ["all"] * 3 + ["ours"] * 3,
            "task": ["colour", "colour", "count"] * 2,
            "image": ["s1", "s2", "s1"] * 2,
            "correct": [True, True, False, True, False, True],
            "kept": [576, 576, 576, 60, 70, 60],
        }
    )
    table = accuracy(frame).set_index(["method", "task"])
    assert table.index.tolist() == [
        ("all", "colour"), ("all", "count"), ("ours", "colour"), ("ours", "count"),
    ]  # fmt: skip
    assert table["accuracy"].tolist() == [1, 0, 0.5, 1]
    assert table["n"].tolist() == [2, 1, 2, 1]
    assert table.loc[("ours", "colour"), "kept"] == 65
    overall = accuracy(frame, by=["method"])
    assert overall["accuracy"].tolist() == pytest.approx([2 / 3, 2 / 3])
    # a mean over images, each once, although s1 was asked about twice
    assert overall["kept"].tolist() == [576, 65]
