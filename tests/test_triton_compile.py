"""Every kernel's machine code, made without a GPU: nothing spills, enough threads fit, and none is left out."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ameir_fast.bench import kernels as bench
from ameir_fast.kernels import _launch

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "bench" / "results" / "kernels.jsonl"
pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64",
                                reason="triton, and its ptxas and cuobjdump, come for Linux on x86-64")


def launched_kernels() -> set[str]:
    """Names of the jitted functions that are launched, by reading the sources."""
    found = set()
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                assert any("jit" in ast.unparse(d) for d in node.decorator_list), f"{path.name}: {node.name} is not jitted"
                found.add(node.name)
    return found


def check(rows: list[dict]) -> None:
    kernels = bench.load_kernels()
    assert {row["kernel"] for row in rows} == set(kernels) == launched_kernels()
    for row in rows:
        arch = row["arch"]
        what = f"{row['kernel']} ({row['specimen']}, {arch}{', strides of 16' if row['aligned'] else ''})"
        if arch.startswith("gfx"):
            continue  # compiled; the configurations are chosen for the others
        assert row["spills"] == 0, f"{what} spills {row['spills']} bytes a thread"
        floor = kernels[row["kernel"]].occupancy
        assert row["occupancy"] >= floor, f"{what}: {row['registers']} registers and {row['shared_bytes']} bytes of shared " \
                                          f"memory leave {row['occupancy']:.0%} of the threads, under its floor of {floor:.0%}"


def compiled(*arguments: str) -> list[dict]:
    """In a process of its own, since this one may interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "ameir_fast.bench.kernels", *arguments], capture_output=True, text=True,
                          env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("arch", bench.ARCHITECTURES)
def test_default_configurations_compile_without_spills(arch):
    check(compiled("--arch", arch, "--first"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", bench.ARCHITECTURES)
def test_default_configurations_compile_without_spills_at_every_specimen(arch):
    check(compiled("--arch", arch))
    check(compiled("--arch", arch, "--aligned"))


@pytest.mark.slow
def test_strides_of_one_compile():
    rows = compiled("--arch", "sm_90", "--first", "--ones")
    assert {row["kernel"] for row in rows} == launched_kernels()


def test_only_strides_are_compiled_for():
    """A batch or a child of another size finds its kernels compiled."""
    code = ("from ameir_fast.bench.kernels import load_kernels\n"
            "for name, kernel in load_kernels().items():\n"
            "    for p in kernel.function.params:\n"
            "        if kernel.signature.get(p.name) in ('i32', 'i64') and not p.do_not_specialize: print(p.name)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True,
                          env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"})
    found = set(done.stdout.split())
    assert "weight_row" in found and all(name.endswith(_launch.STRIDES) for name in found)


def test_the_stored_table_has_every_specimen_of_every_kernel():
    rows = [json.loads(line) for line in STORED.read_text(encoding="utf-8").splitlines()]
    check(rows)
    assert {(row["kernel"], row["specimen"], row["arch"], row["aligned"]) for row in rows} == {
        (name, specimen.label, arch, aligned) for name, kernel in bench.load_kernels().items() for specimen in kernel.specimens
        for arch in bench.ARCHITECTURES for aligned in (False, True) if not (aligned and arch.startswith("gfx"))}, "run make bench-kernels"
    current = {name: bench.source_of(kernel) for name, kernel in bench.load_kernels().items()}
    assert {row["kernel"] for row in rows if row["source"] != current[row["kernel"]]} == set(), "of other code: run make bench-kernels"
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert "\n".join(bench.table(rows)) in page
    assert all(line in " ".join(page.split()) for line in bench.summary([row for row in rows if not row["arch"].startswith("gfx")]))


def test_what_of_a_module_is_code():
    text = '"""Of a module."""\nfrom ._a import x\nfrom . import _b\nimport os\n\n# why\ndef f():\n    """Of f,\n    two lines."""\n    return x  # beside\n'
    lines, imported = bench.code_of(text)
    assert lines == ["from ._a import x", "from . import _b", "import os", "def f():", "    return x  # beside"]
    assert imported == ["_a", "_b"]
    assert bench.code_of(text.replace("two lines", "no more").replace("why", "how")) == (lines, imported)


def test_strides_of_sixteen_make_other_binaries():
    rows = compiled("--arch", "sm_90", "--first", "--aligned", "--only", "norm_backward")
    assert [row["aligned"] for row in rows] == [True] and rows[0]["spills"] == 0


def test_kernels_have_few_configurations_and_the_first_is_the_default():
    for name, kernel in bench.load_kernels().items():
        assert 1 <= len(kernel.configs) <= _launch.MAX_CONFIGS, name
        assert kernel.specimens and kernel.direction in ("forward", "backward", "update"), name


@pytest.mark.parametrize("value, on", [(None, False), ("0", False), ("off", False), ("1", True)])
def test_autotuning_is_off_unless_asked_for(monkeypatch, value, on):
    monkeypatch.delenv("AMEIR_FAST_AUTOTUNE", raising=False)
    if value is not None:
        monkeypatch.setenv("AMEIR_FAST_AUTOTUNE", value)
    assert _launch.autotuning() is on


def test_occupancy_by_each_limit():
    assert bench.occupancy("sm_90", 4, 32, 0) == 1.0
    assert bench.occupancy("sm_90", 4, 128, 0) == 0.25          # 65,536 registers for 512 threads
    assert bench.occupancy("sm_80", 4, 32, 80 * 1024) == 0.125  # two blocks' shared memory
    assert bench.occupancy("sm_90", 1, 32, 0) == 0.5            # 32 blocks of a warp
