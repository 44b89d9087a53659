"""The kernels as registered operations: what PyTorch asks of those, and torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ameir_fast.ops import _triton

from .helpers import make_schema, random_batch
from .test_ops import CASES, WITHOUT_GRADIENT, Maker, op_of
from .test_plan import arch_of, pair

CHECKS = ("test_schema", "test_faketensor")


def on_gpu(arguments) -> list:
    move = lambda a: a.cuda() if isinstance(a, Tensor) else [move(t) for t in a] if isinstance(a, list) else a
    return [move(a) for a in arguments]


def test_results_do_not_share_memory():
    whole, alone = torch.tensor([1.0, -0.0, torch.nan, 4.0]), torch.ones(2)
    given = [whole[:1], alone, whole[1:3].view(2, 1), whole[:0], whole[3:]]
    found = _triton.apart(given)
    assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(found, given, strict=True))
    assert found[1] is alone and len({t.untyped_storage().data_ptr() for t in found if t.numel()}) == 4
    assert _triton.apart([alone, whole])[1] is whole


@pytest.mark.gpu
@pytest.mark.parametrize("op", [name for name in CASES if name != "mlp_population"])
def test_opcheck(op):
    for _, build in CASES[op]:
        arguments = on_gpu(build(Maker(6, torch.float32, grad=False)))
        torch.library.opcheck(op_of(op), arguments, test_utils=CHECKS)
        if op not in WITHOUT_GRADIENT:
            out = op_of(op)(*arguments)
            gradient = torch.randn_like(out[0] if isinstance(out, tuple) else out)
            torch.library.opcheck(op_of(f"{op}_backward"), (gradient, *arguments), test_utils=CHECKS)


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [("conv3", "bi_gru"), ("self_attn2", "target_attn")])
def test_compiled_models_equal_eager_ones(layers):
    schema = make_schema(fields=5, multi=1, behavior=2, max_history=6, seed=3)
    model = pair(schema, arch_of(*layers), 4)[0].cuda()
    model.backend, batch = "triton", random_batch(schema, 19, 1).to("cuda")
    found = []
    for call in (model, torch.compile(model)):
        model.zero_grad(set_to_none=True)
        logits = call(batch)
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
