"""Checkpoints that are damaged, half-written or do not fit on the disk; the state here is a handful of numbers."""

from __future__ import annotations

import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax import checkpoints as checkpoints_room
from pfcn_jax.checkpoints.format import CheckpointError, check_intact, find_checkpoint, load_meta, load_run
from pfcn_jax.checkpoints.manager import Checkpoints
from pfcn_jax.checkpoints.manifest import MANIFEST, find_damage
from tests.support.disks import fill, mounted

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def _state(step: int, size: int = 4096):
    values = np.random.default_rng(step).normal(size=size).astype(np.float32)
    return {"params": {"a": jnp.asarray(values)}, "batch_stats": {}}, {"step": jnp.int32(step), "opt_state": ()}


def _keep(
    workdir: pathlib.Path, *steps: int, keep_latest: int = 3, keep_best: int = 1, size: int = 4096
) -> Checkpoints:
    checkpoints = Checkpoints(workdir, keep_latest=keep_latest, keep_best=keep_best)
    checkpoints.newest_intact()
    for step in steps:
        model, training = _state(step, size)
        checkpoints.save(step, model=model, training=training, meta={"config": {"seed": step}})
    checkpoints.wait()
    return checkpoints


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> pathlib.Path:
    """A working directory with checkpoints of steps 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("kept")
    _keep(workdir, 1, 2, 3).close()
    return workdir


@pytest.fixture
def workdir(intact, tmp_path) -> pathlib.Path:
    return shutil.copytree(intact, tmp_path / "run")


def _load(checkpoint: pathlib.Path):
    model, training = _state(0)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (model, training))
    return load_run(checkpoint, model=abstract[0], training=abstract[1])


def test_what_was_written_comes_back(intact):
    assert Checkpoints(intact, keep_latest=3, keep_best=1).newest_intact() == 3
    for step in (1, 2, 3):
        path = intact / "checkpoints" / str(step)
        assert find_damage(path) == [] and load_meta(path)["config"] == {"seed": step}
        jax.tree.map(np.testing.assert_array_equal, _load(path), _state(step))


def _files(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    """All files that something is read from."""
    named = json.loads((checkpoint / MANIFEST).read_text())["files"]
    files = [checkpoint / MANIFEST, *[checkpoint / name for name in named]]
    assert len(files) > 15 and any("/d/" in str(path) for path in files)
    return files


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes, place: float) -> bytes:
    position = min(int(place * len(data)), len(data) - 1)
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "emptied"])
def test_damage_to_any_file_is_found_and_named(workdir, harm):
    latest = workdir / "checkpoints" / "3"
    for path in _files(latest):
        before = path.read_bytes()
        if harm == "missing":
            path.unlink()
            assert find_damage(latest) == [f"{path.relative_to(latest)}: missing"]
        else:
            changes = {"truncated": [_truncate(before)], "emptied": [b""]}.get(harm) or [
                _flip(before, place) for place in (0.0, 0.25, 0.5, 0.9, 1.0)
            ]
            for changed in changes:
                if changed != before:
                    path.write_bytes(changed)
                    lines = find_damage(latest)
                    assert len(lines) == 1 and lines[0].startswith(f"{path.relative_to(latest)}: "), path
        path.write_bytes(before)
    assert find_damage(latest) == []


def test_the_one_before_is_used_and_the_damaged_one_can_be_written_again(workdir, capsys):
    checkpoint = workdir / "checkpoints" / "3"
    victim = next(checkpoint.glob("model/ocdbt.process_0/d/*"))
    victim.write_bytes(_flip(victim.read_bytes(), 0.5))
    shutil.rmtree(workdir / "checkpoints" / "2" / "training")
    (workdir / "checkpoints" / "4.orbax-checkpoint-tmp-17").mkdir()  # killed while writing
    checkpoints = Checkpoints(workdir, keep_latest=3, keep_best=1)
    assert checkpoints.newest_intact() == 1
    said = capsys.readouterr().err
    assert f"{checkpoint}: damaged, so the checkpoint of step 1 is used" in said and victim.name in said
    assert "training/_METADATA: missing" in said
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["2", "3"]
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]
    model, training = _state(2)
    checkpoints.save(2, model=model, training=training, meta={})
    checkpoints.close()
    assert checkpoints.newest_intact() == 2 and find_damage(workdir / "checkpoints" / "2") == []


def test_when_all_are_damaged_nothing_is_begun_anew(workdir):
    for step in (1, 2, 3):
        path = workdir / "checkpoints" / str(step) / "model" / "_METADATA"
        path.write_bytes(_truncate(path.read_bytes()))
    for _ in range(2):  # nor is it the second time
        with pytest.raises(CheckpointError, match="every checkpoint is damaged") as caught:
            Checkpoints(workdir, keep_latest=3, keep_best=1).newest_intact()
        for step in (1, 2, 3):
            assert f"{step}: model/_METADATA: " in str(caught.value)


def test_using_a_damaged_checkpoint_is_a_clear_error(workdir):
    path = workdir / "checkpoints" / "3"
    victim = next(path.glob("model/ocdbt.process_0/d/*"))
    victim.write_bytes(_flip(victim.read_bytes(), 0.3))
    with pytest.raises(CheckpointError, match=rf"3: damaged.*; beside it lie 1, 2:\n  model/.*{victim.name}"):
        check_intact(find_checkpoint(workdir))
    shutil.rmtree(path / "model")
    with pytest.raises(CheckpointError, match=r"model/\S+: missing"):
        check_intact(find_checkpoint(path))
    shutil.rmtree(path / "meta")
    (path / MANIFEST).unlink()
    assert find_damage(path) == [f"{MANIFEST}: missing"]


def test_the_latest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_latest=2, keep_best=1)
    checkpoints.newest_intact()
    for step, pq in {1: 30.0, 2: 50.0, 3: 40.0, 4: None, 5: 50.0, 6: None, 7: 10.0}.items():
        model, training = _state(step)
        checkpoints.save(step, model=model, training=training, meta={})
        if pq is not None:
            checkpoints.score(step, pq)
    checkpoints.close()
    assert checkpoints.steps() == [5, 6, 7]
    assert find_checkpoint(tmp_path, best=True).name == "5" and find_checkpoint(tmp_path).name == "7"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    with mounted(tmp_path / "disk", megabytes=3) as disk:
        yield disk


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(small_disk, capsys, caplog):
    checkpoints = _keep(small_disk, 1, size=50_000)
    assert (checkpoints.steps(), checkpoints.failures) == ([1], 0)
    ballast = fill(small_disk)
    for step in (2, 3):
        model, training = _state(step, 50_000)
        checkpoints.save(step, model=model, training=training, meta={})
        checkpoints.wait()
    assert (checkpoints.steps(), checkpoints.failures) == ([1], 2)
    assert not caplog.records  # one line each is enough
    assert "No space left on device" in checkpoints.problem
    said = capsys.readouterr().err
    assert "checkpoints/2: this checkpoint could not be written (" in said
    ballast.unlink()
    model, training = _state(4, 50_000)
    checkpoints.save(4, model=model, training=training, meta={})
    checkpoints.close()
    assert (checkpoints.steps(), checkpoints.problem) == ([1, 4], "")
    assert [path.name for path in sorted((small_disk / "checkpoints").iterdir())] == ["1", "4"]  # nothing half-written
    assert find_damage(small_disk / "checkpoints" / "4") == []


def test_the_files_of_the_room_import_in_one_order():
    order = ["manifest", "format", "manager", "loading"]
    room = pathlib.Path(checkpoints_room.__file__).parent
    for index, name in enumerate(order):
        imported = re.findall(r"^from pfcn_jax\.checkpoints\.(\w+) import", (room / f"{name}.py").read_text(), re.M)
        assert not set(imported) & set(order[index:]), name
