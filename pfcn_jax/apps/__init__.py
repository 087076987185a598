"""Applications on top of prediction: bulk, demo, explain."""
