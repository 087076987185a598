"""Small helpers for every room: atomic writes, retries, messages, progress, the machine."""
