"""The three native modules, loaded at first use, and the reason when one cannot be used.

``_C`` holds operations (``TORCH_LIBRARY_IMPL``; needs the very torch it was compiled against), ``_driver``
work on NumPy arrays (pybind11; needs no torch), ``_plan`` the inference plan (pybind11, on torch's thread pool). All
are optional: without the first two every caller has a PyTorch or NumPy way to the same result, without the third
``Model.compile`` says why it cannot. Importing this module loads none of them.

A module that is simply not there is silent, since that may be meant; one that is there and cannot be used
warns once, since that makes everything slower than its owner believes. ``AMEIR_FAST_NATIVE=0`` turns all of
them off.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

#: What each native module is for.
MODULES = {"_C": "operations for the CPU", "_driver": "reading text, assembling batches, drawing negatives",
           "_plan": "inference plans for the CPU"}
REMEDY = "rebuild it with `pip install --no-build-isolation --no-deps --force-reinstall` of ameir-fast"

#: What ``_driver`` says its ``interface`` is; counted up in both places with every change that callers notice.
DRIVER_INTERFACE = 1
PLAN_INTERFACE = 4  # the same of ``_plan``

_DIRECTORY = Path(__file__).resolve().parent


def enabled() -> bool:
    """Whether native modules may be used: not when ``AMEIR_FAST_NATIVE`` is ``0``, ``false``, ``no`` or
    ``off``."""
    return os.environ.get("AMEIR_FAST_NATIVE", "").strip().lower() not in ("0", "false", "no", "off")


@functools.cache
def build_info() -> dict | None:
    """The record of the build: ``mode``, ``reason`` (of mode ``none``), ``version``, ``torch``, ``python``,
    ``system``.

    ``None`` in a checkout that was never installed.
    """
    path = _DIRECTORY / "_build_info.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def driver() -> ModuleType | None:
    """The module ``_driver``, or ``None``; :func:`why_not` then tells why."""
    return _driver()[0] if enabled() else None


def ops_loaded() -> bool:
    """Load ``_C`` if that has not been tried yet; whether its operations are registered."""
    return enabled() and _ops() is None


def plan() -> ModuleType | None:
    """The module ``_plan``, or ``None``; :func:`why_not` then tells why."""
    return _plan()[0] if enabled() else None


def why_not(name: str) -> str | None:
    """Why ``_C``, ``_driver`` or ``_plan`` cannot be used, with what to do about it; ``None`` when it can.

    Raises:
        KeyError: there is no native module of that name.
    """
    if name not in MODULES:
        raise KeyError(f"no native module {name!r}: there are {', '.join(MODULES)}")
    if not enabled():
        return f"turned off by AMEIR_FAST_NATIVE={os.environ['AMEIR_FAST_NATIVE']}"
    return {"_C": _ops, "_driver": lambda: _driver()[1], "_plan": lambda: _plan()[1]}[name]()


@functools.cache
def _driver() -> tuple[ModuleType | None, str | None]:
    return _import("_driver", DRIVER_INTERFACE)


@functools.cache
def _plan() -> tuple[ModuleType | None, str | None]:
    if any(_DIRECTORY.glob("_plan.*")):
        import torch  # noqa: F401 - whose libraries _plan finds loaded

        other = _of_another_torch("_plan")
        if other:
            return None, _broken(other)
    return _import("_plan", PLAN_INTERFACE)


def _import(name: str, interface: int) -> tuple[ModuleType | None, str | None]:
    if not any(_DIRECTORY.glob(f"{name}.*")):
        return None, _absent()
    if not any((_DIRECTORY / f"{name}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        info = build_info() or {}
        return None, _broken(
            f"{name} was built for Python {info.get('python', 'of another version')}, "
            f"this is {platform.python_version()}"
        )
    try:
        module = importlib.import_module(f"ameir_fast.{name}")
    except ImportError as error:
        return None, _broken(f"{name} does not load: {error}")
    if getattr(module, "interface", 0) != interface:
        return None, _broken(f"{name} is older or newer than this code")
    return module, None


@functools.cache
def _ops() -> str | None:
    path = next(iter(sorted(_DIRECTORY.glob("_C.*"))), None)
    if path is None:
        return _absent()
    import torch

    other = _of_another_torch("_C")
    if other:
        return _broken(other)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return _broken(f"_C does not load: {error}")
    return None


def _of_another_torch(name: str) -> str | None:
    import torch

    built = (build_info() or {}).get("torch")
    # Public versions compared as text, because only equality counts: C++ symbols change even between patch
    # releases. The local part (+cpu, +cu130) is ignored; the same release has the same CPU interface in all
    # of its builds.
    if built is None or built.split("+")[0] != torch.__version__.split("+")[0]:
        return f"{name} was built for torch {built or 'of an unknown version'}, this is torch {torch.__version__}"
    return None


def _absent() -> str:
    info = build_info()
    if info is None:
        return (
            "not built: this checkout was never installed; run `pip install --no-build-isolation -e .` in it"
        )
    if info["mode"] == "none":
        return f"not built: {info['reason']}"
    return f"the file is missing from {_DIRECTORY}; {REMEDY}"


def _broken(problem: str) -> str:
    reason = f"{problem}; {REMEDY}"
    warnings.warn(f"ameir_fast works without its native code: {reason}", RuntimeWarning, stacklevel=4)
    return reason


def main() -> None:
    """Print the record of the build and the state of each module."""
    info = build_info()
    built = "never built" if info is None else f"built in mode {info['mode']}"
    sys.stdout.write(f"ameir_fast: {built}\n")
    for name, purpose in MODULES.items():
        sys.stdout.write(f"  {name:8} ({purpose}): {why_not(name) or 'works'}\n")
