"""Bundles: an artifact with everything that a device needs to verify and to run it."""
