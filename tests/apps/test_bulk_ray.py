"""`bulk` with Ray: real workers on this computer, one killed on the way; then all of them with their driver."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.data.datasets.scenes import Scenes
from tests.support.tiny import write_tiny_model

pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-bulk.txt")
pytest.importorskip("pandas", reason="Ray Data is not installed: pip install -r requirements-bulk.txt")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]
IMAGES = 40
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    with jax.numpy_dtype_promotion("standard"):
        return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    """IMAGES good ones, some of the same name, and a broken one."""
    folder, scenes = tmp_path_factory.mktemp("pictures"), Scenes("val", size=(48, 64))
    for index in range(IMAGES):
        path = folder / f"part{index % 3}" / f"{index // 6}.{('png', 'bmp')[index % 2]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(scenes[index].image).save(path)
    (folder / "part0" / "bad.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def plain(checkpoint, images, tmp_path_factory) -> dict[bytes, list]:
    """What `predict` gives: id map -> segments."""
    output = tmp_path_factory.mktemp("plain")
    argv = ["predict", "--checkpoint", str(checkpoint), "--output", str(output), "--no-overlay", str(images)]
    assert front_door.main(argv) == 1
    annotations = json.loads((output / "panoptic.json").read_text())["annotations"]
    return {(output / "panoptic" / entry["file_name"]).read_bytes(): entry["segments_info"] for entry in annotations}


def start(checkpoint: pathlib.Path, images: pathlib.Path, output: pathlib.Path, *more: str) -> subprocess.Popen:
    """The verb as somebody at a terminal would run it."""
    argv = [sys.executable, "-m", "pfcn_jax.main", "bulk", str(images), "--checkpoint", str(checkpoint)]
    argv += ["--output", str(output), "--workers", "2", "--shard-size", "2", *more]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def maps(output: pathlib.Path) -> dict[str, pathlib.Path]:
    return {path.relative_to(output / "panoptic").as_posix(): path for path in (output / "panoptic").rglob("*.png")}


def workers(output: pathlib.Path) -> list[int]:
    return [json.loads(path.read_text())["pid"] for path in (output / "state" / "workers").glob("*.json")]


def descendants(pid: int) -> set[int]:
    """Process ids of everything that a process started."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def listening(pids: set[int]) -> list[str]:
    """Addresses (as /proc writes them) on which these processes wait for connections."""
    inodes = set()
    for pid in pids:
        for link in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: listening
                found.append(fields[1].split(":")[0])
    return found


def is_loopback(address: str) -> bool:
    """127.0.0.0/8, the same inside IPv6, or ::1; words of 32 bits, the lowest byte last."""
    return address.endswith("7F") if len(address) == 8 else (
        address == "0" * 24 + "01000000" or (address[:24] == "0000000000000000FFFF0000" and address.endswith("7F"))
    )  # fmt: skip


def check_complete(output: pathlib.Path, images: pathlib.Path, plain: dict[bytes, list]) -> None:
    """Every good image once, equal to `predict`; the broken one named; nothing else left."""
    good = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.*") if p.name != "bad.jpg")
    assert len(good) == IMAGES
    result = json.loads((output / "panoptic.json").read_text())
    assert [image["id"] for image in result["images"]] == good
    assert [entry["image_id"] for entry in result["annotations"]] == good
    assert sorted(maps(output)) == [f"{name}.png" for name in good]
    for entry in result["annotations"]:
        assert entry["segments_info"] == plain[(output / "panoptic" / entry["file_name"]).read_bytes()]
    failures = [json.loads(line)["image_id"] for line in (output / "failures.jsonl").read_text().splitlines()]
    assert failures == ["part0/bad.jpg"]
    left = {path.name for path in (output / "state").iterdir()}
    assert left == {"settings.json", "records", "failures", "workers"}


def test_a_killed_worker_loses_nothing(checkpoint, images, plain, tmp_path):
    output = tmp_path / "out"
    process = start(checkpoint, images, output)
    wait_for(lambda: maps(output) and len(workers(output)) == 2, process)
    ours = descendants(process.pid)
    before = workers(output)
    os.kill(before[0], signal.SIGKILL)
    assert len(maps(output)) < IMAGES and process.poll() is None
    assert set(before) <= ours
    found = listening(ours)
    assert found and all(is_loopback(address) for address in found), found
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err  # because of the broken image
    assert f"{IMAGES} images segmented" in out and "bad.jpg: broken image" in err
    assert "1 workers died and were replaced" in out
    assert len(set(workers(output)) - set(before)) == 1  # another one took its place
    check_complete(output, images, plain)
    wait_for(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in ours), seconds=60)


def test_after_the_driver_is_killed_the_same_command_goes_on(checkpoint, images, plain, tmp_path):
    output = tmp_path / "out"
    process = start(checkpoint, images, output)
    wait_for(lambda: len(maps(output)) >= 4, process)
    ours = descendants(process.pid)
    process.kill()
    process.communicate()
    wait_for(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in ours), seconds=120)
    kept = {name: path.stat().st_mtime_ns for name, path in maps(output).items()}
    assert 4 <= len(kept) < IMAGES and not (output / "panoptic.json").exists()

    process = start(checkpoint, images, output)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"{len(kept)} done" in out and f"{IMAGES} images segmented" in out
    check_complete(output, images, plain)
    assert kept == {name: maps(output)[name].stat().st_mtime_ns for name in kept}  # done means not done again

    records = sorted((output / "state" / "records").iterdir())
    process = start(checkpoint, images, output)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "0 to do" in out and "bad.jpg" in err
    assert sorted((output / "state" / "records").iterdir()) == records and "Ray" not in err
    check_complete(output, images, plain)
