"""Building and installing: the modes, their messages, and what an installed package can do."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "ameir_fast",
    "kernels",
    "bench",
    "csrc",
    "pyproject.toml",
    "setup.py",
    "CMakeLists.txt",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
)
TOOLS = all(importlib.util.find_spec(m) for m in ("cmake", "ninja", "pybind11", "setuptools", "packaging"))
NEEDS_TOOLS = pytest.mark.skipif(
    not TOOLS, reason="the build requirements of pyproject.toml are not installed"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources without anything that was built."""
    target = tmp_path / "checkout"
    target.mkdir()
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "_build_info.json", "__pycache__", "results")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    return target


def command(
    arguments, cwd: Path, check: bool = True, **environment: str | None
) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    for name in ("PYTHONPATH", "AMEIR_FAST_BUILD", "AMEIR_FAST_NATIVE", "CXX", "MAX_JOBS"):
        if name not in environment:
            variables.pop(name, None)
    done = subprocess.run(
        [str(a) for a in arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        check=False,
        env={k: v for k, v in variables.items() if v is not None},
    )
    assert not check or done.returncode == 0, f"{done.args} failed\n{done.stdout}\n{done.stderr}"
    return done


def build(checkout: Path, check: bool = True, prelude: str = "", **environment: str | None) -> tuple:
    """Run the build step of setup.py; returns its result, the built package and the record of the build."""
    output = checkout / "out"
    code = (
        f"import sys, runpy\n{prelude}\n"
        f"sys.argv = ['setup.py', '-q', 'build', '--build-lib', {str(output)!r}]\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = command([sys.executable, "-c", code], checkout, check, **environment)
    info = output / "ameir_fast" / "_build_info.json"
    return done, output / "ameir_fast", json.loads(info.read_text()) if info.exists() else None


def natives(package: Path) -> list[str]:
    return sorted(p.name.split(".")[0] for p in package.glob("*") if p.suffix in (".so", ".pyd", ".dll"))


# ---- modes -----------------------------------------------------------------------------------------


@NEEDS_TOOLS
def test_mode_none_is_a_pure_wheel_that_imports(checkout, tmp_path):
    done = command(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-v",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            tmp_path / "wheels",
            ".",
        ],
        checkout,
        AMEIR_FAST_BUILD="none",
    )
    assert "ameir_fast: mode none" in done.stdout + done.stderr  # pip shows the build on either, by version
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in names if n.endswith((".so", ".cpp", ".h"))]
    assert {
        "ameir_fast/kernels/__init__.py",
        "ameir_fast/bench/native.py",
        "ameir_fast/_build_info.json",
    } <= set(names)
    assert {n.split("/")[0] for n in names} == {
        "ameir_fast",
        next(n for n in names if ".dist-info/" in n).split("/")[0],
    }
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import ameir_fast, ameir_fast.kernels, ameir_fast.bench.native as b, ameir_fast.native as n\n"
        "import numpy as np\n"
        "from ameir_fast import metrics\n"
        "print(ameir_fast.__file__); print(b.__file__); print(n.why_not('_C')); print(n.driver())\n"
        "print(metrics.auc(np.array([0.1, 0.9]), np.array([0, 1])))"
    )
    lines = command(
        [sys.executable, "-c", code], tmp_path, PYTHONPATH=str(tmp_path / "site")
    ).stdout.splitlines()
    assert lines[0].startswith(str(tmp_path / "site"))
    assert lines[1].startswith(str(tmp_path / "site"))
    assert lines[2:] == ["not built: AMEIR_FAST_BUILD=none was set when it was built", "None", "1.0"]


@NEEDS_TOOLS
def test_without_torch_it_builds_none_and_says_how_to_get_more(checkout):
    hide = (
        "import importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)"
    )
    done, package, info = build(checkout, prelude=hide)
    assert "mode none" in done.stdout
    assert "torch is not installed in the build environment" in done.stdout
    assert "--no-build-isolation" in done.stdout
    assert natives(package) == []
    assert info["mode"] == "none"
    assert "torch is not installed" in info["reason"]


@NEEDS_TOOLS
def test_without_torch_an_explicit_mode_fails(checkout):
    hide = (
        "import importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)"
    )
    done, _, info = build(checkout, check=False, prelude=hide, AMEIR_FAST_BUILD="cpu")
    assert done.returncode == 1
    assert "cannot build mode cpu: torch is not installed" in done.stderr
    assert info is None


@NEEDS_TOOLS
def test_an_unknown_mode_is_refused(checkout):
    done, _, info = build(checkout, check=False, AMEIR_FAST_BUILD="gpu")
    assert done.returncode == 1
    assert "AMEIR_FAST_BUILD=gpu is none of none, cpu, cuda" in done.stderr
    assert info is None


@NEEDS_TOOLS
def test_cuda_needs_a_cuda_torch(checkout):
    import torch

    if torch.version.cuda:
        pytest.skip("this torch is a CUDA build")
    done, _, _ = build(checkout, check=False, AMEIR_FAST_BUILD="cuda")
    assert done.returncode == 1
    assert "is not a CUDA build" in done.stderr


