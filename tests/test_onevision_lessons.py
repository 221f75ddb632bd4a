"""What OneVision is taught about two images, composites and films: true, and seen as it will be."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from redlib import models
from redlib.modelcard import evaluation, several
from redlib.tabletop import (
    architectures,
    decoder,
    films,
    language,
    lessons,
    lessons_several,
    marks,
    pairs,
    sources,
    training,
    world,
)
from redlib.tabletop.questions import LETTER, LETTERS, NUMBERS, YES_NO, options

CPU = torch.device("cpu")
NAME = "tiny-llava-onevision"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """An untrained OneVision whose newline is not zero, from its stock files."""
    folder = tmp_path_factory.mktemp("untrained") / NAME
    processor = architectures.make_processor(NAME)
    model = architectures.make_model(NAME, processor.tokenizer)
    with torch.no_grad():
        model.model.image_newline.normal_(generator=torch.Generator().manual_seed(0))
    training.export(model, processor, folder)
    return models.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def made(vlm, tmp_path_factory):
    """A few inputs of each kind."""
    folder, few = tmp_path_factory.mktemp("sources"), {"split": "calibration"}
    return {
        "mantis": sources.pairs(vlm.model, folder, 2, CPU, schema="mantis", **few),
        "muir": sources.pairs(vlm.model, folder, 4, CPU, schema="muir", **few),
        "busy": sources.pairs(vlm.model, folder, 2, CPU, schema="busy", **few),
        "composites": sources.composites(vlm.model, folder, 2, CPU, **few),
        "films": sources.films(vlm.model, folder, 2, CPU, **few),
    }


def packed(vlm, source, i: int) -> torch.Tensor:
    with torch.no_grad():
        return source.pack(vlm.model, np.array([i]), [np.arange(source.tokens)], CPU)[0]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Features go through half precision on disk."""
    return one.shape == other.shape and bool((one - other).abs().max() < 2e-3 * other.abs().max())


def test_packed_pairs_are_what_the_model_receives(vlm, made):
    drawn = {schema: pairs.pairs("calibration", 4, schema) for schema in pairs.KINDS}
    drawn["busy"] = pairs.busy_pairs("calibration", 2)
    for schema, i in (("mantis", 1), ("muir", 2), ("busy", 0), ("busy", 1)):
        pair = drawn[schema][i]
        literal = vlm.several([scene.image for scene in pair.scenes])
        assert same(packed(vlm, made[schema], i), literal) and len(literal) == 1460
        assert made[schema].cards[i].scene.text == pair.text
    assert made["muir"].features.shape == (4, 729, 192)
    assert torch.equal(packed(vlm, made["muir"], 2), packed(vlm, made["muir"], 3))
    assert not torch.equal(packed(vlm, made["muir"], 1), packed(vlm, made["muir"], 2))


def test_packed_composites_are_what_the_model_receives(vlm, made):
    game = pairs.composites("calibration", 2)[1]
    literal = vlm.visual(vlm.encode([game.image]).tokens[0])
    assert same(packed(vlm, made["composites"], 1), literal) and len(literal) == 730


def test_packed_films_are_what_the_model_receives(vlm, made):
    """Although frames that show the same are computed once."""
    film = films.films("calibration", 2)[1]
    literal = vlm.film(film.images)
    assert same(packed(vlm, made["films"], 1), literal) and len(literal) == 3137
    assert 4 <= len(made["films"].features) < 32
    for f in range(15):
        alike = (film.pixels[f] == film.pixels[f + 1]).all()
        tiles = made["films"].tiles[1]
        assert (tiles[f] == tiles[f + 1]) == alike


