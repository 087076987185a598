"""Convolutions and the forms they take on each platform."""
