"""The curves of runs: read what was written, later lines win, one clear error for what is no run."""

import json

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.curves import LOSSES, read_metrics
from pfcn_jax.main import main


def write_run(workdir, *, steps, offset=0.0):
    workdir.mkdir()
    lines = [{"step": step, "loss": 10.0 / step + offset, **dict.fromkeys(LOSSES, 1.0 / step)} for step in steps]
    lines.append({"step": max(steps), "eval/PQ": 50.0 + offset, "eval/PQ_th": None, "eval/PQ_st": 40.0})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def test_a_resumed_run_counts_each_step_once_with_its_last_value(tmp_path):
    workdir = write_run(tmp_path / "run", steps=[10, 20])
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "loss": 7.0}) + "\n" + json.dumps({"step": 30, "loss": None}) + "\n")
    series = read_metrics(workdir)
    assert series["loss"] == ([10, 20], [1.0, 7.0])
    assert series["eval/PQ"] == ([20], [50.0])
    assert "eval/PQ_th" not in series


def test_two_runs_are_drawn_into_one_image(tmp_path, capsys):
    runs = [write_run(tmp_path / name, steps=[10, 20, 30], offset=i) for i, name in enumerate(("first", "second"))]
    output = tmp_path / "out" / "curves.png"
    assert main(["curves", *map(str, runs), "--output", str(output)]) == 0
    image = np.asarray(Image.open(output).convert("RGB"))
    assert image.shape == (360, 1300, 3)
    blue, orange = np.array([31, 119, 180]), np.array([255, 127, 14])
    left = image[:, : 1300 // 3].astype(int)  # the panel of the total loss: one line a run
    for color in (blue, orange):
        assert (np.abs(left - color).max(axis=-1) < 12).sum() > 50
    assert "2 run(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, message",
    [(None, "no such file"), ('{"step": 1}\n{"loss": 1.0}\n', "metrics.jsonl:2"), ("[1]\n", "metrics.jsonl:1")],
)
def test_what_is_no_run_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_metrics(tmp_path)


def test_an_output_of_another_kind_is_an_error(tmp_path, capsys):
    assert main(["curves", str(tmp_path), "--output", str(tmp_path / "curves.txt")]) == 2
    assert ".png, .svg or .pdf" in capsys.readouterr().err
