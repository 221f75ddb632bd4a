"""Official metrics: every rule on awkward answers, each verdict derived by hand; tables by hand."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from redlib import RedlibError
from redlib.bench import RULE_OF, RULES, coco, evaluate, is_correct, mmbench, mme, mvbench, pope
from redlib.bench import evaluation as loop
from redlib.bench.letters import mmbench_options, options_in, realworldqa
from redlib.bench.pope_mme import yes_no
from redlib.bench.several import mantis
from redlib.data import prompts

# llava: strip; up to the first "."; commas out; cut at spaces; a word No/no/not -> no, else yes.
# lmms-eval: strip, lower; exactly yes or no. mme: strip, lower, "." out; yes, no, y, n; else yes,
# else no, within the first four characters.
YES_NO = [
    # answer              llava  lmms-eval mme
    ("Yes.",              "yes", "other", "yes"),
    ("YES\n",             "yes", "yes",   "yes"),
    ("no, there isn't",   "no",  "other", "no"),
    ("(A)",               "yes", "other", "other"),
    ("A. cat",            "yes", "other", "other"),  # mme sees "a ca"
    ("a",                 "yes", "other", "other"),
    ("y",                 "yes", "other", "yes"),
    ("N.",                "yes", "other", "no"),
    ("The answer is B",   "yes", "other", "other"),
    ("",                  "yes", "other", "other"),
    ("yes no",            "no",  "other", "yes"),
    ("no yes",            "no",  "other", "no"),
    ("no\nyes",           "yes", "other", "no"),     # a line break does not part words for LLaVA
    ("a\nno",             "yes", "other", "no"),     # the four characters hold it
    ("I know. No",        "yes", "other", "other"),  # mme sees "i kn"
    ("know",              "yes", "other", "no"),
    ("No\u00a0cup",       "yes", "other", "no"),     # nor does a hard space
    ("\uff39\uff45\uff53", "yes", "other", "other"),  # "Yes" in full width
    ("non",               "yes", "other", "no"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "llava", "lmms_eval", "mme_rule"), YES_NO)
def test_yes_and_no(answer, llava, lmms_eval, mme_rule):
    for rule, said in (("llava", llava), ("lmms-eval", lmms_eval), ("mme", mme_rule)):
        assert yes_no(answer, rule=rule) == said
        right = [gold for gold in ("yes", "no") if is_correct("", answer, gold, rule=rule)]
        assert right == ([said] if said != "other" else [])


QUESTION = (
    "What is it?\nA. cat\nB. dog\nC. a bird\nD. none\n"
    "Answer with the option's letter from the given choices directly."
)
# seed: the first character, any case.
# mmbench: one capital A-E that is a word (not "A" among more than three words); the same with
#     punctuation around; the one option whose text is contained, any case; else as "since".
# until: number words to digits, punctuation out, an option's text contained as written becomes its
#     letter; then equal but for case.
# since: outer punctuation out; a capital alone at the start, at the end, after an announcement, as
#     (A), A., A:, A), "A ", or anywhere.
# mantis: what follows an announcement; its first letter, any case; else all the option's text.
# muir: a capital before "." at the start, else all; equal but for case.
# mvbench: [A-E]. and text at the start; else the first of A-E that is a word, any case.
SEED, MMBENCH = "seed", "mmbench"
UNTIL, SINCE = "realworldqa until 2026-04", "realworldqa since 2026-04"
LETTER_RULES = (SEED, MMBENCH, UNTIL, SINCE, "mantis", "muirbench", "mvbench")
LETTERS = [
    # answer                seed mmb  until since mantis muir mvbench
    ("Yes.",                "",  "",  "",  "",  "",  "",  ""),
    ("no, there isn't",     "",  "",  "",  "",  "",  "",  ""),
    ("(A)",                 "",  "A", "A", "A", "A", "",  "A"),
    ("A. cat",              "A", "A", "A", "A", "A", "A", "A"),
    ("B.",                  "B", "B", "B", "B", "B", "B", "B"),
    ("a",                   "A", "",  "A", "",  "A", "A", "A"),
    ("The answer is B",     "",  "B", "",  "B", "B", "",  "B"),
    ("",                    "",  "",  "",  "",  "",  "",  ""),
    ("yes no",              "",  "",  "",  "",  "",  "",  ""),
    ("B\nA cat",            "B", "A", "A", "B", "B", "",  "B"),
    ("a dog",               "A", "B", "B", "",  "A", "",  "A"),
    ("Dog",                 "D", "B", "",  "D", "D", "",  ""),
    ("A dog on a mat",      "A", "B", "B", "A", "A", "",  "A"),
    ("\uff21",              "",  "",  "",  "",  "",  "",  ""),    # "A" in full width
    ("答案是C",              "",  "C", "",  "C", "",  "",  ""),
    ("B) dog",              "B", "B", "B", "B", "B", "",  "B"),
    ("A or B",              "A", "A", "",  "A", "A", "",  "A"),
    ("c.",                  "C", "",  "C", "",  "C", "",  "C"),
    ("Final answer: (D)",   "",  "D", "",  "D", "D", "",  "D"),
    ("D. none of these\nB", "D", "B", "D", "D", "D", "D", "D"),
    ("I'd say b",           "",  "",  "",  "",  "",  "",  "D"),   # the d of I'd
    ("none",                "",  "D", "D", "",  "D", "",  ""),    # Mantis: N is no option
    ("I choose C",          "",  "C", "",  "C", "",  "",  "C"),
    ("The answer is Bird",  "",  "B", "",  "B", "B", "",  ""),
    ("C: it is, not (B).",  "C", "C", "",  "C", "C", "",  "C"),   # "C:" before "(B)."
    ("It is A, B: no",      "",  "A", "",  "B", "",  "",  "A"),   # "A," before "B:"; "B:", no "A:"
    (" \n b",               "B", "",  "B", "",  "B", "B", "B"),
    ("A.cat\ndog",          "A", "A", "A", "A", "A", "A", ""),    # two options named
    ("-B-",                 "",  "B", "B", "B", "B", "",  "B"),
    ("...",                 "",  "",  "",  "",  "",  "",  ""),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "expected"), [(row[0], row[1:]) for row in LETTERS])
def test_letters_of_options(answer, expected):
    found = tuple(
        "".join(g for g in "ABCD" if is_correct("", answer, g, question=QUESTION, rule=rule))
        for rule in LETTER_RULES
    )
    assert dict(zip(LETTER_RULES, found, strict=True)) == dict(
        zip(LETTER_RULES, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("answer", "gold", "until", "since"),
    [  # since: lower, strip, final "." out, then equal
        ("zero", "0", True, False),
        ("Zero.", "0", False, False),  # the number word is not alone
        ("0.", "0", True, True),
        ("two", "Two", False, True),  # became 2
        ("Yes", "yes", True, True),
        ("yes, it is", "yes", False, False),
        ("Down-hill", "Downhill", True, False),
        ("Downhill\n", "downhill", True, True),
        ("", "0", False, False),
        ("\u00dcber", "\u00fcber", True, True),
    ],
)
def test_realworldqa_without_options(answer, gold, until, since):
    found = [
        realworldqa(answer, gold, "How many?", rule=rule)
        for rule in ("until 2026-04", "since 2026-04")
    ]
    assert found == [until, since]
    with pytest.raises(RedlibError, match="rule must be 'until 2026-04' or .*; got '2025'"):
        realworldqa(answer, gold, "How many?", rule="2025")


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [  # equal but for case; only what follows an announcement is stripped
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("yes\n", "yes", False),
        ("Final Answer: 3\n", "3", True),
        ("The answer is no. Final answer: yes", "yes", True),  # the first marker in rank counts
        ("so the ANSWER: two", "two", True),
        ("no", "(no)", True),
        ("no, there isn't", "no", False),
        ("", "no", False),
        ("\u00dcber", "\u00fcber", True),
    ],
)
def test_mantis_without_options(answer, gold, right):
    assert mantis(answer, gold, "Q: How many cups are there?\nA: ") == right


def test_mantis_reads_right_answers_in_all_their_forms():
    assert mantis("b", "(B)", QUESTION) and mantis("b", "B. dog", QUESTION)
    assert mantis("The answer is Answer: B", "B", QUESTION)
    assert not mantis("the answer is none", "D", QUESTION)  # the text must be all that was said
    assert not mantis("E", "E", QUESTION)


def test_options_are_lines_lettered_from_a_on():
    assert options_in(QUESTION) == {"A": "cat", "B": "dog", "C": "a bird", "D": "none"}
    assert options_in("Which?\n (A) the first\n(B) the second \n") == {
        "A": "the first", "B": "the second",
    }  # fmt: skip
    assert options_in("Q: How many?\nA: ") == options_in("A. Dumas wrote it.") == {}
    assert options_in("B. dog\nC. cat") == options_in("") == {}


def _asked(hint, question, *options):
    """As lmms-eval's task puts an MMBench question."""
    shown = "".join(f"{'ABCDE'[n]}. {text}\n" for n, text in enumerate(options))
    front = f"{hint} " if hint else ""
    return (
        f"{front}{question} There are several options:\n{shown}\n"
        "Answer with the option's letter from the given choices directly."
    )


