"""One handle for a LLaVA checkpoint: the stock model, its processor and the facts around them.

A stock `LlavaForConditionalGeneration`, or its Next and OneVision kin, turns pixels and text into
an answer in one call. The paper's experiments need the stages in between: the visual tokens before
the language model sees them, the text split at the place where they go, the embedding that stands
for "nothing". `VLM` exposes those stages and adds no computation of its own; every number comes
from the stock modules.

    vlm = load("tiny-llava-1.5")
    encoded = vlm.encode([open_image("kitchen.jpg")])     # tokens (1, L, D)
    before, after = vlm.prompt("What is this?")           # ids around the image
    shown = vlm.visual(encoded.tokens[0])                 # with the newline, where there is one
    rows = torch.cat([vlm.embed(before), shown, vlm.embed(after)])   # (T, D)

Of Next and OneVision, whose processors cut an image into tiles, `encode` takes the base tile alone:
the whole image at the tower's size, 576 or 729 tokens, ended by one image newline (`visual`). The
paper probes them so. Other visual inputs of these models come whole, newlines and all:

    vlm.tiles(image)              # (T, D) base tile and its tiles: Next "with split"
    vlm.several([one, other])     # OneVision: images of one prompt
    vlm.film(frames)              # OneVision: a video

A name is looked up as an embedded checkpoint, then as a folder, then as a Hugging Face id (`hub`).

A model that does not fit into a GPU in half precision can be stored in 8 or 4 bits. Everything then
runs, but its logits are another model's: a JSD that decides at 0.002 moves, and no threshold of the
paper was chosen for that.

A handle that is sent to another process travels as its name, not as its weights, and each process
loads a name once (`VLM.__reduce__`).
"""

import functools
import importlib.util
import json
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from redlib import hub, layouts
from redlib.errors import RedlibError
from redlib.geometry import Grid, Sight
from redlib.memory import in_parts, out_of_memory
from redlib.params import FAMILIES, KINDS, PRESETS, embedded, local

PAPER_LAYERS = (1, 16, 30)
PAPER_DEPTH = 32
"""The layers of Figure 4, counted from 0, and the number of layers of the model they belong to."""

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
QUANTIZATIONS = ("8bit", "4bit")
VISION_BATCH = 8
SETTINGS = ("base", "split", "unpadded", "several", "film")
SIGLIP_PATCH = 14  # of OneVision's tower, whose processor does not say it
VIDEO_KEYS = (
    "do_convert_rgb", "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std",
    "resample", "rescale_factor", "size",
)  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """What the vision side says about B images.

    Attributes:
        tokens: (B, L, D) visual tokens, after the projector, as the language model receives them.
        cls_similarity: (B, L) cosine between a patch and [cls] at the feature layer of the tower;
            SigLIP has no [cls], there the mean of the patches stands in.
        norms: (B, L) Euclidean norms of the patches at that layer, before the projector.
    """

    tokens: Tensor
    cls_similarity: Tensor
    norms: Tensor


