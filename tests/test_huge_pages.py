"""Huge pages change nothing but where a matrix lies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ameir_fast import huge_pages
from ameir_fast.huge_pages import LEAST, PAGE, use_huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def on_huge_pages(tensor: torch.Tensor) -> int:
    """Bytes on huge pages of the mapping in which a tensor's middle lies."""
    middle = tensor.data_ptr() + tensor.numel() * tensor.element_size() // 2
    for mapping in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        ends = re.match(r"([0-9a-f]+)-([0-9a-f]+)", mapping)
        if ends and int(ends[1], 16) <= middle < int(ends[2], 16):
            return 1024 * int(re.search(r"AnonHugePages:\s+(\d+)", mapping)[1])
    raise AssertionError("no such mapping")


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this system offers none")
@pytest.mark.parametrize("make", [torch.randn, torch.zeros])
def test_contents_stay(make):
    matrix = make(LEAST // 64 + 12_345, 16)
    expected = matrix.clone()
    asked = use_huge_pages(matrix)
    assert LEAST - 2 * PAGE <= asked <= matrix.numel() * 4
    torch.testing.assert_close(matrix, expected, rtol=0, atol=0)
    matrix[::3] += 1
    torch.testing.assert_close(matrix[::3], expected[::3] + 1, rtol=0, atol=0)
    if on_huge_pages(matrix) == 0:
        pytest.skip("this system has none to spare")


def test_only_large_dense_memory_is_asked_for():
    assert use_huge_pages(torch.zeros(1000, 16)) == 0
    assert use_huge_pages(torch.empty(LEAST // 32, 16)[:, :8]) == 0
    assert use_huge_pages(torch.empty(LEAST, 16, device="meta")) == 0


@pytest.mark.parametrize(("setting", "size", "asked"), [
    ("always madvise [never]", PAGE, False), (None, None, False), ("[always] madvise never", 2**29, False),
    ("always [madvise] never", PAGE, True)])
def test_asked_for_only_where_there_are_some(setting, size, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    if setting is not None:
        (tmp_path / "enabled").write_text(f"{setting}\n")
        (tmp_path / "hpage_pmd_size").write_text(f"{size}\n")
    assert huge_pages._offered() is asked
    if not asked:
        assert use_huge_pages(torch.empty(LEAST // 4)) == 0