CAT_AND_DOG = {"A": "cat", "B": "dog"}
POEM = {"A": "a line\n\nand another", "B": "dog"}


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (_asked("", "Which?", "cat", "dog"), CAT_AND_DOG),
        (_asked("Read.\nA. no option\nB. nor this", "Which?", "cat", "dog"), CAT_AND_DOG),
        (_asked("", "Which?\nA: look here", "cat", "dog"), CAT_AND_DOG),
        (_asked("There are several options:\nA. so", "Which?", "cat", "dog"), CAT_AND_DOG),
        (_asked("", "Which?", "a line\n\nand another", "dog"), POEM),
        (_asked("", "Which?", "dog", "a line\nA. other"), {"A": "dog", "B": "a line\nA. other"}),
        (_asked("", "Which?", "cat", "None", "a"), {"A": "cat", "B": "None", "C": "a"}),
        (_asked("", "Which?", "cat", "dog").partition("\n\n")[0], CAT_AND_DOG),
        (QUESTION, {"A": "cat", "B": "dog", "C": "a bird", "D": "none"}),
    ],
)
def test_options_of_mmbench_stand_behind_their_announcement(question, expected):
    assert mmbench_options(question) == expected


def test_mmbench_reads_the_text_of_an_option_behind_what_looks_like_one():
    asked = prompts.mmbench("Which?", "Read.\nA. no\nB. nor", {"A": "cat", "B": "dog\nor not"})
    for said in ("dog\nor not", "It says: DOG\nOR NOT", "B", "(B)"):
        assert is_correct("mmbench", said, "B", question=asked), said
    for said in ("cat", "nor", "dog", "A"):
        assert not is_correct("mmbench", said, "B", question=asked), said
    assert not is_correct("mmbench", "no", "A", question=asked)


