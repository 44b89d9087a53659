"""Triton kernels, installed as ``ameir_fast.kernels``: one file per operation, none yet.

A file here holds ``@triton.jit`` kernels and thin launchers only; checks, autograd and modules stay in ``ameir_fast``.
Importing this package does not import triton, so that it works where triton doesn't exist.
"""
