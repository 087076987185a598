"""numpy only: files -> Example -> Batch."""
