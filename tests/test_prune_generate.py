"""Other ways of `generate` give a pruned model the answers that the usual way gives it."""

from types import SimpleNamespace

import pruning
import pytest
import torch
from pruning import IMAGES, KINDS, TEXTS, Maker, model_of
from transformers import CompileConfig

import redlib
from redlib.errors import RedlibError

METHODS = ("random", "fastv", "sparsevlm")
HOW = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp(request.param)
    pruning.save(request.param, folder)
    return SimpleNamespace(
        model=model_of(folder), twin=model_of(folder), maker=Maker(request.param, folder)
    )


def pruned(made, method):
    return redlib.pruned(made.model, method, keep=4, per="image")


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_of_fixed_length(made, method):
    """In a padded batch, with beams too."""
    inputs = made.maker(TEXTS, IMAGES)
    with pruned(made, method):
        for more in ({}, {"num_beams": 2}):
            usual = made.model.generate(**inputs, **HOW, **more)
            static = made.model.generate(**inputs, **HOW, **more, cache_implementation="static")
            assert torch.equal(static, usual)


def test_a_compiled_forward(tmp_path):
    """As on a GPU, where a cache of fixed length makes `generate` compile, in one graph; not what
    prunes inside, which stays as it is."""
    pruning.save("llava", tmp_path)
    made = SimpleNamespace(model=model_of(tmp_path), maker=Maker("llava", tmp_path))
    inputs = made.maker(TEXTS, IMAGES)
    for method in ("random", "fastv"):
        config = CompileConfig(backend="eager", fullgraph=method == "random")
        config._compile_all_devices = True
        how = {"cache_implementation": "static", "compile_config": config, "max_new_tokens": 3}
        with pruned(made, method):
            usual = made.model.generate(**inputs, max_new_tokens=3)
            assert torch.equal(made.model.generate(**inputs, **how), usual)


@pytest.mark.parametrize("method", METHODS)
def test_words_that_another_guesses(made, method):
    """The unpruned twin guesses some words right and others wrong; so does looking them up. A
    placeholder must not be among the guesses, which the stock model takes for an image."""
    inputs, image = made.maker(TEXTS[:1], IMAGES[:1]), made.model.config.image_token_id
    with pruned(made, method) as run:
        usual = made.model.generate(**inputs, **HOW, suppress_tokens=[image])
        kept = run.last[0].kept.tolist()
        for how in ({"assistant_model": made.twin}, {"prompt_lookup_num_tokens": 3}):
            again = made.model.generate(**inputs, **HOW, **how, suppress_tokens=[image])
            assert torch.equal(again, usual) and run.last[0].kept.tolist() == kept


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_read_in_pieces(made, method):
    inputs = made.maker(TEXTS, IMAGES)
    with pruned(made, method) as run:
        usual = made.model.generate(**inputs, **HOW)
        if run.method.inside is None:
            pieces = made.model.generate(**inputs, **HOW, prefill_chunk_size=7)
            assert torch.equal(pieces, usual)
        else:
            with pytest.raises(RedlibError, match=f"{method} .* leave out prefill_chunk_size"):
                made.model.generate(**inputs, **HOW, prefill_chunk_size=7)
        assert torch.equal(made.model.generate(**inputs, **HOW), usual)
