"""The TPU's own compiler, without a TPU: does a program compile, does it fit, what does each part cost."""
