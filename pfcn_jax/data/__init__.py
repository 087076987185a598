"""The host side: files -> Example -> Batch, as NumPy arrays."""
