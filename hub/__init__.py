"""Models on the Hugging Face Hub as sources: downloaded, or read where they lie.

Nothing here is imported, and no connection is made, unless a source names a model of the Hub. The library
`huggingface_hub` is asked for everything that it does: cache, progress, token, addresses.
"""
