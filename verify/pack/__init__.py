"""Packs: one file that stands for the model where the model itself is too large to be.

A pack holds what artifacts are compared with: the prompts as token ids, what the reference runner made of them, the
canonical hash of every tensor with a few of its numbers, configuration and tokenizer. It is a safetensors file;
`layout.py` says what is in it.
"""
