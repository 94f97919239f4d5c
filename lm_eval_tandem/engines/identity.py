"""What identifies a model with local weights (`Engine.identity`): everything that can change its output.

Files and folders that an argument names count by their content, models of a hub by the commit that the local cache
holds, everything else by its value.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import constants

WITHOUT_EFFECT = (
    "pretrained",
    "batch_size",
    "max_batch_size",
    "device",
    "offload_folder",
    "download_dir",
    "max_cpu_memory",
    "max_memory_per_gpu",
)
"""Arguments that are no part of a model's identity: the weights are identified by themselves, the others change no
output."""
OF_ARGUMENTS = {
    "peft": "peft",
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "gguf_file": "gguf",
    "autogptq": "auto-gptq",
    "gptqmodel": "gptqmodel",
}
"""The package that an argument lets take part in computing, by the argument's name."""
OF_METHODS = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel", "autoawq"),
    "compressed-tensors": ("compressed-tensors",),
    "hqq": ("hqq",),
    "torchao": ("torchao",),
    "quanto": ("optimum-quanto",),
}
"""The same for models that were saved quantised, by the method that their configuration names."""
ENGINE_PACKAGES = (
    *("torch", "transformers", "lm_eval", "vllm", "openai", "xllamacpp"),
    *dict.fromkeys([*OF_ARGUMENTS.values(), *(package for method in OF_METHODS.values() for package in method)]),
)
"""All packages whose versions the identities of engines may hold."""
PATHS = ("peft", "delta", "tokenizer", "lora_local_path", "gguf_file", "chat_template", "hf_config_path", "autogptq")
"""Arguments of which a bare word is looked for as a file or folder, too; of others only what looks like a path, so that
revision=main is no folder of that name."""
REVISIONS = {"tokenizer": "tokenizer_revision"}
"""The argument that holds the revision of another one's model, where that is not `revision`."""
IGNORED_SUFFIXES = (".md", ".log", ".png", ".jpg")
"""Files that no model reads."""
IGNORED_FOLDERS = re.compile(r"\..*|__pycache__|checkpoint-\d+")
"""Folders beside a model that it does not read: hidden ones, and earlier states of its training."""


def model_identity(model: str, arguments: Mapping[str, Any], config: Any, **facts: Any) -> dict[str, Any]:
    """The value of `Engine.identity`.

    Parameters
    ----------
    model
        Folder or hub id of the weights.
    arguments
        What they are loaded with.
    config
        The model's configuration in transformers, which knows its commit.
    facts
        What else can change an output, as JSON values.
    """
    packages = ["lm_eval", "torch", "transformers", *optional_packages(arguments, config)]
    return {
        **{name: version(name) for name in packages},
        **facts,
        "commit": getattr(config, "_commit_hash", None),
        "model": content_of(Path(model)) or model,
        "arguments": {
            name: _identity_of(name, value, arguments)
            for name, value in sorted(arguments.items())
            if name not in WITHOUT_EFFECT
        },
    }


def optional_packages(arguments: Mapping[str, Any], config: Any) -> list[str]:
    """The installed packages beside transformers that compute a model's output: of adapters and quantised weights.

    Parameters
    ----------
    arguments, config
        As for `model_identity`.
    """
    quantisation = getattr(config, "quantization_config", None)
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else quantisation
    method = str(getattr(getattr(method, "quant_method", method), "value", method))
    wanted = [package for name, package in OF_ARGUMENTS.items() if arguments.get(name)]
    return [package for package in dict.fromkeys([*wanted, *OF_METHODS.get(method, ())]) if is_installed(package)]


def is_installed(package: str) -> bool:
    """Whether a package has a version here."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def content_of(path: Path) -> str | dict[str, str] | None:
    """SHA-256 of a file, or of each file of a folder by its name in there; None where there is neither."""
    path = path.expanduser()
    if path.is_file():
        return _sha256(path)
    if not path.is_dir():
        return None
    files = list(_files(path))
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return dict(zip((file.relative_to(path).as_posix() for file in files), pool.map(_sha256, files), strict=True))


def hub_commit(repository: str, revision: str) -> str | None:
    """The commit of a hub's model that the local cache holds under this revision; None where it holds none."""
    references = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "refs")
    try:
        return (references / revision).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _identity_of(name: str, value: Any, arguments: Mapping[str, Any]) -> Any:
    """One argument's part of the identity; texts that hold JSON, and dicts and lists, are looked into."""
    if isinstance(value, Mapping):
        return {str(key): _identity_of(name, one, arguments) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_identity_of(name, one, arguments) for one in value]
    text = str(value)
    if text[:1] in ("{", "["):
        try:
            return _identity_of(name, json.loads(text), arguments)
        except ValueError:
            return text  # a template, perhaps
    content = _content_named(name, text) or _content_named(name, text.partition("=")[2])  # name=path, as vLLM's LoRA
    if content is not None:
        return content
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and (name in PATHS or "/" in text):
        revision = arguments.get(REVISIONS.get(name, "revision")) or arguments.get("revision") or "main"
        return [text, hub_commit(text, str(revision))]
    return text


def _content_named(name: str, text: str) -> str | dict[str, str] | None:
    """The content of the file or folder that a text names; None where it names none."""
    looks_local = name in PATHS or os.sep in text or text.startswith("~")
    if not text or not looks_local or len(text) > 4096 or "\n" in text:
        return None
    try:
        return content_of(Path(text))
    except OSError:  # no name of a file, or one that cannot be read
        return None


def _files(folder: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders that a model may read, in order."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not IGNORED_FOLDERS.fullmatch(name))
        for name in sorted(names):
            file = Path(root, name)
            if file.suffix not in IGNORED_SUFFIXES and not name.startswith(".") and file.is_file():
                yield file


def _sha256(file: Path) -> str:
    state = file.stat()
    return _digest(str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(None)
def _digest(path: str, size: int, mtime_ns: int, inode: int) -> str:
    """SHA-256 of a file in this state, hashed once in a process."""
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()
