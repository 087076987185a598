"""Metrics on disk: whole lines, each step once, and nothing lost to a full disk."""

from __future__ import annotations

import json
import pathlib

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from pfcn_jax.training.telemetry import MetricsWriter, StepTimer
from tests.support.disks import fill, mounted


def _lines(workdir: pathlib.Path) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def _write(workdir: pathlib.Path, steps, **options) -> None:
    writer = MetricsWriter(workdir, **options)
    for step in steps:
        writer.write(step, {"loss": float(step)})
    writer.close()


def _events(path: pathlib.Path) -> list[Event]:
    """The records of an event file: length, checksum, data, checksum."""
    data, events = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events


def test_a_run_that_goes_on_writes_each_step_once(tmp_path):
    _write(tmp_path, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    _write(tmp_path, (4, 5, 6), start=3)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    first, second = sorted((tmp_path / "tensorboard").iterdir())  # the time is in their names
    assert [event.step for event in _events(first)][2:] == [1, 2, 3, 4, 5]
    version, restart, *rest = _events(second)
    assert version.file_version == "brain.Event:2"
    # TensorBoard drops what other files say of this step and later ones.
    assert restart.step == 4 and restart.session_log.status == SessionLog.START
    assert [event.step for event in rest] == [4, 5, 6]
    assert rest[0].summary.value[0].tag == "loss" and rest[0].summary.value[0].simple_value == 4.0


@pytest.mark.parametrize(("scored", "left"), [(True, 2), (False, 1)])
def test_an_evaluation_that_is_due_again_is_written_once(tmp_path, scored, left):
    writer = MetricsWriter(tmp_path)
    writer.write(2, {"loss": 1.0})
    writer.write(2, {"eval/PQ": 3.0})
    writer.close()
    MetricsWriter(tmp_path, start=2, scored=scored).close()
    assert len(_lines(tmp_path)) == left


def test_a_full_disk_delays_lines_and_loses_none(tmp_path, capsys):
    with mounted(tmp_path / "disk", megabytes=1) as disk:
        writer = MetricsWriter(disk)
        for step in range(1, 200):
            if step == 20:
                ballast = fill(disk)
            if step == 180:
                ballast.unlink()
            writer.write(step, {"loss": float(step), "note": 1.0})
        assert writer.failures > 2
        said = capsys.readouterr().err
        assert "metrics.jsonl: cannot be written (No space left on device)" in said and "kept for a retry" in said
        writer.close()
        assert [line["step"] for line in _lines(disk)] == list(range(1, 200))
        boards = [_events(path) for path in (disk / "tensorboard").iterdir() if path.stat().st_size]
        shown = {event.step for events in boards for event in events if event.summary.value}
        assert shown == set(range(1, 200))


def test_the_timer_says_how_long_a_step_waited():
    timer = StepTimer(4, 10)
    timer.restart(10, 0.5)
    lap = timer.lap(15, 3.0)
    assert lap["input_wait_seconds"] == pytest.approx(0.5)
    assert lap["images_per_second"] == pytest.approx(4 / lap["step_seconds"])
