"""Every recorded intermediate of the original network, base and enhanced model."""

from __future__ import annotations

import pathlib

import pytest

from pfcn_jax.studies.parity.network import check_network, load_model
from pfcn_jax.studies.parity.reference import Recorded

INFER = [
    f"infer_{model}_{size}_feats" for model in ("r50", "star") for size in ("128x192", "120x180_padded", "256x320")
]
TRAIN = ["train_r50_288x320_b2", "train_star_288x320_b1", "train_r50-400_192x256_b2"]


SMALL = ("infer_r50_128x192_feats", "infer_star_128x192_feats")  # by default; the others take a program each


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        pytest.param(name, count, marks=() if name in SMALL else pytest.mark.slow)
        for names, count in ((INFER, 32), (TRAIN, 28))
        for name in names
    ],
)
def test_recorded_features(name: str, tensors: int, reference_dir: pathlib.Path) -> None:
    checks = check_network(Recorded(reference_dir / "tensors" / f"{name}.npz"), reference_dir)
    assert len(checks) == tensors
    assert not [check for check in checks if not check.ok]


def test_variants_are_told_apart(reference_dir: pathlib.Path) -> None:
    base, _ = load_model(reference_dir, "R50-400-3x-FAST")
    star, _ = load_model(reference_dir, "Star-R50-3x")
    assert (base.options.encoder_deformable, base.options.encoder_channels) == (False, 64)
    assert (star.options.encoder_deformable, star.options.encoder_channels) == (True, 256)
