"""Every question read from its text alone and answered from pixels and masks."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from redlib.errors import RedlibError
from redlib.tabletop import TASKS, language, questions, scenes
from redlib.tabletop.questions import COUNTED, MME, POPE, SEED, ask, statistics
from redlib.tabletop.world import (
    COLOURS,
    GROUNDS,
    LEVELS,
    NOUNS,
    SIZES,
    WITHHELD,
    WORDS,
    Scene,
    Thing,
    plan,
    redraw,
)

NUMBER = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
LONGEST = {"small": 46, "medium": 70, "large": 110, "huge": 150}  # side of a box, pixels
TEXTURES = {"noisy", "wood", "stripes"}  # what a plate or a sheet may lie on
POPE_END = " Please answer this question with one word."
YES_NO_END = " Please answer yes or no."
LETTER_END = "Answer with the option's letter from the given choices directly."
SHORT_END = " Please answer directly with a single word or number."


@pytest.fixture(scope="module")
def pool():
    """Scenes of all kinds: as they come, crowded, of one object, withheld, of two other shapes."""
    return [
        *scenes("calibration", 100, start=5_000),
        *scenes("calibration", 20, start=5_100, level="crowded"),
        *scenes("calibration", 20, start=5_200, objects=1),
        *scenes("calibration", 20, start=5_300, withheld=True),
        *scenes("calibration", 60, start=5_400, width=504),
        *scenes("calibration", 15, start=5_500, width=360, height=480),
    ]


@pytest.fixture(scope="module")
def by_id(pool):
    return {scene.id: scene for scene in pool}


@pytest.fixture(scope="module")
def asked(pool):
    return {task: questions(pool, task) for task in TASKS}


# What a scene shows, by its mask and its pixels.

_LOOKED: dict[str, dict] = {}


def look(scene) -> dict:
    """Colour, centroid (x, y) and box of everything in the mask, looked at once per scene."""
    if scene.id not in _LOOKED:
        labels = np.flatnonzero(np.bincount(scene.instance.ravel(), minlength=256)[:255])[1:]
        assert labels.tolist() == list(range(1, len(labels) + 1))
        rows = [np.nonzero(scene.instance == k) for k in labels]
        _LOOKED[scene.id] = {
            "colours": [paint_name(scene.pixels[y, x]) for y, x in rows],
            "centroids": [(x.mean() + 0.5, y.mean() + 0.5) for y, x in rows],
            "boxes": [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in rows],
        }
    return _LOOKED[scene.id]


def paint_name(pixels: np.ndarray) -> str:
    """The one colour of which a shade is among the pixels; lines are a shade of none."""
    codes = np.unique(pixels.astype(int) @ (1, 1000, 1_000_000))
    paints = np.stack((codes % 1000, codes // 1000 % 1000, codes // 1_000_000), 1)
    (name,) = [c for c in COLOURS if (np.abs(paints - COLOURS[c]).max(1) <= 12).any()]
    return name


def count(scene) -> int:
    return len(look(scene)["colours"])


def nouns(scene) -> list[str]:
    return [thing.noun for thing in scene.objects]


def colours(scene) -> list[str]:
    return look(scene)["colours"]


def the(scene, noun: str) -> int:
    """Index of the one object of that noun: "the cup" has to name exactly one."""
    (k,) = [i for i, name in enumerate(nouns(scene)) if name == noun]
    return k


def colour(scene, noun: str) -> str:
    return colours(scene)[the(scene, noun)]


def size(scene, noun: str) -> str:
    """By the longer side of the box in pixels, which is the mask's own where nothing hides it."""
    k = the(scene, noun)
    box = scene.objects[k].box
    if scene.level != "crowded":
        assert box == look(scene)["boxes"][k]
    longer = max(box[2] - box[0], box[3] - box[1])
    return next(name for name, most in LONGEST.items() if longer <= most)


def centroid(scene, noun: str) -> tuple[float, float]:
    """(x, y) of what is to be seen of it, from the middle of the image."""
    x, y = look(scene)["centroids"][the(scene, noun)]
    height, width = scene.instance.shape
    return x - width / 2, y - height / 2


