"""Where a model's files lie, what tells them from others', and what is wrong with them.

A name is looked up as an embedded checkpoint, then as a folder, then as a Hugging Face id, whose
files lie in the hub's cache after a first download:

    locate("tiny-llava-1.5")                    # the folder that the package ships
    read_config("llava-hf/llava-1.5-7b-hf")     # its config.json, fetched where it is not cached
    revision_of("llava-hf/llava-1.5-7b-hf")     # the commit of that file

Results are kept under the revision, so that weights that changed under the same name are not taken
for those that were measured. And since a download that broke off, a licence that nobody accepted
and a cluster without a network all end in errors of many kinds and many lines, `trouble` says each
in one, with what to do.
"""

import hashlib
import json
import os
from pathlib import Path

import transformers
from huggingface_hub import errors, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from redlib.errors import RedlibError, first_line
from redlib.params import KINDS, embedded, is_hub_id, local

DECODERS = ("llama", "qwen2")
"""Text model types whose layers `redlib.engine` reproduces exactly."""

BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that change with the length of the prompt."""

SETTINGS = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "chat_template.jinja", "chat_template.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
"""Files of a checkpoint that decide, beside its weights, what is computed with them."""

UNKNOWN = "unknown"
"""The revision of a model of which there is no telling."""


def locate(name: str) -> str:
    """A folder, or a Hugging Face id unchanged.

    Raises:
        RedlibError: nothing of that name, or a folder without config.json.
    """
    if not name:
        raise RedlibError("model: empty; an embedded name, a folder or a Hugging Face id is wanted")
    shipped = embedded()
    for folder in (shipped.get(name), local(name)):
        if folder is not None and folder.is_dir():
            if not (folder / "config.json").is_file():
                raise RedlibError(f"model folder {name!r} holds no config.json")
            return str(folder)
    if is_hub_id(name):
        return name
    raise RedlibError(
        f"no model {name!r}: not embedded ({', '.join(shipped) or 'none shipped'}),"
        " not a folder, not a Hugging Face id such as llava-hf/llava-1.5-7b-hf"
    )


def read_config(name: str, revision: str | None = None) -> transformers.PretrainedConfig:
    """The configuration of a checkpoint, without its weights.

    Raises:
        RedlibError: nothing of that name, no such LLaVA, or an unreadable config.json.
    """
    source = locate(name)
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision)
    except Exception as error:  # of many kinds
        told = _from_hub(name, revision, error)
        raise RedlibError(
            told or f"cannot read config.json of model {name!r}: {first_line(error)}"
        ) from error
    _check(name, config)
    return config


def revision_of(name: str, revision: str | None = None) -> str:
    """What tells a model from others: the commit it comes from; of a folder the SHA-256 of its
    weights and SETTINGS, which may change without them; of a checkpoint that the package ships,
    whose settings change with its code alone, of its weights.

    `read_config` comes first, since the commit is that of the config.json at hand.
    """
    folder = Path(locate(name))
    if not folder.is_dir():
        return commit_of(name, revision) or UNKNOWN
    digest = hashlib.sha256()
    files = [] if name in embedded() else [folder / setting for setting in SETTINGS]
    for path in (*sorted(folder.glob("*.safetensors")), *filter(Path.is_file, files)):
        if path in files:
            digest.update(f"\n{path.name}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that config.json of a Hugging Face id was read from; of a folder None."""
    source = locate(name)
    if Path(source).is_dir():
        return None
    folder = _folder(source, revision)
    return revision if folder is None else folder.name  # the cache has a folder per commit


def check_folder(name: str) -> None:
    """Find in a second what `redlib.load` would find in a folder's files after reading all weights.

    Raises:
        RedlibError: config.json or the safetensors are missing, damaged, or of another model.
    """
    read_config(name)
    if wrong := _wrong_weights(Path(locate(name))):
        raise RedlibError(f"{wrong}; copy it again")