def shares(labels: np.ndarray, k: int) -> np.ndarray:
    """(27, 27): of every patch of an image squeezed to 384 pixels the share with a label."""
    rows, cols = (np.arange(n) * 384 // n // 14 for n in labels.shape)
    return np.array(
        [[(labels[np.ix_(rows == r, cols == c)] == k).mean() for c in range(27)] for r in range(27)]
    )


def test_cards_of_pairs_follow_the_masks(made):
    for i, pair in enumerate(pairs.pairs("calibration", 2, "mantis")):
        c = made["mantis"].cards[i]
        first, second = pair.scenes
        assert c.seen.shape == (len(first.objects) + len(second.objects), 1458) and c.cells == 27
        for k in range(len(c.seen)):
            here, there = (first, second) if k < len(first.objects) else (second, first)
            mine, other = np.split(c.seen[k], 2)[:: 1 if here is first else -1]
            label = 1 + (k if here is first else k - len(first.objects))
            assert (mine == (shares(here.instance, label) > 0.5).ravel()).all()
            assert not other.any() and there is not here
        cards = [(shares(scene.instance, 255) > 0.5).ravel() for scene in pair.scenes]
        assert (c.written == np.concatenate(cards)).all()


def test_cards_of_composites_follow_the_masks(made):
    games = pairs.composites("calibration", 2)
    for game, c in zip(games, made["composites"].cards, strict=True):
        first, second = game.scenes
        gap = np.zeros((8, 336) if game.stacked else (336, 8), np.uint8)
        axis = 0 if game.stacked else 1
        blank = np.zeros_like(first.instance)
        for k in range(len(c.seen)):
            one = first.instance == k + 1 if k < len(first.objects) else blank
            two = second.instance == k + 1 - len(first.objects) if one is blank else blank
            labels = np.concatenate([one, gap, two], axis).astype(int)
            assert (c.seen[k] == (shares(labels, 1) > 0.5).ravel()).all()
        assert c.seen.any()


def test_cards_of_films_follow_the_masks(made):
    film, c = films.films("calibration", 2)[1], made["films"].cards[1]
    assert c.seen.shape == (len(film.objects), 3136) and c.cells == 14
    for k in range(len(film.objects)):
        for f in (0, 7, 15):
            patches = torch.from_numpy(shares(film.instances[f], k + 1))[None, None]
            pooled = F.interpolate(patches, size=(14, 14), mode="bilinear")
            assert (c.seen[k, 196 * f : 196 * (f + 1)] == (pooled > 0.5).flatten().numpy()).all()
    assert c.seen.any(1).sum() >= len(film.objects) - 1


def test_places_are_the_same_in_both_images_and_in_the_frames_chosen(made):
    rng = np.random.default_rng(0)
    for kind in ("rich", "few", "more", "all"):
        _, kept, asked = lessons_several.on_pairs(made["mantis"], kind, rng)
        for view in kept:
            first, second = view[view < 729], view[view >= 729]
            assert (first == second - 729).all() and len(first) >= lessons.MIN_TOKENS
        assert len({len(view) for view in kept}) == 1 and len(asked) == len(kept)
        _, kept, asked = lessons_several.on_films(made["films"], kind, rng)
        for view in kept:
            frames, places = np.divmod(view, 196)
            assert {0, 15} <= set(frames) and (np.diff(view) > 0).all()
            assert len({tuple(places[frames == f]) for f in set(frames)}) == 1
        _, kept, _ = lessons_several.on_composites(made["composites"], kind, rng)
        assert all(len(view) == 729 or kind == "rich" for view in kept)


def test_questions_keep_their_right_option():
    rng = np.random.default_rng(0)
    seen = set()
    for pair in pairs.pairs("calibration", 40, "muir", start=200):
        lines = pair.text.split("\n")
        right = lines[1 + LETTERS.index(pair.answer.upper())][3:]
        text, answer = lessons_several.put(pair.text, pair.answer, rng)
        if "\n" not in text:
            assert (text, answer) == (lines[0], right) and right != pairs.NONE
        else:
            others = text.split("\n")
            assert sorted(line[3:] for line in others[1:-1]) == sorted(
                each[3:] for each in lines[1:-1]
            )
            assert others[1 + LETTERS.index(answer.upper())][3:] == right
            assert (others[0], others[-1]) == (lines[0], lines[-1])
        seen.add(("\n" in text, right == pairs.NONE))
    assert seen == {(True, True), (True, False), (False, False)}
    assert lessons_several.put("Is it red?", "no", rng) == ("Is it red?", "no")


def test_what_changed_is_what_was_planted():
    for pair in pairs.pairs("calibration", 60, "mantis", start=300):
        found = lessons_several.difference(*pair.scenes)
        if pair.kind not in ("moved", "new", "missing", "recoloured"):
            assert found is None
            continue
        options = [line[3:] for line in pair.text.split("\n")[1:-1]]
        assert found[0] == pair.kind
        assert options[LETTERS.index(pair.answer.upper())] in found[1:]
        assert pairs.differences_named(pairs.clause(*found)) == {found}


def test_answers_about_two_scenes_are_true():
    rng = np.random.default_rng(1)
    checked = 0
    for game in pairs.composites("calibration", 30, start=50):
        nouns = [[o.noun for o in scene.objects] for scene in game.scenes]
        rows = dict(lessons_several.about_composite(game, rng))
        assert rows[pairs.SPOT_THE_DIFFERENCE] == game.answer
        which = rows["Which image shows which object?"].rstrip(".").split(", ")
        for noun, place in (part.split(" ") for part in which):
            shown = [noun in each for each in nouns]
            assert (
                place
                == {(1, 0): "first", (0, 1): "second", (1, 1): "both", (0, 0): "no"}[
                    tuple(map(int, shown))
                ]
            )
            checked += 1
        for text, answer in rows.items():
            if text.startswith("What color is the "):
                words = text.rstrip("?").split(" ")
                scene = game.scenes[("first", "second").index(words[-2])]
                assert [o.colour for o in scene.objects if o.noun == words[4]] == [answer]
                checked += 1
    assert checked > 200


def test_what_is_asked_about_busy_pairs_is_true():
    rng = np.random.default_rng(5)
    seen = Counter()
    for pair in pairs.busy_pairs("calibration", 100, start=600):
        first, second = pair.scenes
        changes = {words[2 + (words[0] == "new")]: words
                   for words in pairs.differences_named(pair.answer)}  # fmt: skip
        once = [{o.noun: o for o in scene.objects} for scene in pair.scenes]
        total = [len(scene.objects) for scene in pair.scenes]
        for text, answer in lessons_several.about_pair(pair, rng):
            question, *lines = text.split("\n")
            if lines:
                answer = lines[LETTERS.index(answer.upper())][3:]
            words = question.removesuffix(f" {YES_NO}").rstrip("?").split(" ")
            if question == pairs.BOTH:
                seen["both"] += both_hold(pair.scenes, answer)
            elif question == "What happens to the objects?":
                for noun, act in (part.split(" ", 1) for part in answer.rstrip(".").split(", ")):
                    kind, *_, detail = changes.get(noun, ("stays", ""))
                    assert (
                        act
                        == {
                            "stays": "stays unchanged",
                            "missing": "leaves",
                            "new": "appears",
                            "moved": f"moves {detail}",
                            "recoloured": f"changes its color {detail}",
                        }[kind]
                    )
                    seen[kind] += 1
            elif "same" in words:
                same = {
                    "number": total[0] == total[1],
                    "ground": first.ground == second.ground,
                    "color": len({each.get(words[2], scene.objects[0]).colour
                                  for each, scene in zip(once, pair.scenes, strict=True)}) == 1,
                }  # fmt: skip
                (kind,) = same.keys() & set(words)
                assert answer == ("yes" if same[kind] else "no")
                seen[kind, answer] += 1
            elif words[:2] == ["Which", "way"]:
                assert changes[words[4]] == ("moved", *changes[words[4]][1:3], answer)
                seen["way", bool(lines)] += 1
            elif words[:2] == ["Which", "object"]:
                kind = words[3] if words[2] == "is" else "recoloured"
                assert changes[answer][0] == kind
                seen["which", kind] += 1
            elif question.startswith("How many objects are in the two"):
                assert answer == NUMBERS[sum(total)] or answer == pairs.NONE
            elif question.startswith("How many objects"):
                assert answer == NUMBERS[total[words[6] == "second"]]
                seen["number"] += 1
    for kind in ("number", "ground", "color"):
        assert min(seen[kind, "yes"], seen[kind, "no"]) >= 10
    assert len(seen) == 18, seen


def both_hold(scenes, answer: str) -> int:
    """Assert a list of what each noun is like in two scenes; how many nouns it names."""
    told = dict(part.split(" ", 1) for part in answer.rstrip(".").split(", "))
    shown = [[o.noun for o in scene.objects] for scene in scenes]
    single = {noun for noun in {*shown[0], *shown[1]} if max(of.count(noun) for of in shown) == 1}
    assert told.keys() == single
    for noun, said in told.items():
        expected = []
        for scene in scenes:
            found = [o for o in scene.objects if o.noun == noun]
            if not found:
                expected.append("no")
                continue
            middle = len(scene.instance) / 2
            right, down = (at - middle for at in found[0].centre)
            away = len(scene.instance) / 10
            expected += [found[0].colour, found[0].size]
            expected += ["top"] * (down < -away) + ["bottom"] * (down > away)
            expected += ["left"] * (right < -away) + ["right"] * (right > away)
        assert said.split(" ") == expected, (noun, said, expected)
    return len(told)


def test_what_happens_to_an_object_is_what_the_film_shows():
    rng = np.random.default_rng(2)
    for film in films.films("calibration", 30, start=70):
        rows = dict(lessons_several.about_film(film, rng))
        fates = rows["What happens to the objects?"].rstrip(".").split(", ")
        acts = {part.split(" ")[0]: part.split(" ", 1)[1] for part in fates}
        assert sorted(acts) == sorted(o.noun for o in film.objects)
        still = [noun for noun, act in acts.items() if act == "stays unchanged"]
        actors = [film.objects[event.object].noun for event in film.events]
        assert sorted(still + actors) == sorted(acts)
        for when, frame in (("start", 0), ("end", 15)):
            said = rows[f"Which objects are there at the {when}?"].rstrip(".").split(", ")
            there = {part.split(" ")[0] for part in said if part.split(" ")[1] == "yes"}
            assert there == {film.objects[k].noun for k in film.present(frame)}
        ends = [SimpleNamespace(objects=[film.state(k, f) for k in film.present(f)],
                                instance=film.instances[f]) for f in (0, 15)]  # fmt: skip
        both_hold(ends, rows[films.BOTH])


def test_every_word_is_known_and_old_words_keep_their_ids():
    plain = architectures.make_processor("tiny-llava-1.5").tokenizer
    tokenizer = architectures.make_processor(NAME).tokenizer
    known = language.vocabulary()
    assert tokenizer.convert_tokens_to_ids(known) == list(range(len(known)))
    assert plain.convert_tokens_to_ids(known) == list(range(len(known)))
    assert tokenizer.convert_tokens_to_ids("<video>") == len(tokenizer) - 1
    rng = np.random.default_rng(3)
    rows = []
    for schema in pairs.KINDS:
        for pair in pairs.pairs("calibration", 24, schema, start=900):
            rows += [(pair.text, pair.answer), *lessons_several.about_pair(pair, rng)]
    for pair in pairs.busy_pairs("calibration", 12, start=900):
        rows += lessons_several.about_pair(pair, rng)
    for game in pairs.composites("calibration", 12, start=900):
        rows += lessons_several.about_composite(game, rng)
    for film in films.films("calibration", 24, start=900):
        rows += lessons_several.about_film(film, rng)
    for text, answer in rows:
        assert tokenizer.unk_token_id not in tokenizer(f"{text} {answer}").input_ids, (text, answer)


def test_a_step_weighs_no_noun_that_chance_names_next():
    processor = architectures.make_processor(NAME)
    writer = lessons.Writer(processor)
    (pair,) = pairs.pairs("calibration", 1, "mantis", start=5)
    rows = lessons_several.about_pair(pair, np.random.default_rng(0))
    made = lessons.batch(writer, [rows], 10, CPU)
    words = processor.tokenizer.convert_ids_to_tokens(made["target"][0].clamp(min=0))
    lists = [k + 1 for k, (text, _) in enumerate(rows) if text in pairs.CHECKLISTS]
    assert len(lists) == 2
    for word, part, weight, target in zip(
        words, made["part"][0].tolist(), made["weight"][0].tolist(), made["target"][0].tolist(),
        strict=True,
    ):  # fmt: skip
        if target != -100 and part in lists:
            assert weight == (0.0 if word in language.NOUNS else 1.0)


def test_lettered_questions_about_any_two_scenes_are_true():
    rng = np.random.default_rng(4)
    seen = Counter()
    for pair in pairs.pairs("calibration", 40, "mantis", start=500):
        shown = [{o.noun for o in scene.objects} for scene in pair.scenes]
        for text, answer in lessons_several._offered(pair.scenes, rng):
            question, *lines = text.split("\n")
            offered = [line[3:] for line in lines[:-1]]
            right = offered[LETTERS.index(answer.upper())]
            assert len(set(offered)) == 4 and lines[-1] == LETTER
            words = question.rstrip("?").split(" ")
            if question.startswith("Which image shows"):
                place = tuple(words[-1] in nouns for nouns in shown)
                true = {
                    (True, False): "the first image",
                    (False, True): "the second image",
                    (True, True): "both images",
                    (False, False): pairs.NONE,
                }[place]
            elif question.startswith("How many"):
                true = NUMBERS[sum(len(scene.objects) for scene in pair.scenes)]
            else:
                scene = pair.scenes[("first", "second").index(words[-2])]
                true = scene.word
                if words[1] == "color":
                    true = next(o.colour for o in scene.objects if o.noun == words[4])
            assert right == (true if true in offered else pairs.NONE)
            seen[words[1], right == pairs.NONE] += 1
    assert min(seen[kind, none] for kind in ("image", "color", "many") for none in (0, 1)) > 1
    assert min(seen["word", none] for none in (False, True)) > 1


def test_options_are_judged_where_they_end():
    processor = architectures.make_processor(NAME)
    writer = lessons.Writer(processor)
    text = options("Which?", ["the cup moves", "red", pairs.NONE, "the cup leaves"])
    rows = [("What color is the cup?", "red"), (text, "d")]
    made = lessons.batch(writer, [rows, rows[:1]], 3, CPU)
    words = processor.tokenizer.convert_ids_to_tokens(made["ids"][0])
    judged = [(w, float(t)) for w, t in zip(words, made["judged"][0], strict=True) if t >= 0]
    assert judged == [("moves", 0.0), ("red", 0.0), ("leaves", 1.0)]
    assert (made["judged"][1] == -1).all()
    judge = decoder.Judge(2)
    with torch.no_grad():
        judge.reading.weight.copy_(torch.tensor([[1.0, 0.0]]))
        judge.reading.bias.fill_(0.5)
    between = torch.zeros(2, made["ids"].shape[1], 2)
    between[made["judged"] == 1] = 1.5
    literal = (2 * np.log(1 + np.exp(0.5)) + np.log(1 + np.exp(-2.0))) / 3
    assert abs(float(judge.loss(between, made["judged"]).detach()) - literal) < 1e-6


@pytest.mark.parametrize("times", [1, 2])
def test_tokens_of_a_film_keep_the_places_of_a_whole_one(vlm, made, times):
    """Frames 0, 5 and 15, two places of each, and a newline; then words."""
    writer = lessons.Writer(vlm.processor)
    kept = np.array([3, 70, 5 * 196 + 3, 5 * 196 + 70, 15 * 196 + 3, 15 * 196 + 70])
    visual = made["films"].pack(vlm.model, np.array([0]), [kept], CPU)
    packed = lessons.batch(writer, [[("Which object appears?", "cup")]], visual.shape[1], CPU)
    words = packed["positions"][0, len(writer.prefix) + 7 :] - packed["positions"][0, -1]
    lessons.stretch(packed, [kept], made["films"], times, len(writer.prefix))
    head, found = len(writer.prefix), packed["positions"][0].tolist()
    assert found[:head] == list(range(head))
    frames = (0, 5 * times, 15 * times)
    assert found[head : head + 6] == [head + 196 * f + place for f in frames for place in (3, 70)]
    assert found[head + 6] == head + 16 * times * 196  # where a whole film has its newline
    after = packed["positions"][0, head + 7 :]
    assert after[0] == found[head + 6] + 1 and (after - after[-1] == words).all()


def test_marks_tell_images_apart_and_how_late_a_frame_is(vlm):
    """On inputs as the model receives them: one vector of the stated size on every token of the
    second image, hardly anything in the first and on words; in a film the two clocks."""
    model = architectures.make_model(NAME, vlm.processor.tokenizer).eval()
    model.load_state_dict(vlm.model.state_dict())
    marks.silence(model)
    scenes = world.scenes("calibration", 4)
    rows = [vlm.several([scene.image for scene in pair]) for pair in (scenes[:2], scenes[2:])]
    opening = torch.tensor(lessons.Writer(vlm.processor).prefix)
    table = model.get_input_embeddings().weight.detach()

    def added(visual: torch.Tensor, words: torch.Tensor | slice = slice(10, 14)) -> torch.Tensor:
        x = torch.cat((table[opening], visual, table[words]))[None]
        with torch.no_grad():
            states = model.model.language_model(inputs_embeds=x, output_hidden_states=True)
        return (states.hidden_states[1] - x)[0]

    assert not added(rows[0]).any()
    newline = 729 * 2  # one behind each image
    tokenizer = vlm.processor.tokenizer
    tokens = torch.cat((rows[1][:729], rows[1][730 : newline + 1]))
    marks.write(model, tokenizer, tokens, opening[:2])
    head = len(opening)
    columns = model.model.language_model.layers[0].self_attn.o_proj.weight.detach().T
    mark, coarse, fine = columns[[0, 64, 128]]
    assert torch.equal(mark, coarse) and abs(float(mark @ fine)) < 1e-3 * float(mark @ mark)
    assert abs(float(mark.square().mean().sqrt()) - marks.SIZE) < 1e-4

    def clock(at: torch.Tensor, pair: int, steep: float, middle: float) -> torch.Tensor:
        return torch.sigmoid(steep * ((at * 500_000.0 ** (-pair / 32)).sin() - middle))

    found, at = added(rows[0]), torch.arange(head, head + 730 + 729)
    told = found[at] @ mark / (mark @ mark) - clock(at, 20, 10.0, 0.38)
    first, second = told[:729], told[730:]
    assert first.abs().max() < 0.1 and (second - 1).abs().max() < 0.1
    assert found[-4:].square().mean(1).sqrt().max() < 0.1 * marks.SIZE  # words
    film, at = vlm.film([scene.image for scene in scenes] * 8), torch.arange(head, head + 32 * 196)
    found = added(film)[at]
    for direction, told in ((mark, (20, 10.0, 0.38)), (fine, (21, 3.0, 0.45))):
        seen = found @ direction / (direction @ direction)
        assert (seen - clock(at, *told)).abs().max() < 0.2
    assert not any(p.requires_grad for p in model.model.language_model.layers[0].parameters())

    def asked(text: str) -> torch.Tensor:
        words = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return added(rows[0], words)[-len(words) :]

    when = columns[192]
    assert abs(float(when @ fine)) < 1e-3 * float(fine @ fine) and abs(float(when @ mark)) < 1e-3
    size = table.square().mean(1).sqrt().mean()
    assert abs(float(when.square().mean().sqrt() / (marks.LOUD * size)) - 1) < 1e-4
    for word, sign in (("start", -1), ("first", -1), ("end", 1), ("last", 1), ("second", 1)):
        told = asked(f"where is the cup at the {word} ?") @ when / (when @ when)
        assert told[:-2].abs().max() < 0.05 and (told[-2:] - sign).abs().max() < 0.05
    told = asked("which , the first or the second ?") @ when / (when @ when)
    assert told[:3].abs().max() < 0.05 and abs(float(told[-1])) < 0.05  # both are named: neither


def scores_of(model, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    visual, text = model.model.multi_modal_projector(features), model.get_input_embeddings()(ids)
    rows = torch.cat((visual, text), 1)
    return model.lm_head(model.model.language_model(inputs_embeds=rows).last_hidden_state)


def test_onevision_goes_on_from_the_first_model(monkeypatch):
    """With the tower of the first model's kind its decoder gives the same scores: here the
    projector reads features that are an affine map of CLIP's."""
    first = models.load("tiny-llava-1.5", device="cpu")
    tokenizer, known = architectures.make_processor(NAME).tokenizer, first.model
    words = list(first.processor.tokenizer.get_vocab())
    model = architectures.make_model(NAME, tokenizer).eval()
    generator = torch.Generator().manual_seed(0)
    slope, shift = torch.randn(192, 192, generator=generator), torch.randn(192, generator=generator)
    monkeypatch.setattr(decoder, "_translated", lambda siglip, clip: (slope, shift))
    decoder.go_on(model, tokenizer, first)
    ours = torch.randn(1, 6, 192, generator=generator)
    text = "is the cup red or blue ?"
    with torch.no_grad():
        mine, theirs = (
            scores_of(each, x, names(text, return_tensors="pt").input_ids)[
                ..., names.convert_tokens_to_ids(words)
            ]
            for each, x, names in (
                (model, ours, tokenizer),
                (known, ours @ slope + shift, first.processor.tokenizer),
            )
        )
    assert (mine - theirs).abs().max() < 1e-3 * theirs.abs().max()
    assert theirs.std() > 0.1


def test_the_evaluation_at_a_small_scale(vlm, monkeypatch):
    """On the untrained checkpoint, without the single-token probe, whose code knows any grid."""
    monkeypatch.setattr(evaluation, "_probe", lambda *arguments: [])
    monkeypatch.setattr(evaluation, "QUICK", 8)
    # What is not trained never ends an answer.
    monkeypatch.setattr(evaluation, "LONGEST", 3)
    monkeypatch.setattr(several, "LONGEST", 3)
    monkeypatch.setattr(evaluation, "evaluate", partial(evaluation.evaluate, max_new_tokens=3))
    monkeypatch.setattr(several, "COUNTED", 6)
    monkeypatch.setattr(several, "FRAMES", (16,))
    for name in ("PROBED", "DIVERGED", "SAID", "SAID_MORE", "PAIRS", "GAMES", "FILMS"):
        least = {"FILMS": 1, "PAIRS": 4, "SAID": 8}.get(name, 2)
        monkeypatch.setattr(evaluation, name, getattr(evaluation, name) | {8: least})
    table = evaluation.measure(vlm.name, quick=True)
    rows = table.set_index("metric")
    assert rows.index.is_unique
    assert rows.loc["pope, all tokens", "bar"] == 0.93
    for metric, bar in several.BARS.items():
        if "32" not in metric:
            assert rows.loc[metric, "bar"] == bar
            assert rows.loc[metric, "pass"] == ("yes" if rows.loc[metric, "value"] >= bar else "no")
    assert rows.loc["two images, muir: mean over kinds, by chance", "value"] == 0.5
    assert rows.loc["two images, muir: holder", "n"] == 2
    assert 0.25 <= rows.loc["video: mean over subtasks, by chance", "value"] <= 0.5
    for label in ("all tokens", "none tokens", "always the same"):
        assert 0 <= rows.loc[f"spot the difference, share found, {label}", "value"] <= 1
    always = rows.loc["spot the difference, invented per picture, always the same"]
    assert 0 <= always["value"] <= 1 and always["n"] == 2
