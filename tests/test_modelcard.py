"""The model card's numbers, against literal computations, and the way from weights to the card."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from redlib import __main__ as command_line
from redlib import hub, models, states
from redlib.errors import RedlibError
from redlib.modelcard import card, evaluation
from redlib.params import embedded
from redlib.tabletop import architectures, scenes, training
from redlib.tabletop.questions import POPE, Question


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained checkpoint in the stock layout, said to be trained."""
    where = tmp_path_factory.mktemp("untrained") / "tiny-llava-1.5"
    processor = architectures.make_processor(where.name)
    training.export(architectures.make_model(where.name, processor.tokenizer), processor, where)
    record(where)
    return where


def record(folder: Path, **differently) -> None:
    told = {"name": "tiny-llava-1.5", "plain": False} | differently
    (folder / training.RECORD).write_text(json.dumps(told))


@pytest.fixture
def copied(folder, tmp_path, monkeypatch):
    """The same in a folder of its own, which is the current one; nobody may measure it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "measure", lambda *_, **__: pytest.fail("measured"))
    return Path(shutil.copytree(folder, tmp_path / "runs" / "train" / "mine" / "checkpoint"))


@pytest.fixture(scope="module")
def small():
    """The evaluation at a scale that takes seconds. What is not trained never ends an answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "QUICK", 8)
        patch.setattr(evaluation, "LONGEST", 3)
        patch.setattr(evaluation, "RESAMPLES", 20)
        patch.setattr(evaluation, "evaluate", partial(evaluation.evaluate, max_new_tokens=3))
        for name in ("PROBED", "DIVERGED", "SAID", "SAID_MORE"):
            least = {"PROBED": 2, "DIVERGED": 2, "SAID": 8}.get(name, 3)
            patch.setattr(evaluation, name, getattr(evaluation, name) | {8: least})
        yield


@pytest.fixture(scope="module")
def table(folder, small):
    return evaluation.measure(str(folder), quick=True)


def test_the_table_holds_every_bar_and_judges_by_it(table):
    assert list(table.columns) == ["metric", "value", "low", "high", "n", "bar", "pass"]
    assert table["metric"].is_unique
    rows = table.set_index("metric")
    for metric, bar in evaluation.BARS.items():
        row = rows.loc[metric]
        assert row["bar"] == bar
        assert row["pass"] == ("yes" if row["value"] >= bar else "no")
        assert row["low"] <= row["value"] <= row["high"]
    rule = rows.loc["points lost with 64 random tokens (rule: 5 to 25)"]
    assert rule["pass"] == ("yes" if 5 <= rule["value"] <= 25 else "no")
    others = rows[rows["bar"].isna() & ~rows.index.str.contains("rule:")]
    assert (others["pass"] == "").all()


def test_what_is_asked_is_balanced_and_apart(small):
    pools = evaluation._pools(8)
    asked = evaluation._asked(pools, 8, 0)
    tasks = pd.Series([q.task for q in asked]).value_counts()
    assert set(tasks.index) == {*evaluation.ASKED, "naming"}
    assert tasks["mmb"] == 4 * 8 and tasks["mme"] == 8 and tasks["word"] == 8
    for subset in POPE:
        said = [q.answer for q in asked if q.task == subset]
        assert said.count("yes") == said.count("no") == 4
    for task, pool in (("rwqa", "wide"), ("word", "worded"), ("naming", "alone")):
        assert {q.image for q in asked if q.task == task} <= {s.id for s in pools[pool]}
    assert len({scene.id for pool in pools.values() for scene in pool}) == 8 + 8 + 4 + 8


def test_chance_is_the_best_answer_without_looking():
    asked = [Question("pope-random", "a", "", "yes", options=2)] * 3
    asked += [Question("seed", "a", "", "b", options=4)] * 2
    short = (("a", 3), ("left", 2), ("two", 0), ("two", 0), ("six", 0))
    asked += [Question("rwqa", "a", "", word, options=k) for word, k in short]
    found = evaluation.chance(asked)
    assert found["pope"] == 0.5 and found["seed"] == 0.25
    assert found["rwqa"] == pytest.approx((1 / 3 + 1 / 2 + 2) / 5)


