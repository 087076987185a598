"""The `ablate` verb: the paper's seven ablation tables, each by one command."""
