"""The published methods through the installer: budgets, native counts, rows in the language model's
order. What they choose is tested beside each method."""

import pruning
import pytest
import torch
from pruning import KINDS, Maker, model_of, picture

import redlib
from redlib.errors import RedlibError


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    pruning.save(request.param, folder)
    return request.param, model_of(folder), Maker(request.param, folder)


@pytest.mark.parametrize("name", ["prumerge", "prumerge+", "visionzip", "divprune"])
def test_published_methods_in_a_stock_model(made, name):
    kind, model, maker = made
    inputs = maker(["USER: <image> what is this ?"], [[picture(1)]])
    how = {"per": "tile"} if kind == "llava" else {"per": "tile", "packing": "split"}
    length = inputs["input_ids"].shape[1]
    for keep in (8, None) if redlib.prune.METHODS[name].native else (8,):
        with redlib.pruned(model, name, keep=keep, **how) as run:
            ids = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
        (kept,) = run.last
        assert torch.equal(ids[:, :length], inputs["input_ids"]) and ids.shape[1] == length + 3
        assert kept.before % 25 == 0
        if keep is not None:
            assert kept.after == 8 * kept.before // 25
    if kind != "llava" and name != "divprune":
        with redlib.pruned(model, name, keep=8, per="tile"):
            with pytest.raises(RedlibError, match="say packing='split'"):
                model.generate(**inputs)


@pytest.mark.parametrize("name", ["prumerge", "visionzip", "divprune"])
def test_published_methods_on_films(made, name):
    kind, model, maker = made
    if kind != "llava_onevision":
        pytest.skip("only OneVision sees films")
    inputs = maker(["key what is this ?"], films=[[picture(1), picture(2)]])
    with torch.no_grad(), redlib.pruned(model, name, keep=5, per="tile") as run:
        model(**inputs)
    assert run.report == "18 -> 10 visual tokens"