def test_the_rule_on_difficulty_is_about_the_five_tasks_alone():
    """Of two pictures, the answers of the second are lost with few tokens, in two tasks of five."""
    tasks = [*evaluation.FIVE, "colour"]
    asked = [Question(task, image, "", "b", options=2) for image in "xy" for task in tasks]
    said = pd.DataFrame({"family": [q.task for q in asked], "image": [q.image for q in asked]})
    lost = (said["image"] == "y") & said["family"].isin(["seed", "rwqa", "colour"])
    of = {"all": said.assign(correct=True), "64 random": said.assign(correct=~lost),
          "none": said.assign(correct=said["image"] == "x")}  # fmt: skip
    rows = pd.DataFrame(evaluation._difficulty(of, asked, 0)).set_index("metric")
    assert set(rows["n"]) == {10}
    drop = rows.loc["points lost with 64 random tokens (rule: 5 to 25)"]
    # A draw holds the second picture never, once or twice.
    assert drop["value"] == pytest.approx(100 * 2 / 5 / 2) and drop["holds"] == "yes"
    assert (drop["low"], drop["high"]) == pytest.approx((0, 40))
    above = rows.loc["points above chance with no token (rule: at most 5)"]
    assert above["value"] == pytest.approx(0) and above["holds"] == "yes"
    assert (above["low"], above["high"]) == pytest.approx((-50, 50))
    assert rows.loc["five-task mean by chance", "value"] == 0.5


def test_a_count_is_within_one():
    rows = [("two", "three", True), ("Two.", "one", True), ("five", "three", False),
            ("cup", "one", False), ("seven", "seven", True)]  # fmt: skip
    part = pd.DataFrame(rows, columns=["answer", "gold", "close"])
    assert evaluation._within_one(part) == part["close"].tolist()


def test_foreign_words_never_come_from_the_same_scene():
    covered = pd.DataFrame({"image": ["a"] * 5 + ["b"] * 5, "word": ["cup"] * 5 + ["cat"] * 5})
    assert evaluation._foreign(covered, 0).tolist() == ["cat"] * 5 + ["cup"] * 5


