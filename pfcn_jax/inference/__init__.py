"""From a checkpoint and images to results."""
