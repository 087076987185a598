"""The optimizer and the state that a training step carries."""
