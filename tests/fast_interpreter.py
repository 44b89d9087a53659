"""Triton's interpreter without the work it does in vain: the same values in a third of the time or less.

Of what a kernel's test costs in the interpreter, most is Python around NumPy's operations. What is replaced here has no
part in any value: the language's functions are replaced by interpreted ones again at every call of a function inside a
kernel; integers are added twice, to ask for an overflow, and the answer is thrown away, as asserts are off; types and
shapes are wrapped anew for each intermediate result.
"""

from __future__ import annotations

import dataclasses

import triton
import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """For all kernels of this process; known to fit triton 3.6 and 3.7, others are left alone."""
    if not triton.__version__.startswith(("3.6.", "3.7.")):
        return
    asserts = bool(triton.knobs.runtime.debug)  # TRITON_DEBUG=1: integers that overflow fail their test
    interpreter.interpreter_builder.options = dataclasses.replace(interpreter.interpreter_builder.options, debug=asserts,
                                                                  sanitize_overflow=asserts)
    interpreter._patch_lang = _once_for_each_language(interpreter._patch_lang)
    interpreter._get_np_dtype = _once_for_each_name(interpreter._get_np_dtype)
    tl.block_type.__init__ = _init_block_type
    tl.tensor.__init__ = _init_tensor


def _once_for_each_language(patch):
    """What is replaced stays so: a process that interprets compiles nothing."""
    done = set()

    def patched(fn):
        if fn not in done:
            done.add(fn)
            languages = frozenset(id(value) for value in fn.__globals__.values() if value is tl or value is tl.core)
            if languages not in done:
                done.add(languages)
                patch(fn)
        return interpreter._LangPatchScope()  # nothing to restore

    return patched


def _once_for_each_name(np_dtype):
    known = {}

    def dtype(kind):
        name = kind.scalar.name
        if name not in known:
            known[name] = np_dtype(kind)
        return known[name]

    return dtype


_original_init_block_type = tl.block_type.__init__
_shapes: dict = {}
_scalar = tl.constexpr(1), tl.tuple([])


def _init_block_type(self, element_ty, shape) -> None:
    sizes = tuple([s.value if isinstance(s, tl.constexpr) else s for s in shape])
    if sizes not in _shapes:
        _original_init_block_type(self, element_ty, shape)
        wrapped = tl.constexpr(self.numel), tl.tuple([tl.constexpr(size) for size in sizes])
        _shapes[sizes] = self.shape, self.numel, str(self.shape), wrapped
    self.element_ty = element_ty
    self.shape, self.numel, text, self.wrapped = _shapes[sizes]
    self.name = f"<{text}, {element_ty}>"


def _init_tensor(self, handle, type) -> None:
    self.handle = handle
    self.type = type
    self.dtype = type.scalar
    self.numel, self.shape = type.wrapped if type.is_block() else _scalar
