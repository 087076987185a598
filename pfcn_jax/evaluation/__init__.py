"""Scores of a model, and what shows them."""
