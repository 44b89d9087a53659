"""Modules as safetensors + JSON. Reading executes nothing and trusts no size it is told."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from .atomic import write_bytes, write_json
from .errors import InputError
from .schema import parse_json, read_json, unreadable

VERSION = 1


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> str:
    """One safetensors file by atomic rename, ``metadata`` (JSON) inside it; returns its sha256."""
    data = dump_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()},
                        {"version": str(VERSION), "about": json.dumps(metadata or {}, sort_keys=True)})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata of a file of ``save_tensors``; ``InputError`` names a damaged or foreign file."""
    try:
        data = Path(path).read_bytes()
        tensors = load_tensors(data)
    except OSError as error:
        raise unreadable(path, error) from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error})") from None
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    return tensors, _about(path, header.get("__metadata__"))


def _about(path: Path, metadata: dict | None) -> dict:
    version = (metadata or {}).get("version")
    if version != str(VERSION):
        raise InputError(f"{path}: version {version!r} is not supported (this is version {VERSION})")
    return parse_json(metadata.get("about", "{}"), path)


def save_module(directory: str | Path, module: nn.Module, about: dict, name: str = "model") -> None:
    """``model.safetensors`` (or of another name) first, then ``model.json`` with its hash: a kill between them is
    noticed."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    digest = save_tensors(directory / f"{name}.safetensors", module.state_dict())
    write_json(directory / f"{name}.json", {"version": VERSION, **about, "sha256": digest})


def load_module(directory: str | Path, build: Callable[[dict], nn.Module], name: str = "model") -> nn.Module:
    """Builds a module from ``model.json`` and fills it from ``model.safetensors``.

    The module is built without memory, and gets it once the file has been seen to hold tensors of all its shapes: no
    description alone makes a large tensor. Each one is copied once.
    """
    description = Path(directory) / f"{name}.json"
    about = read_json(description)
    version = about.get("version") if isinstance(about, dict) else None
    if type(version) is not int or version != VERSION:
        raise InputError(f"{description}: version {version!r} is not supported (this is version {VERSION})")
    path = description.with_suffix(".safetensors")
    try:
        with path.open("rb") as file:
            hashed = _identity(os.fstat(file.fileno()))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
    if digest != about.get("sha256"):
        raise InputError(f"{path}: truncated or changed: its checksum differs from the one in {description.name}")
    try:
        with torch.device("meta"):
            module = build(about)
    except KeyError as error:
        raise InputError(f"{description}: entry {error} is missing") from None
    except (OverflowError, RuntimeError, TypeError) as error:  # PyTorch, of sizes that no tensor can have
        raise InputError(f"{description}: describes no model that could be built ({str(error).splitlines()[0]})") from None
    try:
        with safe_open(path, "pt") as file:
            _about(path, file.metadata())
            module = _filled(module, file, path).eval()
    except SafetensorError as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error})") from None
    if not path.is_file() or _identity(path.stat()) != hashed:
        raise InputError(f"{path}: another file took its place while it was read")
    return module


def _identity(found: os.stat_result) -> tuple:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def _filled(module: nn.Module, file: safe_open, path: Path) -> nn.Module:
    """``module`` in the file's precision with its tensors; ``InputError`` names the first one that is missing, left over
    or of another shape or type."""
    own, theirs = module.state_dict(), set(file.keys())
    kinds = set()
    for name in sorted(own.keys() | theirs):
        if name not in theirs:
            raise InputError(f"{path}: tensor {name!r} is missing")
        if name not in own:
            raise InputError(f"{path}: tensor {name!r} belongs to another architecture")
        found = file.get_slice(name)
        if list(own[name].shape) != found.get_shape():
            raise InputError(f"{path}: tensor {name!r} has shape {found.get_shape()}, not {list(own[name].shape)}")
        if found.get_dtype() not in _FLOATS:
            raise InputError(f"{path}: tensor {name!r} is of type {found.get_dtype()}, none of {', '.join(_FLOATS)}")
        kinds.add(_FLOATS[found.get_dtype()])
    module = module.to(kinds.pop() if len(kinds) == 1 else torch.float32).to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(file.get_tensor(name))
    return module
