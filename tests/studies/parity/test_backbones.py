"""One recorded size of each new backbone against ours; the other sizes are slow."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from pfcn_jax.studies.parity import backbones
from pfcn_jax.studies.parity.reference import Recorded

QUICK = ("swin_t_128x160",)
SLOW = ("convnext_tiny_256x320", "swin_t_200x280", "swin_t_256x320")
LITE = ("efficientnet_lite0_200x280", "efficientnet_lite0_224x224")


def _check(reference_dir, name):
    folder = reference_dir / "backbones"
    model, _, size = name.rpartition("_")
    weights = backbones.installed_or_drawn(folder, model)
    if weights is None:
        pytest.skip(f"{backbones.package_of(model)} is not installed")
    with jax.default_matmul_precision("highest"):
        recorded = Recorded(folder / f"{name}.npz")
        checks = backbones.check_backbone(folder, recorded, backbones.registered_name(model), size, weights)
    assert checks and {check.tensor for check in checks} >= {"input"}
    assert [dataclasses.asdict(check) for check in checks if not check.ok] == []


@pytest.mark.parametrize(
    "name", [*QUICK, LITE[0], *(pytest.param(n, marks=pytest.mark.slow) for n in (*SLOW, LITE[1]))]
)
def test_features_are_those_recorded(name, reference_dir):
    _check(reference_dir, name)
