"""Flax Linen only: arrays -> arrays."""