def test_probed_patches_and_their_scores_are_what_they_say(folder):
    vlm = models.load(str(folder))
    scene = next(s for s in scenes("test", 50, start=9) if s.word and len(s.objects) > 2)
    found = evaluation._probe_scene(vlm, scene)
    kinds = {0: "bare"} | {k + 1: o.noun for k, o in enumerate(scene.objects)}
    for patch, share, noun in zip(found["patch"], found["share"], found["noun"], strict=True):
        row, column = divmod(patch, 24)
        square = scene.instance[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        labels, counts = np.unique(square, return_counts=True)
        if share == 0:
            assert labels.tolist() == [0]
        else:
            best = labels[counts.argmax()]
            assert kinds[best] == noun and counts.max() / 196 == share >= 0.8
    tokens = vlm.encode([scene.image]).tokens[0]
    weights = states.attention(vlm, tokens, prompt=evaluation.ONE_WORD)[3]
    assert np.allclose(found["attention"], weights[found["patch"]])
    literal = roc_auc_score(found["share"] > 0, found["top1"])
    rows = evaluation._aurocs(found, "top1", "x", 0)
    assert rows[0]["value"] == rows[1]["value"] == pytest.approx(literal)


def test_the_card_holds_what_was_measured(folder, table):
    log = [{"stage": "decoder", "step": 3, "minutes": 0.1, "word@576": 0.5},
           {"note": "A note."}, {"tried": "more steps", "result": "0.1"}]  # fmt: skip
    (folder / training.LOG).write_text(json.dumps(log))
    card.write(folder, table)
    text = (folder / "README.md").read_text()
    assert card.table_text(table) in text
    assert "A note." in text and "| more steps | 0.1 |" in text and "word@576 0.50" in text
    assert json.loads((folder / card.MEASURED).read_text()) == card.plain(table)
    assert f"`{hub.revision_of(str(folder))}`" in text


@pytest.mark.parametrize("name", architectures.NAMES)
def test_a_shipped_card_is_what_its_numbers_and_its_weights_say(name):
    """Written again from evaluation.json it is the same to the letter; whether bars and rules hold
    follows from the numbers, by the code's bars and by those that stand there."""
    where = embedded()[name]
    text, table = (where / "README.md").read_text(), card.held(where)
    assert card.text(where, table) == text
    assert f"`{hub.revision_of(name)}`" in text
    rules = {
        "points lost with 64 random tokens (rule: 5 to 25)": lambda value: 5 <= value <= 25,
        "points above chance with no token (rule: at most 5)": lambda value: value <= 5,
    }
    assert rules.keys() == set(table["metric"][table["metric"].str.contains("rule:")])
    holds = [
        ("yes" if rules[row.metric](row.value) else "no") if row.metric in rules else ""
        for row in table.itertuples()
    ]
    kind = hub.read_config(name).model_type
    rows = table.drop(columns=["bar", "pass"]).assign(holds=holds)
    pd.testing.assert_frame_equal(evaluation.judged(rows, kind), table)
    barred = table[table["bar"].notna()]
    assert len(barred) == len(evaluation.BARS) + 4 * (kind == "llava_onevision")
    assert barred["pass"].tolist() == [
        "yes" if v >= b else "no" for v, b in barred[["value", "bar"]].to_numpy()
    ]
    within = table.dropna(subset=["low"])
    assert within["low"].le(within["value"] + 1e-9).all()
    assert within["high"].ge(within["value"] - 1e-9).all()


def test_a_quick_run_is_held_against_the_card(folder, table, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "measure", lambda name, quick: table)
    card.write(folder, table)
    assert card.apart(table, card.held(folder)) == []
    moved = table.assign(**{key: table[key] + 900 for key in ("value", "low", "high")})
    lines = card.apart(moved, card.held(folder))
    assert len(lines) == table["low"].notna().sum()
    assert all(line.startswith("apart from the card: ") for line in lines)
    assert evaluation.main(str(folder), quick=True, as_json=True) == 1
    printed = pd.DataFrame(json.loads(capsys.readouterr().out))
    assert printed["metric"].tolist() == table["metric"].tolist()
    card.write(folder, moved)
    assert evaluation.main(str(folder), quick=True) == 3


@pytest.mark.parametrize("plain", [False, True])
def test_training_ends_with_the_card(copied, table, capsys, monkeypatch, plain):
    """It says which recipe was followed, and of labels for the tower only where it had them."""

    def train(name, work, plain):
        assert work == Path("elsewhere", "train"), "the working folder is where REDLIB_RUNS says"
        record(copied, name=name, plain=plain)
        return copied

    monkeypatch.setenv("REDLIB_RUNS", "elsewhere")
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(evaluation, "measure", lambda name: table)
    command = ["train", "tiny-llava-1.5", *["--plain"] * plain]
    assert command_line.main(command) == 0
    assert capsys.readouterr().out == f"{card.table_text(table)}\n{copied}\n"
    text = (copied / "README.md").read_text()
    assert card.table_text(table) in text
    assert f"`redlib {' '.join(command)}`" in text
    assert f"\n# tiny-llava-1.5{'-plain' * plain}\n" in text
    words = " ".join(text.split())
    assert ("*was* given dense labels" in words) is not plain
    assert ("dense patch labels for the tower" in words) is not plain
    assert ("learned from captions alone, as CLIP does, without labels" in words) is plain


def test_a_card_written_again_has_the_name_of_the_training(copied, table, monkeypatch):
    """The folder's own name says nothing: all that is trained lies in one called checkpoint."""
    monkeypatch.setattr(evaluation, "measure", lambda name, quick: table)
    evaluation.main(str(copied))
    text = (copied / "README.md").read_text()
    assert "\n# tiny-llava-1.5\n" in text and "`redlib train tiny-llava-1.5`" in text


def test_what_nobody_knows_the_training_of_gets_no_card(copied, table, capsys, monkeypatch):
    (copied / training.RECORD).unlink()
    (copied / "README.md").write_text("# my own model\n")
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    monkeypatch.setattr(evaluation, "measure", lambda name, quick: table)
    assert evaluation.main(str(copied)) == 1
    out, err = capsys.readouterr()
    assert out == f"{card.table_text(table)}\n"
    assert err == (
        f"no card is written: {copied} is neither shipped nor made by `redlib train` (no "
        f"{training.RECORD})\n"
    )
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    with pytest.raises(RedlibError, match="neither shipped nor made by `redlib train`"):
        card.write(copied, table)


def refused(capsys, *command: str) -> str:
    """The one line of complaint of `redlib evaluate`."""
    assert command_line.main(["evaluate", *command]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_a_model_of_the_hub_has_no_card(copied, capsys, tmp_path):
    for quick in ([], ["--quick"]):
        told = refused(capsys, "llava-hf/llava-1.5-7b-hf", *quick)
        assert (
            "is a Hugging Face id, beside whose weights no card can lie; name an embedded" in told
        )
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


ROW = {"metric": "word", "value": 1.0, "low": 1.0, "high": 1.0, "n": 200, "bar": None, "pass": ""}


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", "[1]", '[{"metric": 1}]', '[{"metric": "word"}]',
        *(json.dumps([ROW | odd]) for odd in (
            {"value": None}, {"value": "1"}, {"value": float("nan")}, {"low": None}, {"n": 0},
            {"metric": ["word"]}, {"bar": "high"},
        )),
        json.dumps([ROW, ROW]),
    ],
)  # fmt: skip
def test_a_damaged_card_is_found_before_anything_is_measured(copied, capsys, text):
    (copied / card.MEASURED).write_text(text)
    told = refused(capsys, str(copied), "--quick")
    assert f"{copied / card.MEASURED}: damaged" in told


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "mine", "plain": false}',
                                  '{"name": ["tiny-llava-1.5"], "plain": true}',
                                  '{"name": "tiny-llava-1.5", "plain": 1}'])  # fmt: skip
