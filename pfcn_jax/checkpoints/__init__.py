"""Checkpoints: format, manifest, the checkpoints of a run, loading."""
