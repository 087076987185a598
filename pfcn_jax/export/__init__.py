"""The model as one file without the training code."""
