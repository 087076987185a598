"""Small helpers that many rooms need."""