def test_every_task_has_the_rule_of_its_benchmark_and_every_rule_a_source():
    assert is_correct("pope-popular", "No.", "no")
    assert not is_correct("pope-popular", "No.", "no", rule="lmms-eval")
    assert is_correct("seed", "a cat", "a") and not is_correct("mmb", "a cat", "a")
    assert RULE_OF["realworldqa"] == UNTIL  # what the paper used
    assert set(RULE_OF.values()) < set(RULES) and all(rule.source for rule in RULES.values())
    with pytest.raises(RedlibError, match="rule must be one of llava, .*; got 'gpt'"):
        is_correct("seed", "a", "a", rule="gpt")


def test_the_loop_shows_the_rules_the_options(monkeypatch):
    """ "a dog" is right by the text of option B, which stands in the question alone."""
    asked = [
        SimpleNamespace(task=task, image="s1", text=QUESTION, answer="B", group="7", asked=-1)
        for task in ("mmbench", "mmbench", "muirbench")
    ]
    said = ["a dog", "A", "B"]
    monkeypatch.setattr(loop, "answers", lambda *args, **kwargs: said)
    tokens = {"s1": loop.torch.zeros(2, 4)}
    frame = evaluate(None, tokens, asked, progress=False)
    assert frame["correct"].tolist() == [False, False, True]  # two rotations of one question
    said[1] = "B"
    assert evaluate(None, tokens, asked, progress=False)["correct"].all()


def test_yes_ratio_is_of_the_answers():
    """Who always says yes: half of the questions right, every yes found."""
    frame = pd.DataFrame(
        [(task, "Yes", gold) for task in ("pope-random", "pope-popular") for gold in ("yes", "no")]
        + [("pope-popular", "Yes", "no")] * 2,
        columns=["task", "answer", "gold"],
    )
    table = pope(frame).set_index("subset")
    names = ["accuracy", "precision", "recall", "f1", "yes"]
    assert table.loc["random", names].tolist() == pytest.approx([1 / 2, 1 / 2, 1, 2 / 3, 1])
    assert table.loc["popular", names].tolist() == pytest.approx([1 / 4, 1 / 4, 1, 2 / 5, 1])
    assert table.loc["mean", names].tolist() == pytest.approx([3 / 8, 3 / 8, 1, 8 / 15, 1])


