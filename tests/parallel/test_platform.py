"""The platform of a mesh, and forms that are chosen while lowering."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.parallel.platform import by_platform, platform


@pytest.mark.parametrize(
    ("name", "expected"), [("cpu", "cpu"), ("gpu", "gpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")]
)
def test_platform_of_a_mesh(name, expected):
    devices = np.array([types.SimpleNamespace(platform=name)])
    assert platform(types.SimpleNamespace(devices=devices)) == expected
    assert platform() == "cpu"  # the tests' own


@pytest.mark.parametrize("forms", [{"cpu": jnp.sin}, {"gpu": jnp.sin}, {"cpu": jnp.sin, "gpu": jnp.tan}])
def test_each_platform_gets_its_form(forms):
    def choose(x):
        return by_platform(x, default=jnp.cos, **forms)

    mark = {jnp.sin: "stablehlo.sine", jnp.tan: "stablehlo.tan", jnp.cos: "stablehlo.cosine"}
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    for name, key in (("cpu", "cpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")):
        text = jax.jit(choose).trace(shape).lower(lowering_platforms=(name,)).as_text()
        assert [op for op in mark.values() if op in text] == [mark[forms.get(key, jnp.cos)]]
