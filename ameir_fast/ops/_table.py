"""The operation table: schema, fake and autograd of every operation, registered once for all backends.

An operation ``ameir_fast::<name>`` runs the reference on any device until a backend registers a kernel of
its own: ``cpp`` under the CPU dispatch key (``csrc``), ``triton`` under the CUDA key (``kernels``).
Reference: PyTorch custom operators manual; schemas take flat lists because the dispatcher has no nested ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .. import native, reference
from . import _triton

NAMESPACE = "ameir_fast"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


class Backend(str, Enum):
    """Where an operation is computed. ``None`` in a call means: the best one that the device has."""

    REFERENCE = "reference"
    CPP = "cpp"
    TRITON = "triton"


_DISPATCH_KEY = {Backend.CPP: "CPU", Backend.TRITON: "CUDA"}
_DEVICE = {Backend.CPP: "cpu", Backend.TRITON: "cuda"}


@dataclass(frozen=True)
class Op:
    """One row of the table. ``reference`` and ``fake`` take the schema's arguments."""

    name: str
    arguments: str
    returns: str
    reference: Callable
    fake: Callable
    differentiable: bool = True


_LOOKUP = ("Tensor embedding, Tensor rows, Tensor? bag_rows, Tensor? bag_offsets, int[] multi_fields, "
           "int[] interaction_fields, int[] orders")


def nested(fields: list[int], orders: list[int]) -> list[list[int]]:
    """Interactions from their flat form: all fields in a row, and the order of each interaction."""
    result, start = [], 0
    for order in orders:
        result.append(list(fields[start:start + order]))
        start += order
    return result


def _embedding_interactions(embedding, rows, bag_rows, bag_offsets, multi_fields, interaction_fields, orders,
                            dense, weight, bias, activation):
    return reference.embedding_interactions(embedding, rows, bag_rows, bag_offsets, multi_fields,
                                            nested(interaction_fields, orders), dense, weight, bias, activation)


def _squeeze_excite(embedding, rows, bag_rows, bag_offsets, multi_fields, interaction_fields, orders,
                    project, squeeze, excite):
    return reference.squeeze_excite(embedding, rows, bag_rows, bag_offsets, multi_fields,
                                    nested(interaction_fields, orders), project, squeeze, excite)


def _interaction_population(e, base, interaction_fields, orders, *rest):
    return reference.interaction_population(e, base, nested(interaction_fields, orders), *rest)


def _embedding_update(embedding, first, second, *rest):
    reference.embedding_update(embedding, [s for s in (first, second) if s is not None], *rest)


def _sliced_mlp(x, weights, biases, activations, dice):
    out, statistics = reference.sliced_mlp(x, weights, biases, activations, dice)
    # A registered operator may not return its input, which one identity without weights would.
    return (out.clone() if out is x else out), statistics


def _fake_pool(x, offsets, target, attention, max_length):
    return x.new_empty(offsets.shape[0] - 1, (2 if target is None else 3) * x.shape[1])


def _fake_interactions(embedding, rows, bag_rows, bag_offsets, multi_fields, interaction_fields, orders,
                       dense, weight, bias, activation):
    inputs = (0 if dense is None else dense.shape[1]) + (rows.shape[1] + len(orders)) * embedding.shape[1]
    torch._check(weight.shape[1] == inputs, lambda: f"weight has {weight.shape[1]} columns for {inputs} inputs")
    return embedding.new_empty(rows.shape[0], weight.shape[0])


def _fake_mlp(x, weights, biases, activations, dice):
    units = [x.shape[1], *(w.shape[0] for w in weights)]
    statistics = sum(2 * n for n, a in zip(units, activations, strict=True) if a == "dice")
    return x.new_empty(x.shape[0], units[-1]), x.new_empty(statistics)


