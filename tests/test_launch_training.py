"""The scripts that start a training elsewhere: linted, and run with stand-ins for `gcloud`, `srun` and the machine."""

from __future__ import annotations

import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
import yaml

from pfcn_jax import main as front_door
from pfcn_jax.errors import STOPPED
from tests.ports import free_port
from tests.support.tiny import TINY

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
PAGE = (ROOT / "docs" / "launch.md").read_text()
CONFIG = "configs/quickstart.py"
FLAGS = [*TINY[1:], "--config.train.steps=1", "--config.data.eval_examples=1", "--config.optim.name=sgd"]

# The cloud's side. `ssh` runs its command in $REMOTE as if it were the machine's home, `describe` finds nothing.
GCLOUD = """#!/usr/bin/env bash
set -euo pipefail
line="$*"; echo "${line%%$'\\n'*}" >> "$REMOTE/calls"
case "$4" in
  describe) exit 1 ;;
  scp) cp "$5" "$REMOTE/pfcn.tar" ;;
  ssh) for word in "$@"; do case "$word" in --command=*) cd "$REMOTE"; bash -c "${word#--command=}" ;; esac; done ;;
esac
"""
# The machine's side: nothing is installed, the environment is the one of the tests.
PYTHON3 = """#!/usr/bin/env bash
set -euo pipefail
case "$*" in "-m uv venv"*)
  mkdir -p .venv/bin
  printf '#!/bin/sh\\nexec %s "$@"\\n' "$REAL_PYTHON" > .venv/bin/python
  chmod +x .venv/bin/python ;;
esac
"""
NOTHING = "#!/bin/sh\n"
# Two tasks of one node, with the variables that Slurm gives to each.
SRUN = """#!/usr/bin/env bash
export SLURM_JOB_ID SLURM_NTASKS=2 SLURM_STEP_NODELIST=127.0.0.1
while [[ "$1" == --* ]]; do shift; done
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks[task]=$!
done
status=0
for task in 0 1; do wait "${tasks[task]}" || status=$?; done
exit $status
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Stand-ins first in PATH, one CPU device, compiled programs kept between tests."""
    programs = {"gcloud": GCLOUD, "python3": PYTHON3, "sudo": NOTHING, "mountpoint": NOTHING, "srun": SRUN}
    (tmp_path / "bin").mkdir()
    (tmp_path / "remote").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    python = pathlib.Path(sys.executable)
    (tmp_path / "bin" / "python").symlink_to(tmp_path / "bin" / "real")
    (tmp_path / "bin" / "real").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (tmp_path / "bin" / "real").chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "REMOTE": str(tmp_path / "remote"),
        "REAL_PYTHON": str(python),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }


