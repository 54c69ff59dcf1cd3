"""Measurements of whole commands, side by side with `cp` and with the tools that do the same work.

Run from the repository root: `python -m benchmarks --help`.
"""
