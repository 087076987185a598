"""Training: the loop, its state, its failures and its metrics."""