def lies(scene, noun: str, sides: str) -> bool:
    """Whether its centroid lies in all the named halves: "left", "top right"."""
    x, y = centroid(scene, noun)
    halves = {"left": x < 0, "right": x > 0, "top": y < 0, "bottom": y > 0}
    return all(halves[side] for side in sides.split())


def direction(scene, noun: str, other: str) -> str:
    """Of the two axes, the one along which the two centroids lie further apart decides."""
    dx, dy = np.subtract(centroid(scene, noun), centroid(scene, other))
    if abs(dx) > abs(dy):
        return "to the left" if dx < 0 else "to the right"
    return "above" if dy < 0 else "below"


def shows_ground(scene, ground: str) -> bool:
    return ground in (scene.ground, scene.second)


def may_show_ground(scene, ground: str) -> bool:
    under = TEXTURES if scene.ground in ("plate", "sheet") else set()
    return shows_ground(scene, ground) or ground in under


# What a text asks: patterns and the truth of the sentence they hold.

YES_NO = (
    (r"Is there an? (\w+) in (?:the|this) image\?", lambda s, noun: noun in nouns(s)),
    (r"Are there (\w+) objects in this image\?", lambda s, n: count(s) == NUMBER[n]),
    (r"Is the word (\w+) written in this image\?", lambda s, word: s.word == word),
    (r"Is there a (\w+) ground in this image\?", shows_ground),
    (r"Is the (\w+) (?:on|at) the (left|right|top|bottom)\?", lies),
    (
        rf"Is the (\w+) ({'|'.join(COLOURS)})\?",
        lambda s, noun, name: colour(s, noun) == name,
    ),
    (rf"Is the (\w+) ({'|'.join(SIZES)})\?", lambda s, noun, name: size(s, noun) == name),
)
OPEN = (
    (r"What colou?r is the (\w+)\?", colour),
    (r"What size is the (\w+)\?", size),
    (r"What word is written in the image\?", lambda s: s.word),
    (r"How many objects are there\?", lambda s: {n: w for w, n in NUMBER.items()}[count(s)]),
    (
        r"Is the (\w+) on the left or on the right\?",
        lambda s, noun: "left" if lies(s, noun, "left") else "right",
    ),
    (
        r"Is the (\w+) at the top or at the bottom\?",
        lambda s, noun: "top" if lies(s, noun, "top") else "bottom",
    ),
    (r"Where is the (\w+) from the (\w+)\?", direction),
)


def read(patterns, text: str):
    """(truth, words) of the one pattern that the text has."""
    found = [
        (truth, m.groups()) for pattern, truth in patterns if (m := re.fullmatch(pattern, text))
    ]
    assert len(found) == 1, text
    return found[0]


def holds(scene, text: str) -> bool:
    truth, words = read(YES_NO, text)
    return truth(scene, *words)


def reply(scene, text: str) -> str:
    truth, words = read(OPEN, text)
    return truth(scene, *words)


def option_holds(scene, text: str, option: str) -> bool:
    """Whether one option is true of the scene."""
    if text == "Which object is in the image?":
        assert option in NOUNS
        return option in nouns(scene)
    if place := re.fullmatch(r"Where is the (\w+)\?", text):
        return lies(scene, place[1], re.fullmatch(r"at the (\w+ \w+)", option)[1])
    return option == reply(scene, text)


def lettered(text: str) -> tuple[str, dict[str, str]]:
    """The question and its options by lower-case letter."""
    first, *lines, last = text.split("\n")
    assert last == LETTER_END
    options = dict(line.split(". ") for line in lines)
    assert list(options) == list("ABCD")[: len(options)]
    assert len(set(options.values())) == len(options)
    return first, {letter.lower(): option for letter, option in options.items()}


def check_letters(scene, q) -> None:
    """Exactly one option is true, and its letter is the answer."""
    text, options = lettered(q.text)
    assert [k for k, option in options.items() if option_holds(scene, text, option)] == [q.answer]
    assert q.options == len(options)


