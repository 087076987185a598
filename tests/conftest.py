"""Strict settings for every test, two CPU devices, and where the reference data lie."""

from __future__ import annotations

import ctypes
import gc
import os
import pathlib
import sys

import jax
import pytest

from tests.support import shapes

shapes.install()  # before anything imports the package
# OpenVINO reports its import over the network, from a forked process; without this package it does not.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("PFCN_TEST_CACHE", str(pathlib.Path.home() / ".cache/pfcn_jax/xla"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_configure(config):
    """The default tests compile much and compute little. The long ones compile as users do."""
    if config.option.markexpr == "not slow":
        from tests.support.tiny import QUICK_COMPILER

        os.environ.setdefault("XLA_FLAGS", QUICK_COMPILER["XLA_FLAGS"])


@pytest.fixture(scope="module", autouse=True)
def _give_memory_back(request):
    """After the long tests of a file: their programs, and what the compiler has freed but the C library still holds,
    are gigabytes, and the next ones start processes of their own."""
    yield
    if any(item.path == request.path and item.get_closest_marker("slow") for item in request.session.items):
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)


def _data_directory(variable: str, what: str) -> pathlib.Path:
    value = os.environ.get(variable, "")
    if value and pathlib.Path(value).is_dir():
        return pathlib.Path(value)
    message = f"{what}: set {variable} to its directory (now {value!r})"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def reference_dir() -> pathlib.Path:
    """The directory with tensors recorded from the original implementation."""
    return _data_directory("PFCN_REFERENCE_DIR", "reference data directory")


@pytest.fixture(scope="session")
def image_data_dir() -> pathlib.Path:
    """The directory with the image sets `coco_sample`, `nuclei` and `two_photos`."""
    return _data_directory("PFCN_DATA_DIR", "image data directory")


@pytest.fixture(scope="session")
def cases_dir() -> pathlib.Path:
    """The directory of damaged data sets as annotation tools write them: PFCN_CASES_DIR, or `cases` beside the data."""
    sibling = pathlib.Path(os.environ.get("PFCN_DATA_DIR", "")).resolve().parent / "cases"
    if "PFCN_CASES_DIR" not in os.environ and os.environ.get("PFCN_DATA_DIR") and sibling.is_dir():
        return sibling
    return _data_directory("PFCN_CASES_DIR", "directory of damaged data sets")
