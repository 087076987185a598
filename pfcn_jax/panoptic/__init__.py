"""The method in pure jnp: targets, kernels, losses, fusion, merge. No Flax modules, no config."""