@NEEDS_TOOLS
def test_a_failing_compiler_falls_back_only_when_nobody_asked(checkout, tmp_path):
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho 'this compiler is broken' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done, package, info = build(checkout, CXX=str(compiler))
    assert "mode none, pure Python without native modules: the native build failed: " in done.stdout
    assert natives(package) == []
    assert info["mode"] == "none"
    assert "failed (exit 1)" in info["reason"]
    shutil.rmtree(checkout / "out")
    done, _, info = build(checkout, check=False, CXX=str(compiler), AMEIR_FAST_BUILD="cpu")
    assert done.returncode == 1
    assert "mode cpu failed" in done.stderr
    assert info is None


@NEEDS_TOOLS
def test_a_missing_compiler_is_named(checkout):
    done, _, info = build(checkout, CXX="/nowhere/c++")
    assert "the compiler CXX=/nowhere/c++ does not exist" in done.stdout
    assert info["mode"] == "none"


# ---- imports ---------------------------------------------------------------------------------------


def test_import_takes_little_beyond_torch():
    """Less than 2 s beyond torch's own import. The smallest of several runs: a busy machine only adds."""
    code = (
        "import time, torch\nstart = time.perf_counter()\n"
        "import ameir_fast\nprint(time.perf_counter() - start)"
    )
    taken = []
    for _ in range(5):
        taken.append(float(command([sys.executable, "-c", code], ROOT).stdout))
        if taken[-1] < 1.0:
            break
    assert min(taken) < 2.0


def test_import_is_pure():
    """No warning, no device probe, no native module, no optional package."""
    code = (
        "import warnings; warnings.simplefilter('error')\nimport sys, torch\nbefore = set(sys.modules)\n"
        "import ameir_fast\nnew = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(torch.cuda.is_initialized(), sorted(new & {'triton', 'polars', 'typer', 'rich', 'sklearn',"
        " 'matplotlib', 'tensorboard', 'torchrec'}))"
    )
    done = command([sys.executable, "-W", "error", "-c", code], ROOT)
    assert done.stdout.split(maxsplit=1) == ["False", "[]\n"]
    assert done.stderr == ""


# ---- whole installations ---------------------------------------------------------------------------


SMOKE = """
import ameir_fast, ameir_fast.kernels, ameir_fast.bench, ameir_fast.bench.native
from ameir_fast import hostops, metrics, native
import numpy as np
assert native.why_not("_C") is None, native.why_not("_C")
assert native.why_not("_driver") is None, native.why_not("_driver")
assert native.why_not("_plan") is None, native.why_not("_plan")
assert metrics.auc(np.array([0.1, 0.9]), np.array([0, 1])) == 1.0
rows = np.array([0])
assert hostops.assemble(rows, [], [], [], rows, rows, 5)[0].shape == (1, 0)
print(ameir_fast.__file__)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A fresh virtual environment that sees the packages of this one, but not this checkout's own
    installation."""
    directory = tmp_path_factory.mktemp("venv")
    command([sys.executable, "-m", "venv", directory], directory)
    python = directory / ("Scripts" if platform.system() == "Windows" else "bin") / "python"
    # Older Pythons put an old setuptools there, which would hide the one of this environment.
    command([python, "-m", "pip", "uninstall", "-y", "setuptools"], directory)
    (site,) = command(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], directory
    ).stdout.splitlines()
    import torch

    # A plain path, unlike a .pth file of the other environment, runs none of its .pth files: no editable
    # installation of this project comes along.
    (Path(site) / "parent.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    return python


@pytest.mark.slow
@NEEDS_TOOLS
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_installation_with_native_modules(checkout, environment, tmp_path, editable):
    what = ["-e", "."] if editable else ["."]
    command(
        [
            environment,
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--no-build-isolation",
            "--force-reinstall",
            *what,
        ],
        checkout,
        AMEIR_FAST_BUILD="cpu",
    )
    for directory in (tmp_path, checkout) if editable else (tmp_path,):
        done = command([environment, "-c", SMOKE], directory)
        assert done.stdout.startswith(str(checkout) if editable else str(environment.parent.parent))
    assert natives(checkout / "ameir_fast") == (["_C", "_driver", "_plan"] if editable else [])


@pytest.mark.slow
@NEEDS_TOOLS
def test_mode_none_removes_modules_of_an_earlier_editable_build(checkout, environment, tmp_path):
    install = [
        environment,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--force-reinstall",
        "-e",
        ".",
    ]
    command(install, checkout, AMEIR_FAST_BUILD="cpu")
    assert natives(checkout / "ameir_fast") == ["_C", "_driver", "_plan"]
    command(install, checkout, AMEIR_FAST_BUILD="none")
    assert natives(checkout / "ameir_fast") == []
    done = command(
        [environment, "-c", "import ameir_fast.kernels, ameir_fast.native as n; print(n.why_not('_C'))"],
        tmp_path,
    )
    assert done.stdout.startswith("not built: AMEIR_FAST_BUILD=none")


@pytest.mark.slow
@NEEDS_TOOLS
def test_source_distribution_builds_a_wheel(checkout, environment, tmp_path):
    command(
        [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path], checkout, AMEIR_FAST_BUILD="none"
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    command(
        [
            environment,
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--no-build-isolation",
            "--force-reinstall",
            archive,
        ],
        tmp_path,
        AMEIR_FAST_BUILD="cpu",
    )
    command([environment, "-c", SMOKE], tmp_path)
