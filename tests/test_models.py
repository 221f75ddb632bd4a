import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import literal
import numpy as np
import pytest
import torch
from conftest import PROMPT, random_image
from PIL import Image

import redlib
from redlib.errors import RedlibError
from redlib.hub import check_folder, locate, revision_of
from redlib.models import VLM, _dtype, load, relative_layers


def test_facts_about_the_checkpoint(tiny_vlm: VLM, tiny_folder: Path):
    assert (tiny_vlm.grid.height, tiny_vlm.grid.width, tiny_vlm.width) == (5, 5, 48)
    assert (tiny_vlm.repeats, tiny_vlm.newline, tiny_vlm.sight.side) == (1, None, 70)
    assert not tiny_vlm.model.training
    weights = (tiny_folder / "model.safetensors").read_bytes()
    settings = ("config.json", "generation_config.json", "processor_config.json",
                "preprocessor_config.json", "chat_template.jinja", "tokenizer.json",
                "tokenizer_config.json", "special_tokens_map.json")  # fmt: skip
    named = [(tiny_folder / name) for name in settings if (tiny_folder / name).is_file()]
    literal = weights + b"".join(b"\n%s\n" % p.name.encode() + p.read_bytes() for p in named)
    assert tiny_vlm.revision == hashlib.sha256(literal).hexdigest()


def test_settings_of_a_folder_are_part_of_its_revision(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    before = revision_of(str(tmp_path / "model"))
    (tmp_path / "model" / "README.md").write_text("A card.")
    assert revision_of(str(tmp_path / "model")) == before == revision_of(str(tiny_folder))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"x": -1}))
    assert revision_of(str(tmp_path / "model")) != before
    (shipped,) = Path(locate("tiny-llava-1.5")).glob("*.safetensors")
    assert revision_of("tiny-llava-1.5") == hashlib.sha256(shipped.read_bytes()).hexdigest()


def test_encode_equals_the_stock_stages(vlm: VLM, bars: dict[str, float]):
    images = [random_image(seed, width=90 + 10 * seed) for seed in range(9)]  # more than one batch
    encoded = vlm.encode(images)
    assert encoded.tokens.shape == (9, 25, 48)
    for image, tokens, cosine, norm in zip(
        images, encoded.tokens, encoded.cls_similarity, encoded.norms, strict=True
    ):
        expected, state = literal.visual_tokens(vlm.model, vlm.processor, image)
        torch.testing.assert_close(tokens, expected, atol=bars["logits"], rtol=0)
        cls, patches = state[0].double(), state[1:].double()
        by_hand = (patches @ cls) / (patches.norm(dim=1) * cls.norm())
        assert by_hand.std() > 0.01
        torch.testing.assert_close(cosine.double(), by_hand, atol=1e-6, rtol=0)
        torch.testing.assert_close(norm.double(), patches.norm(dim=1), rtol=1e-5, atol=0)


def test_prompt_is_what_the_processor_feeds_the_model(tiny_vlm: VLM):
    text = f"USER: <image>\n{PROMPT} ASSISTANT:"
    ids = tiny_vlm.processor(text=text, images=random_image(0), return_tensors="pt")["input_ids"][0]
    image = tiny_vlm.model.config.image_token_id
    before, after = tiny_vlm.prompt(PROMPT)
    assert before.tolist() == ids[: ids.tolist().index(image)].tolist()
    assert after.tolist() == ids[(ids == image).nonzero()[-1] + 1 :].tolist()
    assert (ids == image).sum() == tiny_vlm.grid.size
    assert len(before) == 2 and len(after) == 7


def test_embeddings_words_and_pad(tiny_vlm: VLM):
    table = tiny_vlm.model.get_input_embeddings().weight
    tokenizer = tiny_vlm.processor.tokenizer
    assert torch.equal(tiny_vlm.embed([5, 7]), table[[5, 7]])
    assert torch.equal(tiny_vlm.pad, table[tokenizer.pad_token_id])
    assert tiny_vlm.pad.norm() > 0
    assert tiny_vlm.word(tokenizer.convert_tokens_to_ids("cup")) == "cup"


def test_pad_token_can_be_named(tiny_folder: Path):
    vlm = load(str(tiny_folder), device="cpu", pad_token_id=0)
    assert torch.equal(vlm.pad, vlm.model.get_input_embeddings().weight[0])


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, (1, 16, 30)), (28, (1, 14, 26)), (6, (0, 3, 5)), (3, (0, 1, 2))]
)
def test_layers_lie_at_the_relative_depth_of_the_paper(depth: int, layers: tuple[int, ...]):
    assert relative_layers(depth) == layers


def test_half_precision_checkpoints_stay_out_of_bfloat16():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert _dtype("auto", cpu, torch.bfloat16) == torch.float32
    assert _dtype("auto", cuda, torch.bfloat16) == torch.float16
    assert _dtype("auto", cuda, torch.float32) == torch.float32
    assert _dtype("bfloat16", cuda, torch.float32) == torch.bfloat16