@pytest.fixture
def painted():
    """A scene painted here: a small red cup at the top left with black lines on it, a large blue
    star at the bottom right and the word open, on wood."""
    pixels = np.full((336, 336, 3), 200, np.uint8)
    instance = np.zeros((336, 336), np.uint8)
    things = (Thing("cup", "red", "small", (40, 30, 80, 66)),
              Thing("star", "blue", "large", (200, 180, 290, 270)))  # fmt: skip
    for k, thing in enumerate(things, start=1):
        x0, y0, x1, y1 = thing.box
        pixels[y0:y1, x0:x1], instance[y0:y1, x0:x1] = COLOURS[thing.colour], k
    pixels[40:42, 50:60] = np.array(COLOURS["red"]) * 0.45
    instance[300:330, 10:90] = 255
    return Scene("painted-1", pixels, things, "open", "wood", instance)


def test_the_reader_knows_true_from_false(painted):
    for text, true in {
        "Is there a cup in the image?": True,
        "Is there an anchor in this image?": False,
        "Are there two objects in this image?": True,
        "Are there three objects in this image?": False,
        "Is the word open written in this image?": True,
        "Is the word exit written in this image?": False,
        "Is there a wood ground in this image?": True,
        "Is there a plate ground in this image?": False,
        "Is the cup on the left?": True,
        "Is the cup at the bottom?": False,
        "Is the cup red?": True,
        "Is the cup blue?": False,
        "Is the star large?": True,
        "Is the star huge?": False,
    }.items():
        assert holds(painted, text) == true
    for text, answer in {
        "What color is the star?": "blue",
        "What size is the cup?": "small",
        "Where is the star from the cup?": "to the right",
        "Is the star at the top or at the bottom?": "bottom",
        "How many objects are there?": "two",
        "What word is written in the image?": "open",
    }.items():
        assert reply(painted, text) == answer
    assert option_holds(painted, "Where is the cup?", "at the top left")
    assert not option_holds(painted, "Where is the cup?", "at the top right")
    assert option_holds(painted, "Which object is in the image?", "star")
    assert not option_holds(painted, "Which object is in the image?", "cat")
    with pytest.raises(AssertionError):
        holds(painted, "Is it?")


def test_pope_questions_are_true_and_half_yes(asked, by_id):
    for task in POPE:
        for q in asked[task]:
            assert q.text.endswith(POPE_END)
            assert q.answer == ("yes" if holds(by_id[q.image], q.text.removesuffix(POPE_END)) else
                                "no")  # fmt: skip
        answers = defaultdict(list)
        for q in asked[task]:
            answers[q.image].append(q.answer)
        for image, given in answers.items():
            n = min(3, len(set(nouns(by_id[image]))))
            assert given == ["yes"] * n + ["no"] * n
        assert set(answers) == set(by_id)
        texts = [(q.image, q.text) for q in asked[task]]
        assert len(set(texts)) == len(texts)


def negatives(scene, task: str) -> list[str]:
    """The absent nouns that are asked about."""
    found = [q.text for q in questions([scene], task) if q.answer == "no"]
    return [re.match(r"Is there an? (\w+) in", text)[1] for text in found]


def test_pope_negatives_are_the_ones_pope_defines(pool):
    """Literally: popular takes the absent nouns of highest frequency, adversarial those that most
    often stand beside the present ones, counted on training scenes."""
    sets = [{piece.thing.noun for piece in plan(number).pieces} for number in range(COUNTED)]
    frequency = Counter(noun for found in sets for noun in found)
    counted, together = statistics()
    assert counted.tolist() == [frequency[noun] for noun in NOUNS]
    for scene in pool[3:12]:
        present = {t.noun for t in scene.objects}
        absent = [noun for noun in NOUNS if noun not in present]
        beside = {a: sum(len(present & found) for found in sets if a in found) for a in absent}
        popular, adversarial = (
            negatives(scene, task) for task in ("pope-popular", "pope-adversarial")
        )
        n = len(popular)
        assert n == min(3, len(present))
        assert sorted(frequency[x] for x in popular) == sorted(frequency[x] for x in absent)[-n:]
        assert sorted(beside[x] for x in adversarial) == sorted(beside.values())[-n:]
        assert len(set(negatives(scene, "pope-random")) - present) == n


