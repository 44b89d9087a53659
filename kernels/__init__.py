"""Triton kernels, installed as ``ameir_fast.kernels``: one file per operation.

A file here holds ``@triton.jit`` kernels and their launchers: ``forward(*arguments)`` and
``backward(gradient, *arguments)`` of the operation of the file's name, with the arguments of its schema
(``ameir_fast.ops``). Checks, autograd and modules stay in ``ameir_fast``. Importing this package does not import triton,
so that it works where triton doesn't exist.
"""
