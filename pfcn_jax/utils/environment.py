"""Conditions of a measurement: device, versions, load."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Returns device, versions and load average."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        "load_average": list(os.getloadavg()),
    }