def test_mme_asks_pairs_of_one_yes_and_one_no_in_seven_categories(asked, by_id):
    pairs = defaultdict(list)
    for q in asked["mme"]:
        scene, text = by_id[q.image], q.text.removesuffix(YES_NO_END)
        assert text != q.text
        assert q.answer == ("yes" if holds(scene, text) else "no")
        if q.group == "scene" and q.answer == "no":
            assert not may_show_ground(scene, re.match(r"Is there a (\w+)", text)[1])
        pairs[q.image, q.group].append(q)
    for pair in pairs.values():
        assert sorted(q.answer for q in pair) == ["no", "yes"]
        # both ask the same of the same thing: they differ in one word
        one, two = (q.text.split() for q in pair)
        differ = [(a, b) for a, b in zip(one, two, strict=True) if a != b]
        assert len(differ) - (("a", "an") in differ or ("an", "a") in differ) <= 2
    categories = Counter(group for _, group in pairs)
    assert set(categories) == set(MME) and len(categories) >= 6
    assert min(categories.values()) > 20
    per_scene = Counter(image for image, _ in pairs)
    assert set(per_scene) == set(by_id) and set(per_scene.values()) == {3}


def test_mme_categories_ask_what_they_are_called(asked):
    form = {
        "existence": r"Is there an? \w+ in this image\?",
        "count": r"Are there \w+ objects in this image\?",
        "position": r"Is the \w+ (on the (left|right)|at the (top|bottom))\?",
        "colour": rf"Is the \w+ ({'|'.join(COLOURS)})\?",
        "size": rf"Is the \w+ ({'|'.join(SIZES)})\?",
        "scene": rf"Is there a ({'|'.join(GROUNDS)}) ground in this image\?",
        "text": rf"Is the word ({'|'.join(WORDS)}) written in this image\?",
    }
    for q in asked["mme"]:
        assert re.fullmatch(form[q.group], q.text.removesuffix(YES_NO_END))


def test_mmb_asks_one_list_of_options_in_its_four_rotations(asked, by_id):
    sets = defaultdict(list)
    for q in asked["mmb"]:
        check_letters(by_id[q.image], q)
        sets[q.image, q.group].append(q)
    for turns in sets.values():
        texts = {lettered(q.text)[0] for q in turns}
        lists = [list(lettered(q.text)[1].values()) for q in turns]
        assert len(texts) == 1 and len(turns) == len(lists[0]) == 4
        assert sorted(lists) == sorted(lists[0][i:] + lists[0][:i] for i in range(4))
        assert sorted(q.answer for q in turns) == ["a", "b", "c", "d"]
        assert len({q.asked for q in turns}) == 1
    assert Counter(image for image, _ in sets) == dict.fromkeys(by_id, 1)
    assert {group for _, group in sets} == {"identity", "colour", "place", "count", "text"}


def test_seed_asks_seven_dimensions(asked, by_id):
    stems = defaultdict(set)
    for q in asked["seed"]:
        check_letters(by_id[q.image], q)
        assert q.options == 4
        stem = lettered(q.text)[0]
        for noun in NOUNS:
            stem = re.sub(rf"\bthe {noun}\b", "the X", stem)
        stems[q.group].add(stem)
    assert set(stems) == set(SEED) and len(stems) >= 5
    assert all(len(found) == 1 for found in stems.values())
    assert len(set.union(*stems.values())) == len(stems)
    per_scene = Counter(q.image for q in asked["seed"])
    assert set(per_scene.values()) == {2} and set(per_scene) == set(by_id)
    groups = Counter((q.image, q.group) for q in asked["seed"])
    assert set(groups.values()) == {1}


