"""Builds the package; the native part is CMake's (``CMakeLists.txt`` lists the sources), driven from here.

``AMEIR_FAST_BUILD`` chooses what is built, and the choice is printed (``pip install -v`` shows it) and
recorded in ``ameir_fast/_build_info.json``, from which ``ameir-fast doctor`` reports it:

``none``   pure Python; everything works, on PyTorch and NumPy.
``cpu``    the native modules; a failure to build them fails the installation.
``cuda``   the same, plus the CUDA sources that CMakeLists.txt lists; needs nvcc and a CUDA build of torch,
           but no GPU.
unset      ``cuda`` or ``cpu``, the best that this machine can build; ``none``, with the reason, when that
           is nothing.

Native modules are compiled against the torch of the build environment, so it must be the one they run with:
use ``pip install --no-build-isolation``, with the build requirements of ``pyproject.toml`` installed
beforehand. ``MAX_JOBS`` overrides the number of parallel compilations; ``CXX`` names the compiler.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from packaging.version import Version
from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODES = ("none", "cpu", "cuda")
OLDEST_TORCH = Version("2.11")
GIB_PER_JOB = 2.0  # peak of one translation unit that includes torch's headers, rounded up
OLDEST_SETUPTOOLS = Version("77")  # reads the licence field of pyproject.toml
ISOLATED = (
    "use `pip install --no-build-isolation .` in an environment that has torch and the build requirements"
)


class CannotBuild(Exception):
    """Why this machine cannot build a mode; the message says what to do about it."""


def say(text: str) -> None:
    print(f"ameir_fast: {text}", flush=True)


# ---- what is on this machine -----------------------------------------------------------------------


def tool(name: str, directory_attribute: str) -> str:
    """Path of a build tool: the Python package of that name first, since a venv need not be on PATH."""
    if importlib.util.find_spec(name) is not None:
        directory = getattr(importlib.import_module(name), directory_attribute, None)
        found = directory and shutil.which(name, path=directory)
        if found:
            return found
    found = shutil.which(name)
    if not found:
        raise CannotBuild(f"{name} is not installed (`pip install {name}`)")
    return found


def compiler() -> str:
    named = os.environ.get("CXX")
    if named and not shutil.which(named.split()[0]):
        raise CannotBuild(f"the compiler CXX={named} does not exist")
    found = named or next(filter(None, map(shutil.which, ("c++", "g++", "clang++", "cl"))), None)
    if not found:
        raise CannotBuild("no C++ compiler was found (install g++ or clang, or set CXX)")
    return found


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return (
        os.environ.get("CUDACXX")
        or (home and shutil.which("nvcc", path=f"{home}/bin"))
        or shutil.which("nvcc")
    )


@functools.cache
def import_torch():
    if importlib.util.find_spec("torch") is None:
        raise CannotBuild(f"torch is not installed in the build environment ({ISOLATED})")
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        raise CannotBuild(f"torch is installed but cannot be imported: {error}") from error
    if Version(torch.__version__) < OLDEST_TORCH:
        raise CannotBuild(f"torch {torch.__version__} is older than {OLDEST_TORCH}")
    return torch


def free_gib() -> float:
    """Memory this build may use, in GiB: what is available, or less where a container caps it."""
    amounts = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) / 2**20)
        cap = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if cap != "max":
            amounts.append((int(cap) - int(Path("/sys/fs/cgroup/memory.current").read_text())) / 2**30)
    except OSError:
        pass  # another system than Linux, or another container: what was read so far counts
    return min(amounts, default=8.0)


def jobs() -> int:
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, int(free_gib() / GIB_PER_JOB)))


# ---- choosing --------------------------------------------------------------------------------------


@functools.cache
def choose() -> tuple[str, bool, str | None]:
    """Mode to build, whether the user asked for it, and the reason when the automatic choice is ``none``."""
    wanted = os.environ.get("AMEIR_FAST_BUILD", "").strip().lower()
    if wanted in ("", "auto"):
        try:
            torch = import_torch()
            check_tools()
        except CannotBuild as error:
            return "none", False, str(error)
        return ("cuda" if torch.version.cuda and nvcc() else "cpu"), False, None
    if wanted not in MODES:
        raise SystemExit(f"ameir_fast: AMEIR_FAST_BUILD={wanted} is none of {', '.join(MODES)}")
    if wanted == "none":
        return "none", True, "AMEIR_FAST_BUILD=none was set when it was built"
    try:
        torch = import_torch()
        check_tools()
        if wanted == "cuda" and not torch.version.cuda:
            raise CannotBuild(f"torch {torch.__version__} is not a CUDA build")
        if wanted == "cuda" and not nvcc():
            raise CannotBuild("nvcc was not found (install the CUDA toolkit, or set CUDA_HOME)")
    except CannotBuild as error:
        raise SystemExit(f"ameir_fast: cannot build mode {wanted}: {error}") from error
    return wanted, True, None


def check_tools() -> None:
    tool("cmake", "CMAKE_BIN_DIR")
    tool("ninja", "BIN_DIR")
    compiler()
    if importlib.util.find_spec("pybind11") is None:
        raise CannotBuild("pybind11 is not installed (`pip install pybind11`)")


# ---- building --------------------------------------------------------------------------------------


def run_cmake(mode: str) -> Path:
    """Compile, and return the directory with the finished modules."""
    torch, pybind11 = import_torch(), importlib.import_module("pybind11")
    torch_root = Path(torch.__file__).parent
    # CMake caches what it found, so each combination that it must not mix up has a directory of its own.
    key = "\n".join((sys.executable, sys.version, str(torch_root), torch.__version__, compiler(), mode))
    directory = ROOT / "build" / f"native-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    staged = directory / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    cmake, workers = tool("cmake", "CMAKE_BIN_DIR"), jobs()
    say(f"mode {mode}: torch {torch.__version__}, compiler {compiler()}, {workers} parallel jobs")
    for command in (
        [
            *(cmake, "-S", str(ROOT), "-B", str(directory), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}",
            f"-DAMEIR_FAST_MODE={mode}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_ROOT={torch_root}",
            f"-DTORCH_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        ],
        [cmake, "--build", str(directory), "--parallel", str(workers)],
        [cmake, "--install", str(directory), "--prefix", str(staged)],
    ):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        print(done.stdout, flush=True)
        if done.returncode:
            last = [line for line in done.stdout.splitlines() if line.strip()][-1:]
            raise CannotBuild(
                f"`{' '.join(command[:2])} …` failed (exit {done.returncode}): {' '.join(last)}"
            )
    return staged


class NativeBuild(build_ext):
    """Runs CMake and puts the modules, and the record of what was built, into the package."""

    def run(self) -> None:
        mode, asked, reason = choose()
        staged = None
        if mode != "none":
            try:
                staged = run_cmake(mode)
            except CannotBuild as error:
                if asked:
                    raise SystemExit(f"ameir_fast: mode {mode} failed: {error}") from error
                mode, reason = "none", f"the native build failed: {error}"
        if mode == "none":
            say(f"mode none, pure Python without native modules: {reason}")
        package = (
            ROOT / "ameir_fast" if self.editable_mode or self.inplace else Path(self.build_lib) / "ameir_fast"
        )
        package.mkdir(parents=True, exist_ok=True)
        for stale in (*package.glob("_C.*"), *package.glob("_driver.*"), *package.glob("_plan.*")):
            if not (staged and (staged / stale.name).exists()):
                stale.unlink()
        self.written = []
        for module in sorted(staged.iterdir()) if staged else ():
            self._place(package / module.name, module.read_bytes())
        torch_version = None if mode == "none" else import_torch().__version__
        info = {
            "mode": mode,
            "reason": reason,
            "version": self.distribution.get_version(),
            "torch": torch_version,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        }
        self._place(package / "_build_info.json", (json.dumps(info, indent=2) + "\n").encode())

    def _place(self, path: Path, content: bytes) -> None:
        """Write by rename: a process that has the old module loaded keeps the old file."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        os.replace(temporary, path)
        self.written.append(str(path))

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode else list(getattr(self, "written", []))

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return ["CMakeLists.txt", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*"))]


class Build(build):
    """Always runs build_ext, which also records mode ``none``, and never packs an earlier build's leftovers."""

    sub_commands = [("build_py", None), ("build_ext", None)]

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class NativeDistribution(Distribution):
    """A wheel is bound to a platform only when it holds native modules."""

    def has_ext_modules(self) -> bool:
        return choose()[0] != "none"


if Version(setuptools.__version__) < OLDEST_SETUPTOOLS:
    # Only possible without build isolation; setuptools itself would complain about pyproject.toml instead.
    raise SystemExit(
        f"ameir_fast: setuptools {setuptools.__version__} is too old: "
        f"pip install 'setuptools>={OLDEST_SETUPTOOLS}'"
    )

setup(
    distclass=NativeDistribution,
    cmdclass={"build": Build, "build_ext": NativeBuild},
    packages=[
        *find_packages(include=["ameir_fast", "ameir_fast.*"]),
        "ameir_fast.kernels",
        "ameir_fast.bench",
    ],
    package_dir={"ameir_fast.kernels": "kernels", "ameir_fast.bench": "bench"},
    # build_ext reads the real list from CMakeLists.txt; this entry makes the command run.
    ext_modules=[Extension("ameir_fast._driver", sources=[])],
)
