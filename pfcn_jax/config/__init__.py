"""What can be configured, its checks and its command line."""
