"""Backbones: image to res2..res5."""
