"""What a result was made with."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch


def describe(device: str = "cpu", backend: str | None = None) -> dict:
    """Versions, device, threads, git revision and date, for results that are to be compared. ``backend`` is the one that was
    asked for; None stands for the device's own."""
    import ameir_fast

    from ..profile import backend_in_use

    return {
        "version": ameir_fast.__version__, "python": platform.python_version(), "platform": platform.platform(),
        "torch": torch.__version__, "triton": _version("triton"), "numpy": _version("numpy"),
        "device": device, "cpu": cpu_name(), "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "threads": torch.get_num_threads(), "backend": backend or backend_in_use(torch.device(device)), "git": git_revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name and vector extension as far as the system tells them."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines()
                 if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def git_revision() -> str | None:
    """The checkout's revision, with ``+`` where files have uncommitted changes, other than stored results and the pages
    made from them; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True,
                             timeout=10, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno", "--", ":/", ":(exclude,top)bench/results", ":(exclude,top,glob)**/*.md"], cwd=here, capture_output=True, text=True,
                               timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return sha + ("+" if dirty else "")
