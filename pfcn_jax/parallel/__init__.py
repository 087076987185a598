"""Devices and processes: the mesh, joining processes, batches on their way to the devices."""
