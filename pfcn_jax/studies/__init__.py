"""Tools for researchers: benchmark, ablation, parity. Nothing imports them."""
