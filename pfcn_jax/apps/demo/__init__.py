"""The demo: a web page on this computer."""
