"""Proof that an artifact is the model that it claims to be."""
