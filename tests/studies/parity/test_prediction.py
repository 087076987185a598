"""Predictions recorded from the original implementation: picks, kernels, masks, segments."""

from __future__ import annotations

import pathlib

import pytest

from pfcn_jax.studies.parity.prediction import check_prediction
from pfcn_jax.studies.parity.reference import Check


def assert_ok(checks: list[Check], at_least: int) -> None:
    assert len(checks) >= at_least
    bad = [check for check in checks if not check.ok]
    assert not bad, "\n".join(map(str, bad))


@pytest.mark.parametrize("network", ["r50", pytest.param("star", marks=pytest.mark.slow)])
def test_the_whole_chain_from_the_image_to_the_segments(reference_dir: pathlib.Path, network: str) -> None:
    assert_ok(check_prediction(reference_dir, f"infer_{network}*_result.npz"), at_least=300)
