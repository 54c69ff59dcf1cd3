"""Graphs of gpt-oss: operators and the weights that they want, without the numbers."""
