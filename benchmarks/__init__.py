"""Measurements: whole commands beside `cp` and the tools that do the same work, and kernels beside memcpy.

Run from the repository root: `python -m benchmarks --help`.
"""
