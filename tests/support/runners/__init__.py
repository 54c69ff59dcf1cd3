"""Runners for tests, imported by the child process, on whose path this folder is put."""
