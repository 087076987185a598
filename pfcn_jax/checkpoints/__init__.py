"""Checkpoints. Each file may import those before it: manifest, format, manager, loading."""
