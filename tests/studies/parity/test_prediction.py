"""Predictions recorded from the original implementation: picks, kernels, masks, segments."""

from __future__ import annotations

import pathlib

import pytest

from pfcn_jax.studies.parity.prediction import check_composed, check_prediction
from pfcn_jax.studies.parity.prediction_stages import check_recorded_stages
from pfcn_jax.studies.parity.reference import Check


def assert_ok(checks: list[Check], at_least: int) -> None:
    assert len(checks) >= at_least
    bad = [check for check in checks if not check.ok]
    assert not bad, "\n".join(map(str, bad))


@pytest.mark.slow
def test_each_stage_on_what_the_original_fed_it(reference_dir: pathlib.Path) -> None:
    assert_ok(check_recorded_stages(reference_dir), at_least=100)


@pytest.mark.parametrize("network", ["r50", pytest.param("star", marks=pytest.mark.slow)])
def test_the_whole_chain_from_the_image_to_the_segments(reference_dir: pathlib.Path, network: str) -> None:
    assert_ok(check_prediction(reference_dir, f"infer_{network}*_result.npz"), at_least=300)


@pytest.mark.slow
def test_the_composed_function_on_a_larger_canvas(reference_dir: pathlib.Path) -> None:
    assert_ok(check_composed(reference_dir, "infer_r50_120x180_padded_lowlimit_result.npz", margin=64), at_least=3)
