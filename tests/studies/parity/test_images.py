"""The image path equals the recorded one exactly."""

from __future__ import annotations

from pfcn_jax.studies.parity.images import check_images


def test_image_path_equals_the_recorded_one(reference_dir, image_data_dir):
    checks = check_images(reference_dir, image_data_dir)
    assert len(checks) == 5 * 5 + 6
    assert not [one for one in checks if not one.ok]
    assert {one.max_abs_diff for one in checks} == {0.0}
