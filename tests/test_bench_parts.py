"""The bench of a plan's parts: rows and table, on a small batch."""

from __future__ import annotations

import json

import pytest
import torch
from ameir_fast.bench import limits, parts
from ameir_fast.bench.suites import alimama, lengths

from ameir_fast import native
from ameir_fast.errors import InputError

pytestmark = pytest.mark.skipif(native.why_not("_plan") is not None, reason=str(native.why_not("_plan")))


def test_shares_and_operations_add_up():
    case = next(case for case in alimama() if case.name == "mixed")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows = parts.measure(case, "full", 8, calls=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    own, call = [row for row in rows if row["part"] != "call"], next(row for row in rows if row["part"] == "call")
    assert sum(row["share"] for row in own) == pytest.approx(1)
    assert sum(row["flops"] for row in own) == call["flops"] == limits.flops(case, lengths("full", 8, 50))
    assert [row["part"] for row in own if row["part"].startswith("block")] == [
        "block 0: bi_gru", "block 1: self_attn4", "block 2: target_attn"]
    assert all(row["share_of_gemm"] > 0 for row in own if row["flops"])


def test_the_command_writes_rows_and_prints_their_table(capsys, tmp_path):
    command = ["--suite", "criteo", "--batch", "4", "--calls", "1", "--json", str(tmp_path / "rows.jsonl")]
    assert parts.main(command) == 0
    stored = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    out = capsys.readouterr().out
    assert "\n".join(parts.table(stored)) in out and "| criteo | none | 4 |" in out and stored[0]["git"]
    with pytest.raises(InputError, match="unknown suite"):
        parts.main(["--suite", "x"])
    for wrong in (["--lengths", "long"], ["--calls", "0"], ["--batch", "0"]):
        with pytest.raises(SystemExit):
            parts.main(wrong)
