"""Modules as safetensors + JSON. Reading executes nothing and trusts no size it is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from .atomic import write_bytes, write_json
from .errors import InputError
from .schema import read_json

VERSION = 1


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> str:
    """One safetensors file by atomic rename, ``metadata`` (JSON) inside it; returns its sha256."""
    data = dump_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()},
                        {"version": str(VERSION), "about": json.dumps(metadata or {}, sort_keys=True)})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and metadata of a file of ``save_tensors``; ``InputError`` names a damaged or foreign file."""
    tensors, about, _ = _read(path)
    return tensors, about


def _read(path: Path) -> tuple[dict[str, Tensor], dict, str]:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    try:
        tensors = load_tensors(data)
        header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        version, about = metadata.get("version"), json.loads(metadata.get("about", "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error})") from None
    if version != str(VERSION):
        raise InputError(f"{path}: version {version} is not supported (this is version {VERSION})")
    return tensors, about, hashlib.sha256(data).hexdigest()


def save_module(directory: str | Path, module: nn.Module, about: dict, name: str = "model") -> None:
    """``model.safetensors`` (or of another name) first, then ``model.json`` with its hash: a kill between them is
    noticed."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    digest = save_tensors(directory / f"{name}.safetensors", module.state_dict())
    write_json(directory / f"{name}.json", {"version": VERSION, **about, "sha256": digest})


def load_module(directory: str | Path, build: Callable[[dict], nn.Module], name: str = "model") -> nn.Module:
    """Builds a module from ``model.json`` and fills it from ``model.safetensors``."""
    description = Path(directory) / f"{name}.json"
    about = read_json(description)
    if not isinstance(about, dict) or about.get("version") != VERSION:
        found = about.get("version") if isinstance(about, dict) else None
        raise InputError(f"{description}: version {found!r} is not supported "
                         f"(this is version {VERSION})")
    path = description.with_suffix(".safetensors")
    tensors, _, digest = _read(path)
    if digest != about.get("sha256"):
        raise InputError(f"{path}: checksum differs from the one in {description.name}")
    try:
        module = build(about)
    except KeyError as error:
        raise InputError(f"{description}: entry {error} is missing") from None
    kinds = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(kinds) == 1:
        module.to(kinds.pop())
    fill(module, tensors, path)
    return module.eval()


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads a state dict; ``InputError`` names the first key that is missing, left over or misshapen."""
    own = module.state_dict()
    for name in own.keys() | tensors.keys():
        if name not in tensors:
            raise InputError(f"{path}: tensor {name!r} is missing")
        if name not in own:
            raise InputError(f"{path}: tensor {name!r} belongs to another architecture")
        if own[name].shape != tensors[name].shape:
            raise InputError(f"{path}: tensor {name!r} has shape {list(tensors[name].shape)}, "
                             f"not {list(own[name].shape)}")
    with torch.no_grad():
        module.load_state_dict(tensors)