@dataclass(frozen=True, eq=False)
class Parts:
    """Tokenizer and image processor of a OneVision checkpoint, as its stock processor holds them.

    The stock one cannot be made where torchvision is missing, since its video processor needs it.
    """

    tokenizer: transformers.PreTrainedTokenizerBase
    image_processor: transformers.BaseImageProcessor
    chat_template: str | None
    image_token: str = "<image>"
    video_token: str = "<video>"

    def apply_chat_template(self, messages: list[dict], **options: bool) -> str:
        """The text of a conversation, as the stock processor's method gives it."""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, **options
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files from which the stock processor loads where torchvision is installed.

        Frames of a video are prepared as images are.
        """
        images = self.image_processor.to_dict()
        cells = images["size"]["height"] // SIGLIP_PATCH
        images["image_processor_type"] = "LlavaOnevisionImageProcessor"
        videos = {key: images[key] for key in VIDEO_KEYS}
        videos |= {
            "do_sample_frames": False,
            "video_processor_type": "LlavaOnevisionVideoProcessor",
        }
        stored = {
            "image_processor": images,
            "video_processor": videos,
            "image_token": self.image_token,
            "video_token": self.video_token,
            "num_image_tokens": cells**2,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
            "processor_class": "LlavaOnevisionProcessor",
        }
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        text = json.dumps(stored, indent=2, sort_keys=True)
        (folder / "processor_config.json").write_text(text + "\n", encoding="utf-8")
        (folder / "chat_template.jinja").write_text(self.chat_template or "", encoding="utf-8")


@dataclass(frozen=True, eq=False)
class VLM:
    """A loaded checkpoint.

    Attributes:
        name: the name it was loaded by.
        model: the stock model, in evaluation mode.
        processor: its stock processor, or of OneVision what `Parts` holds of it.
        grid: the patches of one image.
        width: D, the width of a visual token and of the language model.
        device: where the model lives.
        dtype: what it computes in.
        pad: (D,) embedding of the pad token, which replaces ablated tokens.
        layers: shallow, middle and deep decoder layer, from 0, at the relative depth of the paper's
            1, 16 and 30 of 32.
        repeats: how often a single-token probe repeats its token (1 for LLaVA-1.5).
        newline: (D,) embedding that ends an image line, or None where the family has none.
        revision: SHA-256 of the weights of a folder, or the commit of a downloaded checkpoint.
        wish: the device that was asked for, e.g. "auto"; another machine chooses its own by it.
        device_map, quantization: as in `load`.
    """

    name: str
    model: transformers.PreTrainedModel
    processor: "transformers.ProcessorMixin | Parts"
    grid: Grid
    width: int
    device: torch.device
    dtype: torch.dtype
    pad: Tensor
    layers: tuple[int, int, int]
    revision: str
    repeats: int = 1
    newline: Tensor | None = None
    wish: str = "auto"
    device_map: str | None = None
    quantization: str | None = None

    def __reduce__(self) -> tuple:
        folder = local(self.name)
        named = self.name in embedded() or not folder.is_dir()
        name = self.name if named else str(folder.resolve())  # a worker's current folder differs
        dtype = str(self.dtype).removeprefix("torch.")
        how = (self.wish, dtype, self.device_map, self.quantization)
        return _again, (name, how, self.revision, self.repeats, self.pad.cpu())

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.model.model.language_model

    @property
    def sight(self) -> Sight:
        """How the tower cuts an image into patches."""
        config = self.model.config
        vision = config.vision_config
        return Sight(vision.image_size, vision.patch_size, crop=config.model_type == "llava")

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Encoded:
        """Visual tokens and tower-side scores of B images; see `Encoded` for the shapes.

        Where memory does not suffice, fewer images go through the tower at a time (`memory`).

        Raises:
            RedlibError: no image, or not even one fits into memory.
        """
        if not images:
            raise RedlibError("encode needs at least one image; got none")
        parts = self._in_parts(self._encode, images)
        return Encoded(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _in_parts(self, work: Callable, images: Sequence[Image.Image] | Tensor) -> list:
        """What `work` makes of images or of their pixels, VISION_BATCH at a time."""
        return in_parts(
            work, images, VISION_BATCH, device=self.device, what="images",
            one="one image in the vision tower",
        )  # fmt: skip

    def _encode(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor, Tensor]:
        features = self._tower(self._pixels(images))  # (B, L or 1 + L, .)
        tokens = self.model.model.multi_modal_projector(features[:, self._first :])  # (B, L, D)
        # Half precision has too few digits for a cosine that is then ranked over 576 patches.
        features = features if features.dtype == torch.float64 else features.float()
        patches = features[:, self._first :]
        whole = features[:, :1] if self._first else patches.mean(1, keepdim=True)
        return tokens, torch.cosine_similarity(whole, patches, dim=-1), patches.norm(dim=-1)

    @property
    def has_cls(self) -> bool:
        """Whether the tower has a [cls]; else the mean of the patches stands in (`Encoded`)."""
        return bool(self._first)

    @property
    def _first(self) -> int:
        """Where the patches begin among the features of the tower, behind [cls] if there is one."""
        return int(self.model.config.vision_feature_select_strategy == "default")

    def _tower(self, pixels: Tensor) -> Tensor:
        """(B, L or 1 + L, width of the tower) features at the feature layer."""
        pixels = pixels.to(self.device, self.dtype)  # (B, 3, side, side)
        seen = self.model.model.vision_tower(pixels, output_hidden_states=True)
        return seen.hidden_states[self.model.config.vision_feature_layer]

    def _pixels(self, images: Sequence[Image.Image], **options: bool) -> Tensor:
        """(B, 3, side, side): what the tower sees of each image, the base tile where there are
        several."""
        made = [
            self.processor.image_processor(images=image, return_tensors="pt", **options)
            for image in images
        ]
        rows = [one["pixel_values"][0] for one in made]  # (3, .) or (tiles, 3, .), the base first
        return torch.stack([row[0] if row.ndim == 4 else row for row in rows])

    def views(
        self, images: Sequence[Image.Image], setting: str = "base"
    ) -> list[tuple[Tensor, layouts.Layout]]:
        """What the tower sees of the images of one prompt, and what stands where behind it.

        Args:
            images: one; of "several" two or more; of "film" the frames.
            setting: one of SETTINGS.

        Returns:
            per image or film its tiles (n, 3, side, side) and its layout, see `redlib.layouts`.

        Raises:
            RedlibError: another setting, one that the model has not, or a wrong number of images.
        """
        config, cells = self.model.config, self.grid.height
        if setting not in SETTINGS:
            raise RedlibError(f"setting must be one of {', '.join(SETTINGS)}; got {setting!r}")
        if setting == "film":
            self._check_onevision("a video needs")
            if not images:
                raise RedlibError("film needs at least one frame; got none")
            return [(self._pixels(images), layouts.film(cells, len(images)))]
        if setting == "several":
            self._check_onevision("several images need")
            if len(images) < 2:
                raise RedlibError(f"several needs at least two images; got {len(images)}")
            made = self.processor.image_processor(images=[list(images)], return_tensors="pt")
            # padded to squares; an image among several has no tiles of its own
            return [(pixels[None], layouts.split(cells)) for pixels in made["pixel_values"][:, 0]]
        if len(images) != 1:
            raise RedlibError(f"setting {setting!r} shows one image; got {len(images)}")
        if setting == "base":
            whole = layouts.whole(cells) if self.newline is None else layouts.split(cells)
            return [(self._pixels(images), whole)]
        if self.newline is None:
            raise RedlibError(f"model {self.name!r} ({config.model_type}) has no tiles")
        (image,) = images
        made = self.processor.image_processor(images=image, return_tensors="pt")
        tiles = made["pixel_values"][0]
        if setting == "split":
            return [(tiles, layouts.split(cells, tiles=len(tiles)))]
        most = getattr(config, "vision_aspect_ratio", None)  # "anyres_max_9" of OneVision
        layout = layouts.unpadded(
            cells,
            (image.height, image.width),
            config.vision_config.image_size,
            config.image_grid_pinpoints,
            most=int(most.rsplit("_", 1)[1]) if most else None,
        )
        return [(tiles, layout)]

    def _rows(self, images: Sequence[Image.Image], setting: str) -> Tensor:
        """(T, D): the images of one prompt as the language model gets them."""
        rows = []
        for pixels, layout in self.views(images, setting):
            features = torch.cat(self._in_parts(self._tower, pixels))
            features = features[:, self._first :].flatten(0, 1)
            rows.append(layouts.pack(self.model, [features], [layout])[0])
        return torch.cat(rows)

    @torch.no_grad()
    def tiles(self, image: Image.Image, *, packing: str = "split") -> Tensor:
        """An image in tiles, as Next and OneVision see it.

        Args:
            packing: "split", the form of the paper's release: the base tile and the others one
                after another, (n * L + 1, D); or "unpadded", Hugging Face's: the base tile, then
                the tiles as one picture without padding, each of its rows ended by a newline. See
                `redlib.layouts`.

        Raises:
            RedlibError: another packing, or a model without tiles.
        """
        if packing not in ("split", "unpadded"):
            raise RedlibError(f"packing must be split or unpadded; got {packing!r}")
        return self._rows([image], packing)

    @torch.no_grad()
    def several(self, images: Sequence[Image.Image]) -> Tensor:
        """(n * (L + 1), D): n images of one prompt, padded to squares, a newline after each.

        Raises:
            RedlibError: fewer than two images, or not a OneVision.
        """
        return self._rows(images, "several")

    @torch.no_grad()
    def film(self, frames: Sequence[Image.Image]) -> Tensor:
        """(n * P + 1, D): a video, its frames squeezed to squares and pooled to P = 196 tokens
        each (of 729), one newline at the end.

        Raises:
            RedlibError: no frames, or not a OneVision.
        """
        return self._rows(frames, "film")

    def _check_onevision(self, what: str) -> None:
        kind = self.model.config.model_type
        if kind != "llava_onevision":
            raise RedlibError(f"{what} a OneVision model; {self.name!r} is a {kind!r}")

    def visual(self, tokens: Tensor) -> Tensor:
        """Visual tokens (K, D) as they stand in a prompt: (K + 1, D) where a newline ends them."""
        return tokens if self.newline is None else torch.cat([tokens, self.newline[None]])

    def view(self, image: Image.Image) -> Image.Image:
        """The square the model sees, cropped (LLaVA-1.5) or squeezed (the others), (side, side)
        RGB, for drawing on."""
        pixels = self._pixels([image], do_rescale=False, do_normalize=False)[0].numpy()
        pixels = pixels.round().clip(0, 255).astype(np.uint8)  # (3, side, side)
        return Image.fromarray(pixels.transpose(1, 2, 0))

    def prompt(self, text: str) -> tuple[Tensor, Tensor]:
        """Token ids before and after the image: (T1,) and (T2,) int64.

        The chat template is filled with one image and `text` and cut at the image placeholder; T1
        includes the begin-of-sequence token where the tokenizer adds one. Raises RedlibError if
        `text` holds a placeholder itself.
        """
        parts = self._around([{"type": "image"}, {"type": "text", "text": text}])
        if len(parts) != 2:
            raise RedlibError(
                f"the prompt {text!r} holds {len(parts) - 1} image placeholders instead of one;"
                f" leave {self.processor.image_token!r} out of it"
            )
        return parts[0], parts[1]

    def woven(self, text: str) -> list[Tensor]:
        """Token ids around the images of a `text` that says itself where they stand, by the image
        placeholder of the model: (T_k,) int64 each, one part more than there are images."""
        return self._around([{"type": "text", "text": text}])

    def _around(self, content: list[dict[str, str]]) -> list[Tensor]:
        """Token ids of a user's turn, cut at the image placeholders."""
        message = {"role": "user", "content": content}
        filled = self.processor.apply_chat_template([message], add_generation_prompt=True)
        ids = torch.tensor(self.processor.tokenizer(filled)["input_ids"], device=self.device)
        at = (ids == self.model.config.image_token_id).nonzero().flatten().tolist()
        return [ids[a:b] for a, b in zip([0, *(k + 1 for k in at)], [*at, len(ids)], strict=True)]

    @torch.no_grad()
    def embed(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Input embeddings (T, D) of token ids (T,)."""
        ids = torch.as_tensor(ids, dtype=torch.long, device=self.device)
        return self.model.get_input_embeddings()(ids)

    def word(self, token_id: int) -> str:
        """The text of one token, without surrounding space."""
        return self.processor.tokenizer.decode([int(token_id)]).strip()


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
    pad_token_id: int | None = None,
) -> VLM:
    """Load a LLaVA-1.5, Next or OneVision checkpoint by embedded name, folder or Hugging Face id.

    Args:
        name: e.g. "tiny-llava-1.5", "checkpoints/mine" or "llava-hf/llava-1.5-7b-hf".
        device: "auto" takes CUDA, then Apple's MPS, then the CPU.
        dtype: "auto" is float32, except on CUDA for checkpoints stored in half precision, which run
            in float16: bfloat16 rounds logits too coarsely for the thresholds of the cascade.
        revision: commit, branch or tag of a Hugging Face id.
        device_map: "auto" loads shard by shard onto the device that accelerate chooses, without a
            copy in this machine's memory. The engine needs all layers on one device.
        quantization: "8bit" or "4bit" stores the decoder's layers so, by bitsandbytes.
        pad_token_id: the token whose embedding replaces ablated tokens; by default the one the
            checkpoint names. (The authors used id 0 of the original LLaVA-1.5.)

    Raises:
        RedlibError: nothing of that name, no such LLaVA, a licence that was not accepted, no
            network, unreadable files, a package that is missing, or a model that does not fit.
    """
    source = hub.locate(name)
    place = choose_device(device)
    options = placement(place, device, device_map, quantization)
    with _quiet():
        try:
            config = hub.read_config(name, revision)
            # All files are taken of one commit, even where the branch moves meanwhile.
            commit = hub.commit_of(name, revision)
            precision = _dtype(dtype, place, config.dtype)
            if quantization is not None:
                options["quantization_config"] = _bits(quantization, precision)
            model, report = transformers.AutoModelForImageTextToText.from_pretrained(
                source,
                revision=commit,
                dtype=precision,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            _check_weights(name, report)
            processor = _processor(source, commit, config.model_type)
        except RedlibError:
            raise
        except Exception as error:  # transformers and safetensors raise many kinds for bad files
            told = _too_large(name) if out_of_memory(error) else hub.trouble(name, revision, error)
            raise RedlibError(told) from error
    if processor.chat_template is None:
        raise RedlibError(f"model {name!r} has no chat template; save one with its processor")
    if options:
        _check_one_device(name, model)
    else:
        model = model.to(place)
    vlm = handle(
        name,
        model,
        processor,
        pad_token_id=_pad_id(name, config, processor, pad_token_id),
        revision=hub.revision_of(name, commit),
        wish=device,
    )
    return replace(vlm, device_map=device_map, quantization=quantization)


def handle(
    name: str,
    model: transformers.PreTrainedModel,
    processor: "transformers.ProcessorMixin | Parts",
    *,
    pad_token_id: int,
    revision: str,
    wish: str = "auto",
) -> VLM:
    """The handle of a stock model that is already in memory, on its device and in its dtype.

    Args:
        name: what messages call it.
        pad_token_id: the token whose embedding replaces ablated tokens.
        revision: what tells its weights from others'.
        wish: the device that was asked for.
    """
    config = model.config
    cells = config.vision_config.image_size // config.vision_config.patch_size
    newline = getattr(model.model, "image_newline", None)
    return VLM(
        name=name,
        model=model.eval(),
        processor=processor,
        grid=Grid(cells, cells),
        width=config.text_config.hidden_size,
        device=model.device,
        dtype=model.dtype,
        pad=model.get_input_embeddings().weight[pad_token_id].detach().clone(),
        layers=relative_layers(config.text_config.num_hidden_layers),
        revision=revision,
        repeats=PRESETS["paper"]["repeats"][FAMILIES.index(KINDS[config.model_type])],
        newline=None if newline is None else newline.detach().clone(),
        wish=wish,
    )


def _again(name: str, how: tuple, revision: str, repeats: int, pad: Tensor) -> VLM:
    """The handle that was sent here. Raises RedlibError if its name leads to other weights."""
    vlm = _loaded(name, how, revision)
    if vlm.revision != revision:
        raise RedlibError(
            f"model {name!r} on {platform.node()} has other weights (revision {vlm.revision[:12]}) "
            f"than where the work comes from ({revision[:12]}); copy them, or name a shared folder"
        )
    return replace(vlm, repeats=repeats, pad=pad.to(vlm.device))


@functools.lru_cache(maxsize=1)
def _loaded(name: str, how: tuple, revision: str) -> VLM:
    """`load`, once per process; the revision picks the commit of what comes from the hub."""
    wish, dtype, device_map, quantization = how
    return load(
        name,
        device=wish,
        dtype=dtype,
        revision=None if revision == hub.UNKNOWN else revision,
        device_map=device_map,
        quantization=quantization,
    )


def relative_layers(depth: int) -> tuple[int, int, int]:
    """Shallow, middle and deep layer of a decoder of `depth` layers, counted from 0.

    A layer l of the paper's 32 lies at the relative depth l / 31; 6 layers give (0, 3, 5).
    """
    shallow, middle, deep = (
        round(layer / (PAPER_DEPTH - 1) * (depth - 1)) for layer in PAPER_LAYERS
    )
    return shallow, middle, deep


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises RedlibError for a name that torch does not know or a device that it does not find.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise RedlibError(f"device must be auto, cpu, cuda or mps; got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RedlibError(f"device {name!r} asked for, but this torch finds no CUDA; write cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RedlibError(f"device {name!r} asked for, but this torch finds no MPS; write cpu")
    return device


def _processor(source: str, revision: str | None, kind: str) -> transformers.ProcessorMixin | Parts:
    # The PIL back end gives the same pixels whether or not torchvision is installed.
    if kind != "llava_onevision":
        return transformers.AutoProcessor.from_pretrained(source, revision=revision, backend="pil")
    stored, _ = transformers.LlavaOnevisionProcessor.get_processor_dict(source, revision=revision)
    return Parts(
        transformers.AutoTokenizer.from_pretrained(source, revision=revision),
        transformers.AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil"),
        stored.get("chat_template"),
    )


def placement(
    place: torch.device, device: str, device_map: str | None, quantization: str | None
) -> dict[str, object]:
    """How from_pretrained is to place the weights: its keyword arguments, none where the model is
    moved to `place` afterwards. What cannot be placed so, or lacks a package, raises RedlibError.
    """
    if device_map not in (None, "auto"):
        raise RedlibError(f"device_map must be auto or null; got {device_map!r}")
    if quantization not in (None, *QUANTIZATIONS):
        raise RedlibError(f"quantization must be 8bit, 4bit or null; got {quantization!r}")
    if device_map and device != "auto":
        raise RedlibError(
            f"device_map: auto chooses the device; leave device at auto, got {device!r}"
        )
    needed = {"accelerate": device_map or quantization, "bitsandbytes": quantization}
    for package, wanted in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            field = "quantization" if quantization else "device_map"
            raise RedlibError(
                f"{field} needs the package {package}, which is not installed: "
                "pip install -e '.[large]'"
            )
    if device_map:
        return {"device_map": "auto"}
    return {"device_map": {"": place}} if quantization else {}


def _bits(quantization: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    """The decoder's layers in fewer bits. What the model sees stays as it is: the tower is small,
    and a codebook compares its tokens."""
    whole = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    if quantization == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )


def _check_one_device(name: str, model: transformers.PreTrainedModel) -> None:
    """The engine adds states across layers, which no copy between devices comes in between."""
    places = sorted({str(place) for place in getattr(model, "hf_device_map", {}).values()})
    if len(places) > 1:
        raise RedlibError(
            f"model {name!r} does not fit on one device: device_map: auto spread it over "
            f"{', '.join(places)}; take quantization: 8bit or 4bit, or a device with more memory"
        )


def _too_large(name: str) -> str:
    return (
        f"model {name!r} does not fit into the memory of the device; take dtype: float16, "
        "quantization: 8bit or 4bit, or a device with more memory"
    )


def _check_weights(name: str, report: dict) -> None:
    """transformers fills what a file lacks with random numbers, and only warns."""
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in report[kind])
        if keys:
            raise RedlibError(
                f"model {name!r}: {len(keys)} weights are missing from its safetensors or have"
                f" another shape than config.json says, {keys[0]} first"
            )


def _dtype(name: str, device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    if name == "auto":
        half = stored in (torch.float16, torch.bfloat16)
        return torch.float16 if half and device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise RedlibError(f"dtype must be auto, {', '.join(DTYPES)}; got {name!r}")
    return DTYPES[name]


def _pad_id(
    name: str,
    config: transformers.PretrainedConfig,
    processor: "transformers.ProcessorMixin | Parts",
    asked: int | None,
) -> int:
    named = (
        asked,
        getattr(config.text_config, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        processor.tokenizer.pad_token_id,
    )
    pad_id = next((value for value in named if value is not None), None)
    size = config.text_config.vocab_size
    if pad_id is None or not 0 <= pad_id < size:
        raise RedlibError(
            f"model {name!r} has pad token id {pad_id!r}, outside its {size} tokens;"
            " give pad_token_id"
        )
    return pad_id


@contextmanager
def _quiet() -> Iterator[None]:
    """Load without the bar that transformers draws per weight; a caller's setting is restored."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    if shown:
        transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
