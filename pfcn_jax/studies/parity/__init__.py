"""Every recorded tensor of the original implementation against ours."""