def test_rwqa_asks_about_the_smallest_thing_in_images_of_another_shape(asked, by_id):
    forms = Counter()
    for q in asked["rwqa"]:
        scene = by_id[q.image]
        assert scene.image.width != scene.image.height
        if LETTER_END in q.text:
            check_letters(scene, q)
            assert q.options == 3
        else:
            assert q.answer == reply(scene, q.text.removesuffix(SHORT_END))
            assert q.text.endswith(SHORT_END)
        forms[q.group] += 1
        named = re.search(r" the (\w+)(?: on| at|\?)", q.text.split("\n")[0])
        if named and named[1] in NOUNS:
            once = [n for n in nouns(scene) if nouns(scene).count(n) == 1]
            order = ["small", "medium", "large", "huge"]
            ranks = {n: order.index(size(scene, n)) for n in once}
            assert ranks[named[1]] == min(ranks.values())
    assert set(forms) == {"colour", "side", "text", "count"} and min(forms.values()) > 5
    wide = [s.id for s in by_id.values() if s.image.width != s.image.height]
    per_scene = Counter(q.image for q in asked["rwqa"])
    assert set(per_scene) <= set(wide) and set(per_scene.values()) <= {1, 2}
    assert len(per_scene) == len(wide)


def test_the_one_word_questions_are_true(asked, by_id):
    for task in ("colour", "position", "count", "word"):
        for q in asked[task]:
            assert q.answer == reply(by_id[q.image], q.text)
            assert q.options == (2 if task == "position" else 0)
    assert len(asked["count"]) == len(by_id)
    assert len(asked["word"]) == sum(bool(s.word) for s in by_id.values())
    once = sum(Counter(nouns(s))[n] == 1 for s in by_id.values() for n in nouns(s))
    assert len(asked["colour"]) == once
    assert {q.answer for q in asked["position"]} == {"left", "right", "top", "bottom"}


def test_naming_asks_about_scenes_of_one_object(asked, by_id):
    alone = [s for s in by_id.values() if count(s) == 1]
    assert [q.image for q in asked["naming"]] == [s.id for s in alone] and len(alone) >= 20
    for q in asked["naming"]:
        assert [q.answer] == nouns(by_id[q.image]) and q.asked == 0
        assert q.text.startswith("What does this image show?")


def test_article_answers_name_the_one_thing_of_a_colour(asked, by_id):
    for q in asked["article"]:
        scene = by_id[q.image]
        name = re.fullmatch(r"What is the (\w+) thing\?", q.text)[1]
        (k,) = [i for i, c in enumerate(colours(scene)) if c == name]
        noun = nouns(scene)[k]
        assert q.answer == (f"an {noun}" if noun[0] in "aeiou" else f"a {noun}")
    assert {q.answer.split()[0] for q in asked["article"]} == {"a", "an"}
    assert sum(colours(s).count(c) == 1 for s in by_id.values() for c in COLOURS) == len(
        asked["article"]
    )


def test_captions_are_asked_where_they_belong_and_are_true(asked, by_id):
    """NoCaps only with withheld pairs, Flickr only of crowded scenes, details of all."""
    withheld = [
        s.id for s in by_id.values() if WITHHELD & set(zip(nouns(s), colours(s), strict=True))
    ]
    assert [q.image for q in asked["nocaps"]] == withheld
    assert sorted(withheld) == sorted(s.id for s in by_id.values() if s.id.endswith(".withheld"))
    crowded = [s.id for s in by_id.values() if s.level == "crowded"]
    assert [q.image for q in asked["flickr"]] == crowded and len(crowded) > 20
    assert [q.image for q in asked["detail"]] == list(by_id)
    for q in asked["nocaps"] + asked["flickr"]:
        scene = by_id[q.image]
        assert q.text == "Describe the provided image in one sentence."
        for name, noun in zip(colours(scene), nouns(scene), strict=True):
            assert re.search(rf"\ban? {noun} in (\w+ \w+ and )*\w+ {name}\b", q.answer)
        said = re.split(r", | and ", q.answer.split(" on a ")[0])
        assert len(said) == count(scene) + bool(scene.word)
        assert not scene.word or said[-1] == f"the word {scene.word}"
        assert re.fullmatch(r".* on a \w+( and \w+)? ground\.", q.answer)
    for q in asked["detail"]:
        scene = by_id[q.image]
        said = []
        for alike in q.answer.removesuffix(".").split(", "):
            noun, first = alike.split(" ", 1)
            said += [[noun, *look.split()] for look in first.split(" and ")]
        pairs = sorted(
            zip(nouns(scene), colours(scene), strict=True), key=lambda pair: NOUNS.index(pair[0])
        )
        assert [words[:2] for words in said] == [list(pair) for pair in pairs]
        for (noun, _), words in zip(pairs, said, strict=True):
            if nouns(scene).count(noun) == 1:
                assert words[2] == size(scene, noun)
                assert lies(scene, noun, " ".join(words[3:]))


