"""What rounding operands costs: the rounding against PyTorch's, and what can't be rounded."""

from __future__ import annotations

import json

import pytest
import torch
from ameir_fast.bench import precision
from ameir_fast.bench.suites import alimama

from ameir_fast.errors import InputError

ODD = [0.0, -0.0, 1.0, -1.5, 1 + 2**-11, 1 + 3 * 2**-11, 2**-130, 3e38, float("inf"), -float("inf"), float("nan")]


def test_seven_bits_are_bfloat16():
    x = torch.cat([torch.randn(10_000), torch.tensor(ODD), torch.arange(512) / 256 + 1])
    torch.testing.assert_close(precision.rounded(x, 7), x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
    assert precision.rounded(x, 23) is x


def test_ten_bits_are_the_nearest():
    x = torch.randn(10_000).double().clamp(-8, 8)
    step = 2.0 ** (x.abs().log2().floor() - 10)
    wanted = (x.float().double() / step).round() * step  # ties to even, too
    torch.testing.assert_close(precision.rounded(x.float(), 10).double(), wanted, rtol=0, atol=0)
    assert precision.rounded(torch.randn(8, 6).t(), 10).shape == (6, 8)


def test_products_alone_are_rounded():
    """A layer of the reference: its operands are rounded, its bias and activation are not."""
    draw = torch.Generator().manual_seed(0)
    x, w, b = torch.randn(37, 24, generator=draw), torch.randn(19, 24, generator=draw), torch.randn(19, generator=draw)
    with precision.Rounding(7) as mode:
        found = torch.relu(torch.nn.functional.linear(x, w, b))
    assert mode.products == 1
    wanted = (x.bfloat16().double() @ w.bfloat16().double().t() + b.double()).relu()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - (x.double() @ w.double().t() + b.double()).relu()).abs().max() > 1e-3


def test_hidden_products_are_an_error():
    q = torch.randn(1, 2, 4, 8)
    with precision.Rounding(7), pytest.raises(RuntimeError, match="has products inside that are not rounded"):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)


def test_fewer_bits_err_more(capsys, tmp_path):
    case = next(case for case in alimama() if case.name == "mixed")
    rows = precision.measure(case, 8)
    exact, tf32, bf16 = (row["rms"] for row in rows)
    assert [row["precision"] for row in rows] == ["ieee", "tf32", "bf16"] and 0 < 30 * exact < tf32 < bf16 / 3
    assert all(row["rms"] <= row["largest"] and row["largest_probability"] <= row["largest"] / 4 * 1.01 for row in rows)
    assert precision.main(["--suite", "criteo", "--rows", "8", "--json", str(tmp_path / "rows.jsonl")]) == 0
    stored = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert "\n".join(precision.table(stored)) in capsys.readouterr().out and stored[0]["rows"] == 8
    with pytest.raises(InputError, match="unknown suite 'x'"):
        precision.main(["--suite", "x"])
    with pytest.raises(SystemExit):
        precision.main(["--rows", "1"])