def test_mme_adds_up_perception_and_cognition_apart():
    perception = "existence count position color posters celebrity scene landmark artwork OCR"
    cognition = "commonsense_reasoning numerical_calculation text_translation code_reasoning"
    frame = pd.DataFrame(
        [
            ("mme", f"{category}/1.jpg", category, gold, gold)
            for category in f"{perception} {cognition}".split()
            for gold in ("Yes", "No")
        ],
        columns=["task", "image", "group", "answer", "gold"],
    )
    table = mme(frame).set_index("category")
    assert table.index[-2:].tolist() == ["perception", "cognition"]
    assert table["score"].tolist()[-2:] == [2000, 800]
    assert table.loc["perception", "pairs"] == 10 and table.loc["cognition", "n"] == 8
    # one question wrong: its pair is lost too, 200 of 200 become 50
    wrong = frame.assign(answer=frame["answer"].where(frame.index != 0, "maybe"))
    assert mme(wrong).set_index("category").loc["perception", "score"] == 1850
    assert "cognition" not in set(mme(frame[frame.group == "OCR"])["category"])


def test_mmbench_counts_a_question_once_whatever_its_rotations():
    verdicts = {
        ("s1", "7", "logic"): [True, True],  # two options, two rotations
        ("s1", "8", "logic"): [True, True, False, True],
        ("s2", "7", "colour"): [True] * 4,
        ("s3", "9", "colour"): [False],
    }
    frame = pd.DataFrame(
        [
            ("all", "mmbench", image, group, category, correct)
            for (image, group, category), rows in verdicts.items()
            for correct in rows
        ],
        columns=["method", "task", "image", "group", "category", "correct"],
    ).sample(frac=1, random_state=0)
    table = mmbench(frame).set_index("category")
    assert table["accuracy"].to_dict() == {"colour": 1 / 2, "logic": 1 / 2, "overall": 1 / 2}
    assert table["n"].tolist() == [2, 2, 4] and table["rows"].tolist() == [5, 6, 11]
    assert frame["correct"].mean() == 9 / 11
    with pytest.raises(RedlibError, match="column 'category'"):
        mmbench(frame.drop(columns="category"))
    with pytest.raises(RedlibError, match="no MMBench answers"):
        mmbench(frame.assign(task="seed"))


def test_mvbench_leaves_out_empty_answers_and_averages_subtasks():
    frame = pd.DataFrame(
        [
            ("mvbench", "action_count", "(A)", "A"),
            ("mvbench", "action_count", "", "A"),
            ("mvbench", "action_count", "b. two", "B"),
            ("mvbench", "action_count", "c", "D"),
            ("mvbench", "moving_direction", "no", "A"),
            ("mvbench", "moving_direction", "B", "B"),
            ("mvbench", "egocentric", "", "B"),
            ("seed", "egocentric", "B", "B"),
        ],
        columns=["task", "group", "answer", "gold"],
    )
    table = mvbench(frame).set_index("subtask")
    assert table.index.tolist() == ["action_count", "moving_direction", "egocentric", "mean"]
    assert table["accuracy"].tolist() == pytest.approx([2 / 3, 1 / 2, 0, (2 / 3 + 1 / 2) / 3])
    assert table["answered"].tolist() == [3, 2, 0, 5] and table["n"].tolist() == [4, 2, 1, 7]
    with pytest.raises(RedlibError, match="no MVBench answers"):
        mvbench(frame[frame.task == "seed"])