def trouble(name: str, revision: str | None, error: Exception) -> str:
    """One line about a checkpoint that could not be loaded, and what to do."""
    if told := _from_hub(name, revision, error):
        return told
    source = locate(name)
    folder = _folder(source, revision)
    if folder is not None and (wrong := _wrong_weights(folder)):
        again = (
            "copy it again" if Path(source).is_dir() else f"`hf download {name} --force-download`"
        )
        return f"cannot load model {name!r}: {wrong}; {again}"
    return (
        f"cannot load model {name!r}: {first_line(error)} (are config.json, the"
        " tokenizer's files and the safetensors there, and whole?)"
    )


def _check(name: str, config: transformers.PretrainedConfig) -> None:
    if config.model_type not in KINDS:
        known = ", ".join(f"{family} ({kind!r})" for kind, family in KINDS.items())
        raise RedlibError(f"model {name!r} is a {config.model_type!r}, none of {known}")
    if config.text_config.model_type not in DECODERS:
        raise RedlibError(
            f"model {name!r} decodes with {config.text_config.model_type!r};"
            f" only {', '.join(DECODERS)} are reproduced exactly"
        )
    windows = set(getattr(config.text_config, "layer_types", None) or ()) - {"full_attention"}
    if windows:
        raise RedlibError(
            f"model {name!r} attends by {', '.join(sorted(windows))}; only full_attention in every "
            "layer is reproduced exactly (use_sliding_window: false)"
        )
    rotation = (getattr(config.text_config, "rope_parameters", None) or {}).get("rope_type")
    if rotation in BY_LENGTH:
        raise RedlibError(
            f"model {name!r} has rope_type {rotation!r}, which depends on the length "
            "of the prompt; prompts that share a prefix then share no states"
        )
    wanted = "full" if config.vision_config.model_type.startswith("siglip") else "default"
    if config.vision_feature_select_strategy != wanted or not isinstance(
        config.vision_feature_layer, int
    ):
        raise RedlibError(
            f"model {name!r} must take its features from one layer, without [cls]; got layer"
            f" {config.vision_feature_layer!r}, strategy {config.vision_feature_select_strategy!r}"
        )


def _folder(source: str, revision: str | None) -> Path | None:
    """Where the files of a folder or of a cached download lie."""
    if Path(source).is_dir():
        return Path(source)
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _wrong_weights(folder: Path) -> str | None:
    """What is wrong with the safetensors of a folder, as far as their headers tell; None: nothing.

    The header of a file says how long it has to be, so a download that broke off is found. Raises
    RedlibError for a file that the reader may not read.
    """
    files = [local(file) for file in sorted(folder.glob("*.safetensors"))]
    index = local(folder / "model.safetensors.index.json")
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
            return f"{str(index)!r} is truncated or damaged"
        if missing := sorted(named - {file.name for file in files}):
            return f"{str(folder / missing[0])!r} is missing, one of {len(named)} files of weights"
    if not files:
        return f"model folder {str(folder)!r} holds no safetensors file with the weights"
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{str(file)!r} is truncated or damaged ({first_line(error)})"
    return None


def _from_hub(name: str, revision: str | None, error: BaseException) -> str | None:
    """What the hub said, in one line with what to do; None if the error is not the hub's."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, errors.GatedRepoError):
            return (
                f"model {name!r} is gated: accept its licence at https://huggingface.co/{name} "
                "with your account, then log in here with `hf auth login` (or set HF_TOKEN)"
            )
        if isinstance(found, errors.RepositoryNotFoundError):
            return (
                f"model {name!r}: the Hugging Face hub knows no such id, or it is private; correct "
                "it, or log in with `hf auth login`"
            )
        if isinstance(found, errors.RevisionNotFoundError):
            return (
                f"revision: {revision!r} is no commit, branch or tag of model {name!r}; without "
                "a revision (null) the newest is taken"
            )
        if isinstance(found, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            asked = f" --revision {revision}" if revision else ""
            offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
            why = "HF_HUB_OFFLINE is set" if offline else "the Hugging Face hub is out of reach"
            return (
                f"model {name!r} is not, or not whole, in this machine's cache, and {why}: run "
                f"`hf download {name}{asked}` where there is a network, or name a folder"
            )
        found = found.__cause__ or found.__context__
    return None
