"""Targets and losses equal those recorded from the original implementation."""

from __future__ import annotations

import pathlib

import pytest

from pfcn_jax.studies.parity.gradients import check_training_step
from pfcn_jax.studies.parity.reference import Check, recorded_files
from pfcn_jax.studies.parity.targets import check_targets
from pfcn_jax.studies.parity.training import check_recorded_losses


def assert_all_ok(checks: list[Check]) -> None:
    failed = [one for one in checks if not one.ok]
    assert not failed, "\n".join(str(one) for one in failed)


@pytest.mark.parametrize(
    "name, tensors",
    [
        ("gt_edge", 103),
        ("gt_star_288x320_b1", 50),
        pytest.param("gt_r50-400_192x256_b2", 100, marks=pytest.mark.slow),
        pytest.param("gt_r50_288x320_b2", 100, marks=pytest.mark.slow),
    ],
)
def test_targets(reference_dir: pathlib.Path, name: str, tensors: int) -> None:
    (recorded,) = recorded_files(reference_dir, f"{name}.npz")
    checks = check_targets(recorded)
    assert_all_ok(checks)
    assert len(checks) == tensors, "a tensor was skipped"


def test_losses_from_recorded_heads(reference_dir: pathlib.Path) -> None:
    checks = check_recorded_losses(reference_dir)
    assert_all_ok(checks)
    assert len(checks) == 5 + 5 * 6 + 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "tag, gradients, steps",
    [("r50-400_192x256_b2", 31, 16), ("r50_288x320_b2", 31, 16), ("star_288x320_b1", 32, 16)],
)
def test_training_step(reference_dir: pathlib.Path, tag: str, gradients: int, steps: int) -> None:
    """Network, targets, losses, gradients of every parameter, clipping, decay, momentum: one step of the original."""
    checks = check_training_step(reference_dir, tag)
    assert_all_ok(checks)
    names = [one.tensor for one in checks]
    assert sum(name.startswith("grad/") for name in names) == gradients
    assert sum(name.startswith("step_delta/") for name in names) == steps
    assert sum(name.startswith("fgrad/") for name in names) == 19
    assert sum(name.endswith(": projection") for name in names) == (129 if "star" in tag else 123)
    assert sum("loss" in name for name in names) == 5 + 10
