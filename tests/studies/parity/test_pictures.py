"""The picture path equals the recorded one exactly."""

from __future__ import annotations

from pfcn_jax.studies.parity.pictures import check_pictures


def test_picture_path_equals_the_recorded_one(reference_dir, pictures_dir):
    checks = check_pictures(reference_dir, pictures_dir)
    assert len(checks) == 5 * 5 + 6
    assert not [one for one in checks if not one.ok]
    assert {one.max_abs_diff for one in checks} == {0.0}
