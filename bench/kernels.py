"""Ahead-of-time compilation of every kernel, without a GPU: registers, spills, shared memory and occupancy from the binary.

``ameir-fast bench kernels --compile-only`` compiles each kernel's default configuration at each of its specimens for
NVIDIA's sm_80, sm_90 and sm_100, for any strides and for such that are multiples of 16, and reads the resource usage out
of the machine code with ``cuobjdump``; and for AMD's gfx942, whose assembly states it, for any strides.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")

#: Of one multiprocessor: registers, shared memory in bytes, threads, blocks (CUDA C++ Programming Guide, compute
#: capabilities).
LIMITS = {"sm_80": (65536, 164 * 1024, 2048, 32), "sm_90": (65536, 228 * 1024, 2048, 32),
          "sm_100": (65536, 228 * 1024, 2048, 32)}
RESERVED_SHARED = 1024  # bytes a block that the system takes
REGISTER_UNIT = 256     # registers are handed out to a warp in units of this many

# Of gfx942 (CDNA 3 instruction set architecture): vector registers of a lane, in units, wavefronts and shared memory.
AMD_REGISTERS, AMD_UNIT, AMD_WAVES, AMD_SIMDS, AMD_SHARED = 512, 8, 8, 4, 64 * 1024


def load_kernels() -> dict:
    """Every kernel by name, all modules of ``ameir_fast.kernels`` imported."""
    import ameir_fast.kernels as package
    from ameir_fast.kernels._launch import KERNELS
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return KERNELS


def run(architectures: list[str] | None = None, only: str | None = None, aligned: bool | None = None) -> Iterator[dict]:
    """The rows of :func:`compile_rows` with versions, for any strides, for multiples of 16 (``aligned``), or both (``None``; not of
    AMD's); ``InputError`` for an architecture that is not known, or where
    kernels are interpreted and not compiled."""
    import triton

    from ..errors import InputError
    from ..kernels._launch import interpreting
    from ..search.environment import describe
    for arch in architectures or ():
        if arch not in ARCHITECTURES:
            raise InputError(f"architecture {arch!r} is unknown; known: {', '.join(ARCHITECTURES)}")
    if interpreting():
        raise InputError("TRITON_INTERPRET is set, so kernels are interpreted and cannot be compiled")
    about = describe("cpu")
    architectures = architectures or ARCHITECTURES
    rows = [] if aligned else [compile_rows(architectures, only)]
    if aligned or aligned is None:
        rows.append(compile_rows([a for a in architectures if aligned or not a.startswith("gfx")], only, aligned=True))
    for row in itertools.chain(*rows):
        yield {**row, "versions": {"triton": triton.__version__}, **{name: about[name] for name in ("git", "date")}}


def line(row: dict) -> str:
    return (f"{row['kernel']:<34} {row['specimen']:<26} {row['arch']:<7} {'×16' if row['aligned'] else '   '} {row['registers']:>3} registers  {row['spills']:>3} spilt  "
            f"{row['shared_bytes']:>6} B shared  {100 * row['occupancy']:>3.0f}% of threads resident")


def summary(rows: list[dict]) -> list[str]:
    if not rows:
        return ["no kernel"]
    spilt = sum(row["spills"] > 0 for row in rows)
    least = min(rows, key=lambda row: row["occupancy"])
    return [f"{len({row['kernel'] for row in rows})} kernels, {len(rows):,} binaries: "
            f"{spilt or 'none'} with spills; least occupancy {100 * least['occupancy']:.0f}% ({least['kernel']}, {least['arch']})"]


def table(rows: list[dict]) -> list[str]:
    """Markdown: a line for each kernel, of all its specimens the most registers and shared memory and the least
    occupancy, by architecture."""
    archs = [arch for arch in ARCHITECTURES if any(row["arch"] == arch for row in rows)]
    lines = ["| kernel | direction | specimens | " + " | ".join(f"{arch}: registers, KiB, occupancy" for arch in archs) + " | spills |",
             "|---|---|---|" + "---|" * (len(archs) + 1)]
    kernels: dict[str, list[dict]] = {}
    for row in rows:
        kernels.setdefault(row["kernel"], []).append(row)
    for name, own in kernels.items():
        cells = []
        for arch in archs:
            here = [row for row in own if row["arch"] == arch]
            cells.append(f"{max(row['registers'] for row in here)}, {max(row['shared_bytes'] for row in here) / 1024:.0f}, "
                         f"{100 * min(row['occupancy'] for row in here):.0f} %")
        lines.append(f"| `{name.removesuffix('_kernel')}` | {own[0]['direction']} | {len({row['specimen'] for row in own})} | "
                     f"{' | '.join(cells)} | {max(row['spills'] for row in own)} |")
    return lines


def compile_rows(architectures=ARCHITECTURES, only: str | None = None, first: bool = False,
                 ones: bool = False, aligned: bool = False) -> Iterator[dict]:
    """A row for each kernel, specimen (or the first one) and architecture; with ``aligned`` as of tensors whose strides are
    multiples of 16, for which Triton compiles other binaries with wider loads; with ``ones`` of strides that are all 1, which
    it makes constants of."""
    for name, kernel in sorted(load_kernels().items()):
        if only and only not in name:
            continue
        source = source_of(kernel)
        for specimen in kernel.specimens[:1] if first else kernel.specimens:
            if ones:
                strides = dict.fromkeys(kernel.strides, 1)
                specimen = dataclasses.replace(specimen, constants={**strides, **specimen.constants})
            for arch in architectures:
                yield {"kernel": name, "direction": kernel.direction, "source": source, "specimen": specimen.label, "arch": arch,
                       "aligned": aligned, **compile_one(kernel, kernel.default_config(specimen.constants), specimen, arch, aligned)}


def source_of(kernel) -> str:
    """Names the code of a kernel's module and of the others in its folder that it imports (but ``_launch``, which compiles
    nothing), without docstrings and lines of comment: a row of other code is out of date."""
    folder, wanted, known = Path(inspect.getfile(kernel.function.fn)).parent, [kernel.function.fn.__module__.rpartition(".")[2]], {}
    while wanted:
        name = wanted.pop()
        if name not in known and name != "_launch" and (folder / f"{name}.py").exists():
            known[name], imported = code_of((folder / f"{name}.py").read_text(encoding="utf-8"))
            wanted += imported
    return hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()[:12]


def code_of(text: str) -> tuple[list[str], list[str]]:
    """A module's lines of code, and the modules beside it that it imports from."""
    left_out, imported = set(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            imported += [node.module] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            left_out.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return [line for number, line in enumerate(text.splitlines(), start=1)
            if number not in left_out and line.strip() and not line.strip().startswith("#")], imported


def compile_one(kernel, config, specimen, arch: str, aligned: bool = False) -> dict:
    """Registers a thread, bytes spilt (local memory) a thread, shared bytes a block, and occupancy; ``aligned``: of strides
    that are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    constants = {**specimen.constants, **config.blocks}
    function = kernel.function
    signature = {name: "constexpr" if name in constants else kernel.signature[name] for name in function.arg_names}
    # As at a launch: tensors from PyTorch begin at multiples of 16 bytes.
    multiples = {name for name in kernel.signature if kernel.signature[name].startswith("*")} - set(kernel.unaligned)
    if aligned:
        multiples |= set(kernel.strides)
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(function.arg_names)
                  if signature[name] != "constexpr" and name in multiples}
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    options = {name: value for name, value in config.options.items() if not (amd and name == "maxnreg")}
    compiled = triton.compile(source, target=target, options=options)
    registers, stack = amd_usage(compiled.asm["amdgcn"]) if amd else resource_usage(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    num_warps = config.options["num_warps"]
    return {**config.options, "blocks": dict(config.blocks),
            "registers": registers, "spills": stack, "shared_bytes": shared,
            "occupancy": (amd_occupancy if amd else functools.partial(occupancy, arch))(num_warps, registers, shared)}


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and local memory (bytes a thread: spilt registers and indexed arrays) of a binary's one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([cuobjdump(), "--dump-resource-usage", file.name], capture_output=True, text=True,
                              check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if not found:
        raise RuntimeError(f"cuobjdump's answer has no resource usage: {text!r}")
    return int(found[1]), int(found[2]) + int(found[3])


def amd_usage(assembly: str) -> tuple[int, int]:
    """Vector registers and private memory (bytes a thread) that an assembly's metadata states."""
    number = lambda name: int(re.search(rf"\.{name}:\s*(\d+)", assembly)[1])
    return number("vgpr_count"), number("private_segment_fixed_size")


def amd_occupancy(num_warps: int, registers: int, shared: int) -> float:
    """Share of a compute unit's wavefronts that can be resident."""
    per_simd = min(AMD_WAVES, AMD_REGISTERS // (-(-max(1, registers) // AMD_UNIT) * AMD_UNIT))
    blocks = min(per_simd * AMD_SIMDS // num_warps, AMD_SHARED // max(1, shared))
    return blocks * num_warps / (AMD_WAVES * AMD_SIMDS)


def cuobjdump() -> str:
    """The one that triton brings along."""
    import triton
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return os.environ.get("TRITON_CUOBJDUMP_PATH") or str(path)


def occupancy(arch: str, num_warps: int, registers: int, shared: int) -> float:
    """Share of a multiprocessor's threads that can be resident, by registers, shared memory and blocks."""
    all_registers, all_shared, threads, blocks = LIMITS[arch]
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    fits = min(threads // (32 * num_warps), blocks, all_registers // (per_warp * num_warps),
               all_shared // (shared + RESERVED_SHARED))
    return fits * num_warps * 32 / threads


def main() -> None:
    """Rows as JSON lines on standard output, for whoever calls this from a process that interprets kernels."""
    import argparse
    import json
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--only", help="kernels with this in their name")
    parser.add_argument("--first", action="store_true", help="one specimen of each kernel")
    parser.add_argument("--ones", action="store_true", help="strides are 1")
    parser.add_argument("--aligned", action="store_true", help="strides are multiples of 16")
    args = parser.parse_args()
    for row in compile_rows(args.arch.split(","), args.only, args.first, args.ones, args.aligned):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