def test_a_damaged_record_of_the_training_too(copied, capsys, text):
    (copied / training.RECORD).write_text(text)
    assert f"{copied / training.RECORD}: damaged" in refused(capsys, str(copied))


def test_a_card_of_other_metrics_is_not_agreed_with(tmp_path, capsys, monkeypatch):
    """Whichever of the two lacks a number; one without interval may come and go."""
    loose = ROW | {"metric": "bare patches decoded to star", "low": None, "high": None}
    both, one = [ROW, ROW | {"metric": "colour"}], [ROW, loose]
    for now, card_, where in ((both, one, "the card"), (one, both, "what was measured now")):
        (tmp_path / card.MEASURED).write_text(json.dumps(card_))
        with pytest.raises(RedlibError) as error:
            card.apart(pd.DataFrame(now), card.held(tmp_path))
        told = f"1 metrics, 'colour' the first, are not in {where}: the card was made by other code"
        assert told in str(error.value)
    (tmp_path / card.MEASURED).write_text(json.dumps([ROW]))
    assert card.apart(pd.DataFrame(one), card.held(tmp_path)) == []


def test_all_right_of_a_few_is_not_apart_from_nearly_all_right(tmp_path):
    """200 of 200 right leave room for an accuracy of 0.985, and not for one of 0.97."""
    quick = pd.DataFrame([ROW])
    for value, lines in ((0.987, 0), (0.97, 1)):
        held = ROW | {"value": value, "low": value - 0.005, "high": value + 0.005, "n": 1000}
        (tmp_path / card.MEASURED).write_text(json.dumps([held]))
        assert len(card.apart(quick, card.held(tmp_path))) == lines


def test_chance_is_told_from_a_change_of_one_number_in_seventy():
    """200 questions against 1,000 of the same model, 70 numbers, 150 times: at least one is apart
    in one run of twenty or fewer, while intervals of 95 % lie apart in every second. A model that
    has lost 15 points in one of them is found out."""
    rng = np.random.default_rng(7)
    spread = {n: 1.96 * (0.8 * 0.2 / n) ** 0.5 for n in (200, 1000)}

    def rows(n, means):
        right = rng.binomial(n, means) / n
        return pd.DataFrame(
            {"metric": [f"m{k}" for k in range(70)], "value": right, "low": right - spread[n],
             "high": right + spread[n], "n": n, "bar": None, "pass": ""}
        )  # fmt: skip

    alarms, naive, found, lost = 0, 0, 0, np.full(70, 0.8)
    lost[3] -= 0.15
    for _ in range(150):
        card_, quick = rows(1000, np.full(70, 0.8)), rows(200, np.full(70, 0.8))
        alarms += bool(card.apart(quick, card_))
        naive += bool(((quick["low"] > card_["high"]) | (quick["high"] < card_["low"])).any())
        found += any("m3 " in line for line in card.apart(rows(200, lost), card_))
    assert alarms <= 0.1 * 150, "one in twenty, give or take what 150 runs leave open"
    assert naive > 0.3 * 150
    assert found > 0.85 * 150


def test_a_folder_without_a_card_is_named(copied, capsys):
    (copied / card.MEASURED).unlink(missing_ok=True)
    told = refused(capsys, str(copied), "--quick")
    assert f"no {copied / card.MEASURED}: run `redlib evaluate` without --quick first" in told
