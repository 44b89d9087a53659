"""Real data that lies beside the checkout, where there is any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("AMEIR_FAST_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")


def shared(name: str) -> Path:
    """The path of a file of it; skips the test where it is not there."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there (AMEIR_FAST_SHARED names the folder)")
    return path