def _run(environment: dict[str, str], *command: str, **more: str) -> str:
    ran = subprocess.run(
        command, cwd=ROOT, env=environment | more, capture_output=True, text=True, timeout=900, check=False
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    return ran.stdout + ran.stderr


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "shellcheck comes with requirements-dev.txt"
    files = [str(path) for path in [*SCRIPTS, ROOT / ".ci" / "run"]]
    ran = subprocess.run([program, "--exclude=SC1091", *files], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_says_how_it_is_used(path):
    assert os.access(path, os.X_OK) and "# Usage: " in path.read_text()
    ran = subprocess.run([str(path)], capture_output=True, text=True, check=False)
    assert ran.returncode != 0 and "usage: " in ran.stderr


def test_the_installed_jax_is_the_one_of_the_requirements():
    """Both run Python 3.12."""
    pinned = re.findall(
        r'^jax==([\d.]+); python_version >= "3.12"', (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    assert re.findall(r"jax\[\w+\]==([\w.]+)", (ROOT / "launch" / "Dockerfile").read_text()) == pinned
    script = (ROOT / "launch" / "tpu_vm.sh").read_text()
    assert "--python=3.12" in script and "-r requirements.txt -r requirements-tpu.txt" in script


def test_slurm_asks_for_as_many_tasks_as_gpus():
    text = (ROOT / "launch" / "slurm.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]  # a task sees the GPU of its own number only
    assert text.index("#SBATCH") < text.index("set -e")  # sbatch reads up to the first command


@pytest.mark.parametrize(
    ("status", "restarts", "queued"),
    [(0, 0, ""), (1, 0, ""), (2, 0, ""), (75, 0, "requeue 17\n"), (137, 99, "requeue 17\n"), (75, 100, "")],
)
def test_a_job_of_slurm_that_was_stopped_queues_itself_again(environment, tmp_path, status, restarts, queued):
    calls = tmp_path / "calls"
    calls.touch()
    for name, text in (("srun", f"exit {status}"), ("scontrol", f'echo "$@" >> {calls}')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    command = ["launch/slurm.sh", CONFIG, str(tmp_path / "run")]
    more = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts)}
    ran = subprocess.run(command, cwd=ROOT, env=environment | more, check=False)
    assert ran.returncode == status and calls.read_text() == queued


@pytest.mark.slow
def test_a_box(environment, tmp_path):
    _run(environment, "launch/box.sh", CONFIG, str(tmp_path / "run"), *FLAGS)
    assert (tmp_path / "run" / "evaluation.json").is_file()


@pytest.mark.slow
def test_two_tasks_of_slurm_are_one_run(environment, tmp_path):
    job = str(random.randrange(10**6))  # the port of the coordinator follows from it
    out = _run(environment, "launch/slurm.sh", CONFIG, str(tmp_path / "run"), *FLAGS, SLURM_JOB_ID=job)
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert out.count("evaluation.json)") == 1  # one of the two speaks


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packs what is committed")
@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh"])
def test_a_tpu(environment, script, tmp_path):
    # What a pod's machine learns from the TPU's metadata, this one gets from Slurm's variables.
    alone = {"SLURM_JOB_ID": str(random.randrange(10**6)), "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    alone |= {"SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "127.0.0.1"}
    place = ["pfcn", "zone-1", "v6e-8", "server:/share"]
    _run(environment, f"launch/{script}", *place, CONFIG, "my run", *FLAGS, **alone)
    run = tmp_path / "remote" / "pfcn" / "share" / "my run"
    assert (run / "evaluation.json").is_file()
    assert "train" in (tmp_path / "remote" / "pfcn" / "train.log").read_text()
    calls = (tmp_path / "remote" / "calls").read_text().splitlines()
    assert [call.split()[3] for call in calls] == ["describe", "create", "scp", "ssh"]
    assert all(call.startswith("compute tpus tpu-vm ") for call in calls)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packs what is committed")
@pytest.mark.parametrize(("statuses", "last"), [([75, 134, 137, 0], 0), ([134, 2, 0], 2), ([1, 0], 1)])
def test_a_tpu_starts_again_what_was_killed(environment, tmp_path, statuses, last):
    left = tmp_path / "statuses"
    left.write_text("".join(f"{status}\n" for status in statuses))
    training = tmp_path / "training"
    training.write_text(f'#!/bin/sh\nstatus=$(head -1 {left})\nsed -i 1d {left}\necho "ran $*"\nexit $status\n')
    training.chmod(0o755)
    command = ["launch/tpu_vm.sh", "pfcn", "zone-1", "v6e-8", "server:/share", CONFIG, "my run"]
    ran = subprocess.run(command, cwd=ROOT, env=environment | {"REAL_PYTHON": str(training)}, check=False)
    assert ran.returncode == last
    said = (tmp_path / "remote" / "pfcn" / "train.log").read_text().splitlines()
    assert (tmp_path / "remote" / "pfcn" / "pid").read_text().strip().isdigit()
    assert said == [f"ran -m pfcn_jax.main --config {CONFIG} --workdir share/my run"] * (statuses.index(last) + 1)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packs what is committed")
def test_the_same_command_shows_a_tpu_training_that_runs(environment, tmp_path):
    """A connection was lost: nothing is unpacked over the running program, and its status is the command's."""
    remote = tmp_path / "remote" / "pfcn"
    remote.mkdir()
    (remote / "train.log").write_text("step 1\n")
    loop = "until grep -q ' ssh ' ../calls; do sleep 0.1; done; sleep 2; "
    loop += "echo 'step 2' >> train.log; echo 2 > status; : pfcn_jax"
    running = subprocess.Popen(["sh", "-c", loop], cwd=remote)
    (remote / "pid").write_text(f"{running.pid}\n")
    threading.Thread(target=running.wait).start()  # one that has ended and is not waited for still has its number
    command = ["launch/tpu_vm.sh", "pfcn", "zone-1", "v6e-8", "server:/share", CONFIG, "run"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert running.wait() == 0 and ran.returncode == 2, ran.stderr
    assert "step 1\nstep 2\n" in ran.stdout and not (remote / "pfcn_jax").exists()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packs what is committed")
def test_a_tpu_training_can_be_stopped(environment, tmp_path):
    """As the head of the script says: the training saves, the loop does not start it again."""
    training = tmp_path / "training"
    training.write_text("#!/bin/sh\ntrap 'sleep 1; exit 75' TERM\necho ran\nwhile :; do sleep 0.1; done\n")
    training.chmod(0o755)
    command = ["launch/tpu_vm.sh", "pfcn", "zone-1", "v6e-8", "server:/share", CONFIG, "run"]
    script = subprocess.Popen(command, cwd=ROOT, env=environment | {"REAL_PYTHON": str(training)})
    log, pid = (tmp_path / "remote" / "pfcn" / name for name in ("train.log", "pid"))
    end = time.monotonic() + 60
    while not (log.exists() and log.read_text() and pid.exists() and pid.read_text().strip()):
        assert time.monotonic() < end and script.poll() is None
        time.sleep(0.05)
    os.killpg(int(pid.read_text()), signal.SIGTERM)
    assert script.wait(60) == 75 and log.read_text().count("ran\n") == 1


def test_a_pod_without_a_run_is_an_error_before_it_costs_anything(environment, tmp_path):
    command = ["launch/tpu_pod.sh", "pfcn", "zone-1", "v6e-32", "server:/share", CONFIG]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode != 0 and "usage: launch/tpu_pod.sh NAME" in ran.stderr
    assert not (tmp_path / "remote" / "calls").exists()


# What the manifest may say: the part of Kubernetes' schema (Service v1, Job batch/v1) that it uses.
POD = {
    "subdomain": str,
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "containers": [
        {
            "name": str,
            "image": str,
            "args": [str],
            "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}],
            "resources": {"limits": {"nvidia.com/gpu": int}},
            "volumeMounts": [{"name": str, "mountPath": str}],
        }
    ],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}, "emptyDir": {"medium": str}}],
}
RULE = {"action": str, "onExitCodes": {"operator": str, "values": [int]}, "onPodConditions": [{"type": str}]}
SPECS = {
    "Service": {"clusterIP": str, "publishNotReadyAddresses": bool, "selector": {"job-name": str}},
    "Job": {
        "completionMode": str,
        "completions": int,
        "parallelism": int,
        "backoffLimit": int,
        "successPolicy": {"rules": [{"succeededIndexes": str}]},
        "podFailurePolicy": {"rules": [RULE]},
        "template": {"spec": POD},
    },
}


def _assert_fits(value, schema, path: str) -> None:
    if isinstance(schema, dict):
        assert isinstance(value, dict) and value, path
        for key, inner in value.items():
            assert key in schema, f"{path}.{key}: unknown"
            _assert_fits(inner, schema[key], f"{path}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, path
        for number, inner in enumerate(value):
            _assert_fits(inner, schema[0], f"{path}[{number}]")
    else:
        assert type(value) is schema, f"{path}: {value!r} is no {schema.__name__}"


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict]:
    documents = list(yaml.safe_load_all((ROOT / "launch" / "gke.yaml").read_text()))
    return {document["kind"]: document for document in documents}


def test_the_manifest_fits_the_schema_and_itself(manifest):
    assert set(manifest) == {"Service", "Job"}
    for kind, document in manifest.items():
        assert document["apiVersion"] == {"Service": "v1", "Job": "batch/v1"}[kind]
        _assert_fits({key: document[key] for key in document if key != "spec"}, {
            "apiVersion": str, "kind": str, "metadata": {"name": str},
        }, kind)  # fmt: skip
        _assert_fits(document["spec"], SPECS[kind], kind)
    service, job = manifest["Service"], manifest["Job"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["selector"]["job-name"] == manifest["Job"]["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"] and job["completionMode"] == "Indexed"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    actions = {code: rule["action"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
               for code in rule["onExitCodes"]["values"]}  # fmt: skip
    assert actions == {2: "FailJob", STOPPED: "Ignore"}
    args = front_door.parse([word.replace("$(PROCESS_ID)", "0") for word in container["args"]])
    assert args.num_processes == job["completions"] == job["parallelism"]
    assert args.coordinator.split(".")[0] == f"{manifest['Job']['metadata']['name']}-0"


@pytest.mark.slow
def test_the_containers_of_the_manifest_are_one_run(manifest, environment, tmp_path):
    port = free_port()
    (container,) = manifest["Job"]["spec"]["template"]["spec"]["containers"]
    local = {"--coordinator": f"127.0.0.1:{port}", "--workdir": str(tmp_path / "run"), "--config": CONFIG}
    words = [word for word in container["args"] if not word.startswith("--init-from=")]  # the network is too small
    args = [f"{key}={local.get(key, value)}" for key, _, value in (word.partition("=") for word in words)]
    entry = re.search(r"^ENTRYPOINT \[(.*)\]$", (ROOT / "launch" / "Dockerfile").read_text(), re.MULTILINE)
    assert entry
    command = [word.strip(' "') for word in entry[1].split(",")]
    assert command.pop(0) == "python"
    processes = [
        subprocess.Popen(
            [sys.executable, *command, *[word.replace("$(PROCESS_ID)", str(number)) for word in args], *FLAGS],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number in range(manifest["Job"]["spec"]["completions"])
    ]
    try:
        outputs = [process.communicate(timeout=900)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output[-4000:]
    assert (tmp_path / "run" / "evaluation.json").is_file()


@pytest.mark.slow
def test_the_image_holds_what_the_page_runs(environment, tmp_path):
    dockerfile = (ROOT / "launch" / "Dockerfile").read_text()
    image = tmp_path / "image"
    image.mkdir()
    for source, target in re.findall(r"^COPY (\S+) (\S+)$", dockerfile, re.MULTILINE):
        here = ROOT / source
        (shutil.copytree if here.is_dir() else shutil.copy)(here, image / (source if target == "." else target))
    row = re.search(r"`docker build -t (\w+) -f launch/Dockerfile \. && docker run .* \1 (--config .*)`", PAGE)
    assert row
    entry = re.search(r"^ENTRYPOINT \[(.*)\]$", dockerfile, re.MULTILINE)
    assert entry
    command = [word.strip(' "') for word in entry[1].split(",")] + row[2].replace("/share", str(tmp_path)).split()
    ran = subprocess.run(
        [*command, *FLAGS], cwd=image, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    assert (tmp_path / "run" / "evaluation.json").is_file()


def test_the_page_names_every_way_to_launch():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    named = set(re.findall(r"launch/[\w.]+", "\n".join(rows)))
    there = {f"launch/{path.name}" for path in (ROOT / "launch").iterdir()}
    assert named == {name for name in there if not name.startswith("launch/coco_")}  # those fetch data
