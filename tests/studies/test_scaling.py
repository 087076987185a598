"""`benchmark scaling`: the model against numbers worked out by hand, and the counts against a real step."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import jax
import pytest

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import class_table
from pfcn_jax.main import main
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.studies.benchmark.scaling import (
    Machine,
    Work,
    count_work,
    efficiency,
    last_worthwhile,
    scaling_row,
    step_time,
)
from pfcn_jax.studies.flops import traced_flops
from tests.support.tiny import TINY

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [*TINY, "--config.optim.name=sgd"]

# 16 images of 2 TFLOP on chips that do 100 x 0.25 TFLOP/s; 150 MB of gradients at 10 GB/s; hosts of 4 chips.
WORK = Work(flops_per_image=2e12, gradient_bytes=150e6, steps=90_000, batch=16)
MACHINE = Machine(peak_flops=100e12, share=0.25, link_bytes=10e9, chips_per_host=4, images_per_host=math.inf)


def test_one_chip_only_computes():
    step = step_time(WORK, MACHINE, 1)
    assert step.compute == pytest.approx(16 * 2 / 25) and step.all_reduce == step.input == 0.0
    assert step.seconds == step.compute and step.bound == "compute"
    row = scaling_row(WORK, MACHINE, 1)
    assert row["hours"] == pytest.approx(90_000 * 1.28 / 3600) and row["efficiency_of_chips"] == pytest.approx(1.0)
    assert row["chip_hours"] == row["hours"]


def test_more_chips_add_the_ring():
    step = step_time(WORK, MACHINE, 8)
    assert step.compute == pytest.approx(2 * 2 / 25)
    assert step.all_reduce == pytest.approx(2 * 7 / 8 * 0.150 / 10)  # 26 ms
    assert efficiency(WORK, MACHINE, 8) == pytest.approx(1.28 / (8 * (0.16 + 0.02625)))
    row = scaling_row(WORK, MACHINE, 8)
    assert row["chip_hours"] == pytest.approx(8 * 90_000 * 0.18625 / 3600)
    slow = dataclasses.replace(MACHINE, link_bytes=1e9)
    assert step_time(WORK, slow, 8).bound == "all-reduce"


def test_hosts_that_decode_too_slowly_hold_everything_up():
    machine = dataclasses.replace(MACHINE, images_per_host=20.0)
    step = step_time(WORK, machine, 8)  # two hosts
    assert step.input == pytest.approx(16 / 40) and step.seconds == step.input and step.bound == "input"
    assert step_time(WORK, machine, 9).input == pytest.approx(16 / 60)  # a third host for one chip


def test_where_scaling_stops():
    # At 4 chips 0.32 s and 22.5 ms, at 8 chips 0.16 s and 26 ms, at 16 chips 80 ms and 28 ms: 93, 86 and 74 %.
    assert [round(100 * efficiency(WORK, MACHINE, chips)) for chips in (4, 8, 16)] == [93, 86, 74]
    assert last_worthwhile(WORK, MACHINE) == 8 and last_worthwhile(WORK, MACHINE, least=0.7) == 16
    assert last_worthwhile(WORK, dataclasses.replace(MACHINE, images_per_host=1.0)) == 0


@pytest.fixture(scope="module")
def counted():
    config = from_command_line(SMALL)
    return config, *count_work(config)


def test_the_count_is_that_of_a_training_step(counted):
    config, work, rows = counted
    assert [row["canvas"] for row in rows] == ["64x64"] and rows[0]["share"] == 1.0
    assert work.flops_per_image == pytest.approx(rows[0]["gflop"] * 1e9) and work.batch == 2
    # The forward pass alone is a third of it or a little more: the first layer has no gradient of its input.
    model = build_model(config.model, *class_table().counts)
    variables = abstract_variables(model)
    image = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in
               (((1, 64, 64, 3), "uint8"), ((1, 2), "int32"), ((1, 2), "int32"))]  # fmt: skip
    forward = traced_flops(jax.jit(model.apply).trace(variables, *image).jaxpr)
    assert 2.5 < work.flops_per_image / forward < 3.6
    elements = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert work.gradient_bytes == 4 * elements


@pytest.mark.slow
def test_frozen_parameters_are_not_sent(counted):
    _, work, _ = counted
    frozen = from_command_line([*SMALL, "--config.optim.frozen=('backbone',)"])
    without, _ = count_work(frozen)
    assert 0 < without.gradient_bytes < work.gradient_bytes
    assert without.flops_per_image < 0.8 * work.flops_per_image


def test_the_command_says_its_assumptions_and_invents_none(tmp_path, capsys):
    base = ["benchmark", "scaling", *SMALL, "--config.train.batch_size=8"]
    assert main(base) == 2
    assert "--peak-tflops, --share, --link-gbytes: missing" in capsys.readouterr().err
    flags = ["--peak-tflops", "100", "--share", "0.5", "--link-gbytes", "10", "--output", str(tmp_path / "r.json")]
    assert main([*base, *flags, "--chips", "3"]) == 2
    assert "a batch of 8 does not divide" in capsys.readouterr().err
    assert main([*base, *flags, "--share", "1.5"]) == 2
    assert "--share: at most 1" in capsys.readouterr().err
    assert main([*base, *flags, "--chips", "1", "2", "--per-chip", "8"]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert "--peak-tflops 100.0 --share 0.5" in result["command"] and result["weights"] == "none"
    one, two = result["rows"]
    assert (one["batch"], two["batch"]) == (8, 16) and two["steps"] == one["steps"] / 2  # as many images in all
    assert "GFLOP an image" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_says_what_is_counted():
    page = (ROOT / "docs" / "scaling.md").read_text()
    config = from_command_line([f"--config={ROOT / 'configs' / 'panoptic_fcn_r50.py'}", "--config.data.root=nowhere"])
    work, rows = count_work(config)
    for row in rows:
        height, width = sorted(map(int, row["canvas"].split("x")))
        assert f"| {height} x {width}, either way round | {row['gflop']:.0f} |" in page
    assert f"| mean, as many images on each | {work.flops_per_image / 1e9:.0f} |" in page
    assert f"{work.gradient_bytes / 1e6:.0f} MB ({work.gradient_bytes / 4e6:.1f} million trained parameters" in page
    for name, times in (("1x", 1), ("3x", 3)):
        operations = times * work.steps * work.batch * work.flops_per_image
        assert f"| {name} | {times * 90} 000 | {operations / 1e18:.2f} x 10^18 |" in page
        hours = [operations / (sustained * 1e12 * 3600) for sustained in (10, 20, 40, 80, 160)]
        shown = " | ".join(f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in hours)
        assert f"| {name}, chip hours | {shown} |" in page
