"""Devices and processes: the mesh, joining processes and their protocol, prefetch to the devices."""