def test_asked_is_the_thing_that_the_text_is_about(asked, by_id):
    """Named by its noun or, in `article`, by its colour; none where none or several are asked
    about."""
    about = re.compile(r"(?:[Tt]he|there an?) (\w+)")
    for task, rows in asked.items():
        for q in rows:
            scene = by_id[q.image]
            first = q.text.split("\n")[0]
            named = [n for n in about.findall(first) if n in NOUNS]
            if task == "naming":
                assert q.asked == 0
            elif task == "article":
                assert scene.objects[q.asked].colour == first.split()[3]
            elif first == "Which object is in the image?":
                assert scene.objects[q.asked].noun == lettered(q.text)[1][q.answer]
            elif named and named[0] in nouns(scene):
                assert scene.objects[q.asked].noun == named[0]
            else:
                assert q.asked == -1


def test_the_right_letter_is_each_letter_equally_often(asked):
    for task, letters in (("seed", "abcd"), ("mmb", "abcd"), ("rwqa", "abc")):
        given = Counter(q.answer for q in asked[task] if LETTER_END in q.text)
        assert set(given) == set(letters)
        spread = 2.6 * (1 / len(letters) / given.total()) ** 0.5
        for n in given.values():
            assert n / given.total() == pytest.approx(1 / len(letters), abs=spread)


def test_yes_and_no_are_told_apart_by_nothing_but_the_image(asked):
    """Half of each; and in MME every category by itself is half and half."""
    for task in (*POPE, "mme"):
        for group in {q.group for q in asked[task]}:
            given = Counter(q.answer for q in asked[task] if q.group == group)
            assert given["yes"] == given["no"] > 0
            assert all(q.options == 2 for q in asked[task])


def test_questions_follow_from_the_scene(pool, asked):
    for scene in (pool[0], pool[105], pool[145], pool[170]):
        again = redraw(scene.id)
        for task in TASKS:
            assert questions([again], task) == [q for q in asked[task] if q.image == scene.id]


def test_training_asks_ever_new_questions(pool):
    rng = np.random.default_rng(0)
    scene = next(s for s in pool if len(s.objects) > 3 and s.word)
    for task in ("pope-random", "mme", "mmb", "seed", "rwqa"):
        assert len({tuple(q.text for q in ask(scene, task, rng)) for _ in range(6)}) > 2


def test_every_task_asks_and_an_unknown_one_does_not(asked, pool):
    for task in TASKS:
        assert asked[task] and {q.task for q in asked[task]} == {task}
    with pytest.raises(RedlibError, match="task must be one of"):
        questions(pool, "riddle")


def test_default_scenes_are_not_asked_what_they_cannot_carry(pool):
    """No withheld pair, no other shape, and outside crowded scenes no Flickr."""
    plain = [s for s in pool if re.fullmatch(r"\w+-\d+", s.id)]
    assert len(plain) == 100 and {s.level for s in plain} == set(LEVELS)
    assert questions(plain, "nocaps") == questions(plain, "rwqa") == []
    assert questions([s for s in plain if s.level != "crowded"], "flickr") == []


def test_the_tokenizer_knows_every_word(asked):
    """Text and answer of every question, one token a word, none unknown."""
    tokenizer = language.make_tokenizer()
    texts = {text for rows in asked.values() for q in rows for text in (q.text, q.answer)}
    assert len(texts) > 1000
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        words = re.findall(r"[A-Za-z]+(?:'[a-z]+)?|[^\sA-Za-z]", text)
        assert tokenizer.convert_ids_to_tokens(ids) == [word.lower() for word in words]
    assert tokenizer.unk_token == "<unk>" and "<unk>" not in " ".join(texts)