CAPTIONS = {"im2": "A red cup.", "im1": "a\nstar"}
REFERENCES = {"im1": ["a star", "one blue star"], "im2": ["the cup"]}
PACKAGE = {
    "__init__.py": "",
    "tokenizer/ptbtokenizer.py": """
class PTBTokenizer:
    def tokenize(self, texts):
        lines = "\\n".join(t["caption"] for v in texts.values() for t in v).split("\\n")
        keys = [k for k, v in texts.items() for _ in v]
        found = {}
        for key, line in zip(keys, lines, strict=True):
            found.setdefault(key, []).append(line.lower().replace(".", ""))
        return found
""",
    "cider/cider.py": """
class Cider:
    def compute_score(self, gts, res):
        assert gts.keys() == res.keys()
        scores = [10 * len(gts[k]) + len(res[k][0].split()) for k in gts.keys()]
        return sum(scores) / len(scores), scores
""",
    "spice/spice.py": "",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for pycocoevalcap with its interface: the number of references and of words."""
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    for name, text in PACKAGE.items():
        path = tmp_path / "site" / "pycocoevalcap" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(coco.shutil, "which", lambda name: f"/bin/{name}")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        del sys.modules[name]


@pytest.fixture
def jars(package, monkeypatch):
    """A folder with the names of CoreNLP's jars."""
    folder = package / "corenlp"
    folder.mkdir()
    for name in coco.CORENLP:
        (folder / name).touch()
    monkeypatch.setenv("CORENLP_DIR", str(folder))
    return folder


@pytest.fixture
def java(monkeypatch):
    """A stand-in for Java: its version, its failure, and what it was run with."""
    fake = SimpleNamespace(version='openjdk version "1.8.0_412"', error="", commands=[])

    def run(command, **kwargs):
        fake.commands.append(command)
        if command[1] == "-version":
            return subprocess.CompletedProcess(command, 0, "", fake.version)
        given = json.loads(open(command[command.index("edu.anu.spice.SpiceScorer") + 1]).read())
        fake.given = given
        if not fake.error:
            rows = [
                {"image_id": i["image_id"], "scores": {"All": {"f": len(i["refs"]) / 4}}}
                for i in reversed(given)
            ]
            with open(command[command.index("-out") + 1], "w") as out:
                json.dump(rows, out)
        return subprocess.CompletedProcess(command, int(bool(fake.error)), "", fake.error)

    monkeypatch.setattr(coco.subprocess, "run", run)
    return fake


def test_cider_gives_each_image_its_score(package):
    scores = coco.cider(CAPTIONS, REFERENCES)
    assert scores.name == "CIDEr"
    assert scores.to_dict() == {"im1": 22, "im2": 13}  # two references and words; one and three


def test_spice_runs_the_parser_with_the_jars_and_without_a_cache(package, jars, java):
    scores = coco.spice(CAPTIONS, REFERENCES)
    assert scores.name == "SPICE" and scores.to_dict() == {"im1": 0.5, "im2": 0.25}
    assert {i["image_id"]: (i["test"], i["refs"]) for i in java.given} == {
        "im1": ("a star", ["a star", "one blue star"]), "im2": ("a red cup", ["the cup"]),
    }  # fmt: skip
    command = java.commands[-1]
    path = command[command.index("-cp") + 1]
    assert str(jars) in path and "spice-1.0.jar" in path and "-cache" not in command


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("metric", ["cider", "spice"])
def test_what_is_missing_is_said_in_one_line(metric, package, jars, java, monkeypatch):
    score = getattr(coco, metric)
    with pytest.raises(RedlibError, match="image 'im1' has no references"):
        score(CAPTIONS, {"im2": ["the cup"]})
    with pytest.raises(RedlibError, match="image 'im2' has no caption"):
        score({"im1": "a star"}, REFERENCES)
    with pytest.raises(RedlibError, match="'im2' has an empty list"):
        score(CAPTIONS, REFERENCES | {"im2": []})
    monkeypatch.setattr(coco.shutil, "which", lambda name: None)
    with pytest.raises(RedlibError, match="needs Java: install") as error:
        score(CAPTIONS, REFERENCES)
    one_line(error)


@pytest.mark.parametrize("metric", ["cider", "spice"])
def test_without_the_package_the_extra_is_named(metric, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(RedlibError, match=r"pip install 'redlib\[captions\]'") as error:
        getattr(coco, metric)(CAPTIONS, REFERENCES)
    one_line(error)


def test_cider_of_one_image_is_refused(package):
    with pytest.raises(RedlibError, match="at least two; got 1"):
        coco.cider({"im2": "a"}, {"im2": ["the cup"]})


def test_spice_says_what_its_parser_lacks(package, jars, java, monkeypatch):
    java.error = "Exception in thread main\n\tat edu.anu.spice"
    with pytest.raises(RedlibError, match="parser failed .exit code 1.: Exception in thread") as e:
        coco.spice(CAPTIONS, REFERENCES)
    assert "at edu" not in one_line(e)
    java.error, java.version = "", 'openjdk version "17.0.15" 2025-04-15'
    with pytest.raises(RedlibError, match="Java 8 to 14 and the java on the PATH is 17") as e:
        coco.spice(CAPTIONS, REFERENCES)
    one_line(e)
    (jars / "nashorn-core-15.4.jar").touch()
    assert len(coco.spice(CAPTIONS, REFERENCES)) == 2
    (jars / coco.CORENLP[1]).unlink()
    with pytest.raises(RedlibError, match=f"where {coco.CORENLP[1]} is missing"):
        coco.spice(CAPTIONS, REFERENCES)
    monkeypatch.delenv("CORENLP_DIR")
    with pytest.raises(RedlibError, match="set the environment variable CORENLP_DIR") as e:
        coco.spice(CAPTIONS, REFERENCES)
    one_line(e)
