"""Optimizers by name, schedules, parameter masks, and the state of training."""