OPS: dict[str, Op] = {op.name: op for op in (
    Op("embedding_interactions", f"{_LOOKUP}, Tensor? dense, Tensor weight, Tensor bias, str activation", "Tensor",
       _embedding_interactions, _fake_interactions),
    Op("sliced_mlp", "Tensor x, Tensor[] weights, Tensor[] biases, str[] activations, Tensor[] dice",
       "(Tensor, Tensor)", _sliced_mlp, _fake_mlp),
    Op("sequence_block", "Tensor x, Tensor offsets, Tensor[] norm, Tensor[] weights, Tensor? target, str layer, "
       "str activation, int max_length", "Tensor",
       reference.sequence_block, lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format)),
    Op("sequence_activations", "Tensor x, Tensor offsets, Tensor[] norm, Tensor[] weights, Tensor? target, str layer, "
       "str[] activations, int max_length", "Tensor", reference.sequence_activations,
       lambda x, *rest: x.new_empty(len(rest[5]), *x.shape), differentiable=False),
    Op("sequence_pool", "Tensor x, Tensor offsets, Tensor? target, Tensor[] attention, int max_length", "Tensor",
       reference.sequence_pool, _fake_pool),
    Op("squeeze_excite", f"{_LOOKUP}, Tensor project, Tensor squeeze, Tensor excite", "Tensor",
       _squeeze_excite, lambda embedding, rows, *_: embedding.new_empty(rows.shape[0], embedding.shape[1])),
    Op("embedding_update", "Tensor(a!) embedding, Tensor(b!)? first, Tensor(c!)? second, Tensor rows, "
       "Tensor gradient, str optimizer, float learning_rate, int step, float beta1, float beta2, float eps", "()",
       _embedding_update, lambda *_: None, differentiable=False),
    Op("embedding_catch_up", "Tensor(a!) embedding, Tensor(b!) first, Tensor(c!) second, Tensor(d!) last_step, "
       "Tensor? rows, Tensor sums, int base, int step, int exact, int window, float beta1, float beta2, float eps", "()",
       reference.embedding_catch_up, lambda *_: None, differentiable=False),
    Op("mlp_population", "Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] dice, Tensor head, Tensor common, "
       "Tensor children", "Tensor", reference.mlp_population,
       lambda x, *rest: x.new_empty(rest[-1].shape[0], x.shape[0]), differentiable=False),
    Op("interaction_population", "Tensor e, Tensor base, int[] interaction_fields, int[] orders, Tensor projections, "
       "Tensor weight, Tensor bias, Tensor head, Tensor head_bias", "Tensor", _interaction_population,
       lambda e, base, fields, orders, *rest: e.new_empty(len(orders), e.shape[0]), differentiable=False),
)}


_library.define("instruction_sets() -> str[]")  # of this processor that the native kernels know, the best one last
_library.define("use_instruction_set(str name) -> str")  # chooses one of them; "" goes back to the best


def _setup_context(arguments: str) -> Callable:
    """Saves tensors as such and the rest as it is; lists of tensors are flattened into the saved ones."""
    is_list = [argument.split()[0] == "Tensor[]" for argument in arguments.split(", ")]

    def setup(ctx, inputs, output):
        saved, plan = [], []
        for value, tensors in zip(inputs, is_list, strict=True):
            if tensors:
                plan.append(("list", (len(saved), len(value))))
                saved.extend(value)
            elif isinstance(value, Tensor):
                plan.append(("tensor", len(saved)))
                saved.append(value)
            else:
                plan.append(("other", value))
        ctx.save_for_backward(*saved)
        ctx.plan = plan

    return setup


def _backward(name: str, function: Callable) -> Callable:
    """Gradients by the backend's own backward pass where the device has one under autograd's key for all devices
    (the CPU's has a key of its own, csrc/autograd.cpp), else by running the reference again under autograd."""

    def own(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError(f"{NAMESPACE}::{name}: kernels are differentiable once; backend 'reference' computes "
                               "gradients of gradients")
        saved = list(ctx.saved_tensors)
        arguments = [saved[value] if kind == "tensor" else saved[value[0]:sum(value)] if kind == "list" else value
                     for kind, value in ctx.plan]
        found = iter(getattr(getattr(torch.ops, NAMESPACE), f"{name}_backward")(gradient, *arguments))
        flat = [next(found) if t.is_floating_point() else None for t in saved]
        return tuple(flat[value] if kind == "tensor" else flat[value[0]:sum(value)] if kind == "list" else None
                     for kind, value in ctx.plan)

    def backward(ctx, *gradients):
        first = gradients[0]
        if first is not None and first.is_cuda and has_kernel(name, Backend.TRITON):
            return own(ctx, first)
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors]
            arguments = []
            for kind, value in ctx.plan:
                if kind == "tensor":
                    arguments.append(leaves[value])
                elif kind == "list":
                    arguments.append(leaves[value[0]:value[0] + value[1]])
                else:
                    arguments.append(value)
            outputs = function(*arguments)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
            wanted = [t for t in leaves if t.requires_grad]
            found = torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True) \
                if pairs and wanted else [None] * len(wanted)
        by_leaf = iter(found)
        flat = [next(by_leaf) if t.requires_grad else None for t in leaves]
        result = []
        for kind, value in ctx.plan:
            if kind == "tensor":
                result.append(flat[value])
            elif kind == "list":
                result.append(flat[value[0]:value[0] + value[1]])
            else:
                result.append(None)
        return tuple(result)

    return backward


