"""The config schema, its checks and its command line."""
