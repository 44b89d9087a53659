"""What rounding the operands of matrix products costs: errors of logits, by the precision that the Triton kernels may use.

``python -m ameir_fast.bench.precision`` computes each case's model in fp64, in float32, and in float32 with the operands of
every matrix product and convolution rounded as tensor cores round them (``AMEIR_FAST_TRITON_PRECISION`` ``tf32`` and
``bf16``; products exact, sums float32). It needs no GPU: the rounding, to the nearest, is done by hand. A card that cuts
``tf32``'s bits off instead errs up to twice as much, and orders sums its own way. Weights are a seeded model's before training, so that errors are told beside the logits' own spread.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..atomic import write_text
from ..batch import Batch
from ..model import Model
from ..profile import random_batch
from ..search.environment import describe
from .cpu import build_model
from .suites import Case, cases, lengths

#: Bits of the mantissa that operands keep.
BITS = {"ieee": 23, "tf32": 10, "bf16": 7}
ROWS, AT_ONCE = 2048, 256

_aten = torch.ops.aten
#: Which arguments of an operation are the operands of its product.
_OPERANDS = {_aten.mm.default: (0, 1), _aten.bmm.default: (0, 1), _aten.mv.default: (0, 1), _aten.addmm.default: (1, 2),
             _aten.baddbmm.default: (1, 2), _aten.convolution.default: (0, 1)}
#: Operations with products inside, which nothing here could round.
_CLOSED = ("attention", "gru", "lstm", "mkldnn", "cdist", "addmv", "dot")


def rounded(x: Tensor, bits: int) -> Tensor:
    """float32 ``x`` with ``bits`` bits of mantissa, to the nearest, ties to even; NaN and infinite stay."""
    if bits >= 23:
        return x
    drop = 23 - bits
    number = x.contiguous().view(torch.int32)
    even = (number >> drop) & 1
    number = (number + ((1 << (drop - 1)) - 1) + even) & -(1 << drop)
    return torch.where(x.isfinite(), number.view(torch.float32), x)


class Rounding(TorchDispatchMode):
    """Inside, operands of matrix products keep ``bits`` bits. Raises ``RuntimeError`` for an operation that hides products."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits, self.products = bits, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        places = _OPERANDS.get(function)
        if places is not None:
            self.products += 1
            args = tuple(rounded(a, self.bits) if i in places else a for i, a in enumerate(args))
        elif any(word in function.name() for word in _CLOSED):
            raise RuntimeError(f"{function.name()} has products inside that are not rounded")
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def errors(model: Model, batches: Sequence[Batch], bits: int) -> dict[str, float]:
    """Of logits against fp64: ``largest`` and ``rms`` error, ``spread`` of the logits themselves (their standard deviation),
    and ``largest_probability``, of the sigmoids."""
    model.backend = "reference"
    exact = copy.deepcopy(model).double()
    logits = torch.cat([exact(batch).flatten() for batch in batches])
    with sdpa_kernel(SDPBackend.MATH), Rounding(bits) as mode:
        found = torch.cat([model(batch).flatten() for batch in batches]).double()
    if not mode.products:
        raise RuntimeError("no matrix product was seen")
    gap = found - logits
    return {"largest": float(gap.abs().max()), "rms": float(gap.square().mean().sqrt()), "spread": float(logits.std()),
            "largest_probability": float((found.sigmoid() - logits.sigmoid()).abs().max())}


def measure(case: Case, rows: int = ROWS) -> list[dict]:
    """A row for each precision, on full histories."""
    model = build_model(case)
    batch = random_batch(case.schema, rows, lengths("full", rows, case.schema.max_history))
    batches = [batch.slice(start, min(start + AT_ONCE, rows)) for start in range(0, rows, AT_ONCE)]
    return [{"suite": case.suite, "case": case.name, "precision": name, "rows": rows, **errors(model, batches, bits)}
            for name, bits in BITS.items()]


def table(rows: list[dict]) -> list[str]:
    """Markdown: a line for each case."""
    names = list(BITS)
    lines = ["| case | deviation of logits | " + " | ".join(f"{name}: rms, largest" for name in names) + " | "
             + " | ".join(f"largest of a probability, {name}" for name in names[1:]) + " |",
             "|---|---|" + "---|" * (2 * len(names) - 1)]
    for case in dict.fromkeys((row["suite"], row["case"]) for row in rows):
        own = {row["precision"]: row for row in rows if (row["suite"], row["case"]) == case}
        cells = [f"{own[name]['rms']:.1e}, {own[name]['largest']:.1e}" for name in names]
        chances = [f"{own[name]['largest_probability']:.1e}" for name in names[1:]]
        label = case[0] if case[0] == case[1] else "/".join(case)
        lines.append(f"| `{label}` | {own['ieee']['spread']:.2f} | {' | '.join(cells + chances)} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    import json
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--suite", help="alimama, criteo or both with a comma between (default: both)", default="alimama,criteo")
    parser.add_argument("--rows", type=int, default=ROWS, help="samples of each case (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON lines")
    args = parser.parse_args(argv)
    if args.rows < 2:
        parser.error("--rows is below 2")
    facts = {k: v for k, v in describe("cpu").items() if k in ("torch", "cpu", "git", "date")}
    rows = [{**row, **facts} for case in cases(args.suite.split(",")) for row in measure(case, args.rows)]
    print("\n".join(table(rows)))
    if args.json is not None:
        write_text(args.json, "".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
