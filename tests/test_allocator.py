from __future__ import annotations

import platform
import subprocess
import sys

SCRIPT = "from ameir_fast.allocator import keep_freed_memory; print(keep_freed_memory())"


def test_freed_memory_is_kept_where_glibc_can():
    """In a process of its own: the setting lasts."""
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc")
