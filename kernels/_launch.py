"""What all kernels share: the table of them, the choice of a configuration, and launching.

A kernel is declared once, beside its code, as a :class:`Kernel`: the ``@triton.jit`` function, the types of its
arguments, at most eight configurations, of which it tells the default, and *specimens*: the constants at which it is
compiled without a GPU (``ameir-fast bench kernels --compile-only``), so that registers, spills and shared memory of
what will run are known before it runs.

``AMEIR_FAST_AUTOTUNE=1`` measures all configurations at a kernel's first launch of each bucket of shapes and keeps the
fastest for the process; ``0``, the default, takes the kernel's default.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import triton

MAX_CONFIGS = 8
#: How the names of arguments end that are strides.
STRIDES = ("_row", "_column", "_col", "_stride", "_out", "_in", "_tap")

#: Every kernel by name; filled by the declarations in this folder.
KERNELS: dict[str, Kernel] = {}


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU (``TRITON_INTERPRET=1``)."""
    return bool(triton.knobs.runtime.interpret)


def autotuning() -> bool:
    return os.environ.get("AMEIR_FAST_AUTOTUNE", "0").strip().lower() not in ("", "0", "false", "no", "off")


_recording = threading.local()  # where another thread launches, it does


@contextlib.contextmanager
def recording(names: list[str]) -> Iterator[None]:
    """Launches of this thread are noted by name and not made: what would run, without a GPU, on tensors without memory
    (device ``meta``)."""
    before, _recording.names = getattr(_recording, "names", None), names
    try:
        yield
    finally:
        _recording.names = before


def is_recording() -> bool:
    return getattr(_recording, "names", None) is not None


def note(text: str) -> None:
    """Among the launches that are noted, what begins here."""
    if is_recording():
        _recording.names.append(text)


@dataclass(frozen=True, init=False)
class Config:
    """Block sizes (constexpr arguments of the kernel), warps and pipeline stages. ``maxnreg``, registers a thread at
    most, is for kernels of which the assembler would otherwise spill a few for one more resident block."""

    blocks: Mapping[str, int]
    options: Mapping[str, int]

    def __init__(self, num_warps: int = 4, num_stages: int = 1, maxnreg: int | None = None, **blocks: int):
        options = {"num_warps": num_warps, "num_stages": num_stages}
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "options", options if maxnreg is None else {**options, "maxnreg": maxnreg})


@dataclass(frozen=True)
class Specimen:
    """Constants of a launch that do not come from the configuration. An argument of the signature that is named here
    is a constant too: ``None`` for a tensor that is absent."""

    label: str
    constants: Mapping[str, object]


@dataclass
class Kernel:
    """A launchable kernel.

    Args:
        function: the ``@triton.jit`` function.
        direction: ``"forward"`` or ``"backward"`` (an optimizer's step is ``"update"``).
        signature: type of each argument that is no constexpr, in Triton's terms (``"*fp32"``, ``"*i64"``, ``"i32"``). Whole numbers
            are ``"i32"``: at a launch Triton goes by their values, so that a kernel has to widen what may become large.
        configs: the default first (but see ``default``), at most :data:`MAX_CONFIGS`.
        specimens: what is compiled ahead of time.
        accumulates: arguments that a launch adds to; tuning works on copies of them.
        occupancy: share of a multiprocessor's threads below which registers and shared memory of the default may not
            push it (a test compares).
        default: which configuration is the default for such arguments, where it is not always the first.
        unaligned: tensors for which nothing is compiled anew where they do not begin at a multiple of 16 bytes.
    """

    function: Callable
    direction: str
    signature: Mapping[str, str]
    configs: Sequence[Config]
    specimens: Sequence[Specimen]
    accumulates: Sequence[str] = ()
    occupancy: float = 0.25
    default: Callable[[Mapping[str, object]], int] = lambda arguments: 0
    unaligned: Sequence[str] = ()
    _tuned: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self.name = getattr(self.function, "fn", self.function).__name__
        if not 1 <= len(self.configs) <= MAX_CONFIGS:
            raise ValueError(f"{self.name}: {len(self.configs)} configurations; there must be 1 to {MAX_CONFIGS}")
        if not self.specimens:
            raise ValueError(f"{self.name}: no specimen to compile")
        if "i64" in self.signature.values():
            raise ValueError(f"{self.name}: whole numbers are declared as i32")
        if self.name in KERNELS:
            raise ValueError(f"two kernels are called {self.name}")
        KERNELS[self.name] = self
        # Triton compiles anew for a number that is 1 or a multiple of 16. That pays for strides, which say how wide loads
        # may be, but sizes differ from batch to batch and from child to child.
        numbers = {name for name, kind in self.signature.items() if kind == "i32"} & set(self.function.arg_names)
        self.strides = sorted(name for name in numbers if name.endswith(STRIDES))
        for parameter in getattr(self.function, "params", ()):  # the interpreter's functions have none
            if parameter.name in numbers and parameter.name not in self.strides:
                parameter.do_not_specialize = True
            if parameter.name in self.unaligned:
                parameter.do_not_specialize_on_alignment = True

    def default_config(self, arguments: Mapping[str, object]) -> Config:
        """What a launch with these arguments takes unless it is tuned."""
        return self.configs[self.default(arguments)]

    def __call__(self, grid: Callable[[Mapping[str, int]], tuple[int, ...]], bucket: tuple = (), **arguments) -> None:
        """Launches over ``grid(blocks)``; shapes in one ``bucket`` share a tuned configuration. A grid with a zero in
        it launches nothing."""
        config = self.default_config(arguments)
        if len(self.configs) > 1 and autotuning() and not interpreting() and not is_recording():
            if bucket not in self._tuned:
                self._tuned[bucket] = self._measure(grid, arguments)
            config = self._tuned[bucket]
        self._launch(config, grid, arguments)

    def _launch(self, config: Config, grid: Callable, arguments: Mapping) -> None:
        programs = grid(config.blocks)
        if 0 in programs:
            return
        if is_recording():
            note(self.name)
        else:
            options = config.options if torch.version.hip is None else {k: v for k, v in config.options.items() if k != "maxnreg"}
            self.function[programs](**arguments, **config.blocks, **options)

    def _measure(self, grid: Callable, arguments: Mapping) -> Config:
        copies = {name: arguments[name].clone() for name in self.accumulates if arguments.get(name) is not None}
        launch = functools.partial(self._launch, grid=grid, arguments={**arguments, **copies})
        return min(self.configs, key=lambda c: triton.testing.do_bench(lambda: launch(c), return_mode="median"))


def bucket(*sizes: int) -> tuple[int, ...]:
    """Sizes rounded up to powers of two: what a tuned configuration is remembered by."""
    return tuple(triton.next_power_of_2(max(1, n)) for n in sizes)


def strides(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Strides of a matrix in elements, for kernels that read slices in place."""
    return (0, 0) if tensor is None else tensor.stride()
