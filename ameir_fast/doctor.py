"""What is installed, which backends work, and why the others do not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys

#: Packages the core needs: distribution name and what it is for.
CORE = {
    "torch": "tensors and autograd",
    "numpy": "columns of prepared data",
    "safetensors": "weights on disk",
    "polars": "reading csv and parquet",
    "rich": "terminal",
    "typer": "command line",
    "zstandard": "reading .zst files",
}
#: Packages that add something: distribution name, extra and what it is for.
OPTIONAL = {
    "triton": (None, "GPU kernels"),
    "tensorboard": ("tensorboard", "search --tensorboard"),
    "onnxruntime": ("bench", "a peer in the benchmarks"),
    "matplotlib": ("report", "figures for papers"),
    "scikit-learn": ("test", "checks of the metrics"),
    "pytest": ("test", "the tests"),
    "torchrec": ("distributed", "KeyedJaggedTensor"),
}


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None. Reads metadata only; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def usable_cpus() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def diagnose() -> dict:
    """Everything the ``doctor`` command shows, as plain data.

    A backend's entry is ``{"works": bool, "why_not": str | None, "missing": [operations without a kernel]}``.
    """
    import torch

    from . import __version__, native
    from .search.environment import cpu_name, git_revision

    return {
        "version": 1,
        "ameir_fast": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "git": git_revision(),
        "packages": {name: version_of(name) for name in (*CORE, *OPTIONAL)},
        "cpu": {
            "name": cpu_name(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "processors": usable_cpus(),
            "threads": torch.get_num_threads(),
        },
        "device": _device(torch),
        "native": {name: native.why_not(name) for name in native.MODULES},
        "build": native.build_info(),
        "backends": _backends(torch),
        "environment": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(("AMEIR_FAST_", "OMP_", "MKL_"))
        },
    }


def _device(torch) -> dict:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "no GPU is visible to this process" if built else "this build of PyTorch has no GPU support"
        return {"kind": "cpu", "cuda": None, "why_not": reason}
    index = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(index)
    return {
        "kind": "cuda",
        "why_not": None,
        "cuda": {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "runtime": torch.version.cuda,
        },
    }


def _backends(torch) -> dict:
    from . import native, ops

    native.ops_loaded()
    result = {}
    for backend in ops.Backend:
        missing = ops.missing(backend)
        reason = None
        if len(missing) == len(ops.OPS):
            reason = _reason(backend.value, torch) or "this version has no kernel for any operation"
        elif backend.value == "triton" and not torch.cuda.is_available():
            reason = _device(torch)["why_not"]
        result[backend.value] = {"works": reason is None, "why_not": reason, "missing": missing}
    return result


def _reason(backend: str, torch) -> str | None:
    """What the system itself lacks for a backend, which comes before what the package lacks."""
    from . import native

    if backend == "cpp":
        return native.why_not("_C")
    if backend == "triton":
        return "triton is not installed" if version_of("triton") is None else _device(torch)["why_not"]
    return None


def lines(report: dict) -> list[tuple[str, str, str]]:
    """(group, name, what) of a diagnosis, for people."""
    found: list[tuple[str, str, str]] = [
        ("system", "ameir_fast", report["ameir_fast"] + (f" at {report['git']}" if report["git"] else "")),
        ("system", "python", f"{report['python']} ({report['executable']})"),
        ("system", "platform", report["platform"]),
    ]
    for name, version in report["packages"].items():
        if name in CORE:
            found.append(("packages", name, version or f"MISSING: needed for {CORE[name]}"))
            continue
        extra, use = OPTIONAL[name]
        how = f"pip install 'ameir-fast[{extra}]'" if extra else f"pip install {name}"
        found.append(("packages", name, version or f"not installed; optional, for {use}: {how}"))
    cpu = report["cpu"]
    found.append(("cpu", "processor", cpu["name"]))
    found.append(("cpu", "threads", f"{cpu['threads']} of {cpu['processors']} processors"))
    cuda = report["device"]["cuda"]
    said = (
        f"{cuda['name']}, compute capability {cuda['capability']}, CUDA {cuda['runtime']}, "
        f"{cuda['memory_bytes'] / 2**30:.0f} GiB"
        if cuda
        else f"none: {report['device']['why_not']}"
    )
    found.append(("gpu", "device", said))
    for name, reason in report["native"].items():
        found.append(("native", name, "built" if reason is None else f"not in use: {reason}"))
    for name, state in report["backends"].items():
        said = "works" if state["works"] else f"does not: {state['why_not']}"
        if state["works"] and state["missing"]:
            said += f", but the reference computes {', '.join(state['missing'])}"
        found.append(("backends", name, said))
    for name, value in report["environment"].items():
        found.append(("environment", name, value))
    return found
