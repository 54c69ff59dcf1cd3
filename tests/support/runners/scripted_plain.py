"""The scripted runner, which here does not know how much memory it needs."""

from importlib import import_module

RUNNER = import_module("scripted").PlainRunner()
