"""The Triton backend: registers the kernels of ``ameir_fast.kernels``, and runs them interpreted on the CPU.

On a GPU the operations' kernels stand under the CUDA key, their backward passes as ``<name>_backward``. Under
``TRITON_INTERPRET=1`` backend ``triton`` takes tensors on the CPU instead and Triton's interpreter computes, slowly: that is
how the kernels are tested without a GPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor


OPERATION = "operation: "  # begins the note of an operation among its launches


@functools.cache
def why_not() -> str | None:
    """Why no Triton kernel can be had at all; None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


@functools.cache
def interpreting() -> bool:
    if why_not():
        return False
    from ..kernels import _launch
    return _launch.interpreting()


def recording() -> bool:
    """Whether launches are only noted, so that tensors on device ``meta`` will do (``kernels._launch.recording``)."""
    if why_not():
        return False
    from ..kernels import _launch
    return _launch.is_recording()


@functools.cache
def module(op: str):
    """The module of an operation's kernels."""
    return importlib.import_module(f"ameir_fast.kernels.{op}")


@functools.cache
def exists(op: str) -> bool:
    """Whether there are kernels of an operation."""
    return importlib.util.find_spec(f"ameir_fast.kernels.{op}") is not None


@functools.cache
def register(library: torch.library.Library, names: tuple[str, ...], differentiable: tuple[str, ...]) -> bool:
    """Puts all kernels under the CUDA key; whether that could be done."""
    if why_not() or interpreting():
        return False
    for name in filter(exists, names):
        library.impl(name, on_own_device(module(name).forward), "CUDA")
    for name in filter(exists, differentiable):
        library.impl(f"{name}_backward", on_own_device(module(name).backward, apart), "CUDA")
    return True


def on_own_device(function: Callable, then: Callable = lambda found: found) -> Callable:
    """``then`` of ``function``, where the GPU of its first tensor is the current one, which is where Triton launches."""
    @functools.wraps(function)
    def run(*arguments):
        with torch.cuda.device(arguments[0].device):
            return then(function(*arguments))

    return run


def apart(tensors: list[Tensor]) -> list[Tensor]:
    """The same without any two in one piece of memory, as results of an operation have to be: gradients of small tensors
    are summed up side by side. One launch copies them all."""
    places = [t.untyped_storage().data_ptr() for t in tensors]
    shared = [i for i, place in enumerate(places) if places.count(place) > 1 and tensors[i].numel()]
    if not shared:
        return tensors
    copies = dict(zip(shared, torch._foreach_mul([tensors[i] for i in shared], 1.0), strict=True))
    return [copies.get(i, t) for i, t in enumerate(tensors)]


def interpreted(name: str, arguments: tuple, differentiable: bool):
    """The operation by Triton's interpreter, with gradients by its backward kernel."""
    if recording():
        importlib.import_module("ameir_fast.kernels._launch").note(f"{OPERATION}{name}")
    if not differentiable:
        return module(name).forward(*arguments)
    tensors, rebuild = flatten(arguments)
    return _Interpreted.apply(name, rebuild, *tensors)


def flatten(arguments: tuple) -> tuple[list[Tensor], Callable[[list[Tensor]], list]]:
    """All tensors among arguments in order, those of lists too, and how arguments are made of as many others."""
    tensors, places = [], []
    for value in arguments:
        if isinstance(value, Tensor):
            places.append(len(tensors))
            tensors.append(value)
        elif isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
            places.append(range(len(tensors), len(tensors) + len(value)))
            tensors.extend(value)
        else:
            places.append((value,))

    def rebuild(others: list[Tensor]) -> list:
        return [others[p] if isinstance(p, int) else [others[i] for i in p] if isinstance(p, range) else p[0]
                for p in places]

    return tensors, rebuild


class _Interpreted(torch.autograd.Function):
    """An operation whose backward pass reads nothing but its arguments."""

    @staticmethod
    def forward(ctx, name: str, rebuild: Callable, *tensors: Tensor):
        ctx.name, ctx.rebuild = name, rebuild
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        found = module(name).forward(*rebuild(list(tensors)))
        if isinstance(found, tuple):
            ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor | None, *_):
        tensors = list(ctx.saved_tensors)
        if gradient is None:
            return (None,) * (2 + len(tensors))
        found = iter(module(ctx.name).backward(gradient, *ctx.rebuild(tensors)))
        return (None, None, *(next(found) if t.is_floating_point() else None for t in tensors))