def _fake_backward(grad, *arguments):
    tensors = [t for a in arguments for t in (a if isinstance(a, list | tuple) else [a]) if isinstance(t, Tensor)]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors if t.is_floating_point()]


for _op in OPS.values():
    _name = f"{NAMESPACE}::{_op.name}"
    _library.define(f"{_op.name}({_op.arguments}) -> {_op.returns}")
    if _op.differentiable:
        # A backend's own backward pass: the gradient of the first output, the operation's arguments, and out come the
        # gradients of all floating-point tensors among them, in their order (csrc/autograd.cpp).
        _library.define(f"{_op.name}_backward(Tensor grad, {_op.arguments}) -> Tensor[]")
        torch.library.register_fake(f"{_name}_backward", _fake_backward, lib=_library)
    _library.impl(_op.name, _op.reference, "CompositeExplicitAutograd")
    torch.library.register_fake(_name, _op.fake, lib=_library)
    if _op.differentiable:
        torch.library.register_autograd(_name, _backward(_op.name, _op.reference),
                                        setup_context=_setup_context(_op.arguments), lib=_library)


_DIFFERENTIABLE = tuple(op.name for op in OPS.values() if op.differentiable)

# ---- which backend computes --------------------------------------------------------------------

# Kernels stay once they are there, and asking the dispatcher takes microseconds.
_found: set[tuple[str, Backend]] = set()


def has_kernel(op: str, backend: Backend) -> bool:
    """Whether ``backend`` has registered a kernel of its own for ``op``."""
    if backend is Backend.REFERENCE:
        return True
    if backend is Backend.CPP and not native.ops_loaded():
        return False
    if backend is Backend.TRITON and (_triton.interpreting() or _triton.recording()):
        return _triton.exists(op)
    if (op, backend) in _found:
        return True
    if backend is Backend.TRITON and not _triton.register(_library, tuple(OPS), _DIFFERENTIABLE):
        return False
    found = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", _DISPATCH_KEY[backend])
    if found:
        _found.add((op, backend))
    return found


# What torch.compiler.assume_constant_result sets; calling that imports the compiler, seconds in which nothing is served.
has_kernel._dynamo_marked_constant = True


def missing(backend: Backend | str) -> list[str]:
    """Operations without a kernel of ``backend``."""
    return [name for name in OPS if not has_kernel(name, Backend(backend))]


def why_not(op: str, backend: Backend, device: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why ``backend`` cannot compute ``op`` on ``device`` in ``dtype``; None when it can."""
    if backend is Backend.REFERENCE:
        return None
    if dtype != torch.float32:
        return f"backend {backend.value!r} computes in float32, and the tensors are {str(dtype).removeprefix('torch.')}"
    if backend is Backend.TRITON and _triton.why_not():
        return f"backend {backend.value!r}: {_triton.why_not()}"
    elsewhere = backend is Backend.TRITON and (device == "cpu" and _triton.interpreting()
                                               or device == "meta" and _triton.recording())
    if device != _DEVICE[backend] and not elsewhere:
        return f"backend {backend.value!r} runs on {_DEVICE[backend]}, and the tensors are on {device}"
    if not has_kernel(op, backend):
        return f"backend {backend.value!r} has no kernel for operation {op!r} in this installation"
    return None


def resolve(op: str, backend: Backend | str | None, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
    """The backend that computes ``op`` for tensors of ``dtype`` on ``device``.

    ``None`` picks the device's own kernels where they exist and know the type, else the reference. Asking for a backend
    that cannot do it raises ``RuntimeError`` with the reason; an unknown name raises ``ValueError``.
    """
    if backend is None:
        own = {"cpu": Backend.CPP, "cuda": Backend.TRITON}.get(device.type)
        return own if own is not None and dtype == torch.float32 and has_kernel(op, own) else Backend.REFERENCE
    backend = Backend(backend)
    reason = why_not(op, backend, device.type, dtype)
    if reason:
        raise RuntimeError(reason)
    return backend


def backends() -> dict[str, dict[str, str | None]]:
    """Operations × backends: None where a kernel exists, else the reason why not."""
    return {name: {b.value: why_not(name, b, _DEVICE.get(b, "cpu")) for b in Backend} for name in OPS}