def test_view_shows_the_crop_of_the_model(tiny_vlm: VLM):
    wide = Image.new("RGB", (210, 70), "red")
    wide.paste("blue", (70, 0, 140, 70))  # the middle third is all that a centre crop keeps
    view = np.asarray(tiny_vlm.view(wide))
    assert view.shape == (70, 70, 3)
    assert (view[:, 5:-5] == (0, 0, 255)).all()


def test_loading_says_nothing(tiny_folder: Path):
    code = f"import redlib; redlib.load({str(tiny_folder)!r}, device='cpu')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1800
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_is_light():
    code = "import redlib, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["False", "False"]


def test_top_level_names(tiny_vlm: VLM):
    assert redlib.load is load and redlib.VLM is VLM
    assert redlib.geometry.Grid is redlib.Grid
    assert "load" in dir(redlib)
    with pytest.raises(AttributeError, match="nonsense"):
        redlib.nonsense  # noqa: B018


def broken(folder: Path, target: Path, name: str) -> Path:
    """A copy of a checkpoint with one thing wrong."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    if name == "other family":
        config["model_type"] = "vipllava"
    elif name == "other decoder":
        config["text_config"] = {"model_type": "mistral", "hidden_size": 48}
    elif name == "sliding window":
        layers = config["text_config"]["num_hidden_layers"]
        config["text_config"]["layer_types"] = ["sliding_attention"] * layers
    elif name == "rotation by length":
        config["text_config"]["rope_parameters"] = {
            "rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0,
        }  # fmt: skip
    elif name == "features with cls":
        config["vision_feature_select_strategy"] = "full"
    elif name == "config is not JSON":
        (target / "config.json").write_text("{")
        return target
    elif name == "damaged weights":
        (target / "model.safetensors").write_bytes(b"\x00" * 64)
        return target
    elif name == "no weights":
        (target / "model.safetensors").unlink()
        return target
    elif name == "no config":
        (target / "config.json").unlink()
        return target
    elif name == "a layer too many":
        config["text_config"]["num_hidden_layers"] += 1
    elif name == "no template":
        (target / "chat_template.jinja").unlink()
        return target
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other family", "is a 'vipllava', none of"),
        ("other decoder", "decodes with 'mistral'"),
        ("sliding window", "attends by sliding_attention; only full_attention"),
        ("rotation by length", "rope_type 'dynamic', which depends on the length"),
        ("features with cls", "strategy 'full'"),
        ("config is not JSON", "cannot read config.json"),
        ("damaged weights", "cannot load model"),
        ("no weights", "cannot load model"),
        ("a layer too many", "9 weights are missing .*language_model.layers.3"),
        ("no config", "holds no config.json"),
        ("no template", "no chat template"),
    ],
)
def test_broken_checkpoints_are_refused_in_one_line(
    name: str, words: str, tiny_folder: Path, tmp_path: Path
):
    folder = broken(tiny_folder, tmp_path / "checkpoint", name)
    with pytest.raises(RedlibError, match=words) as error:
        load(str(folder), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other family", "is a 'vipllava', none of"),
        ("config is not JSON", "cannot read config.json"),
        ("damaged weights", "model.safetensors' is truncated or damaged"),
        ("no weights", "holds no safetensors"),
        ("no config", "holds no config.json"),
    ],
)
def test_broken_folders_are_found_without_loading(
    name: str, words: str, tiny_folder: Path, tmp_path: Path
):
    check_folder(str(tiny_folder))
    folder = broken(tiny_folder, tmp_path / "checkpoint", name)
    with pytest.raises(RedlibError, match=words) as error:
        check_folder(str(folder))
    assert "\n" not in str(error.value)


def test_weights_that_may_not_be_read_are_not_called_damaged(tiny_folder: Path, monkeypatch):
    path, access = tiny_folder / "model.safetensors", os.access
    monkeypatch.setattr("os.access", lambda p, mode: p != path and access(p, mode))
    with pytest.raises(RedlibError, match="model.safetensors' cannot be read: Permission denied"):
        check_folder(str(tiny_folder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "no such model"}, "no model 'no such model'"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or mps; got 'gpu'"),
        ({"dtype": "int8"}, "dtype must be auto, .*; got 'int8'"),
        ({"pad_token_id": 10_000}, "pad token id 10000"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, words: str, tiny_folder: Path):
    arguments = {"name": str(tiny_folder), "device": "cpu", **changes}
    with pytest.raises(RedlibError, match=words):
        load(arguments.pop("name"), **arguments)


def test_prompt_must_not_bring_its_own_image(tiny_vlm: VLM):
    with pytest.raises(RedlibError, match="2 image placeholders"):
        tiny_vlm.prompt("what <image> ?")
    with pytest.raises(RedlibError, match="at least one image"):
        tiny_vlm.encode([])
