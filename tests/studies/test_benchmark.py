"""`benchmark`: what is counted and timed is what it says, and every part makes its rows."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pfcn_jax.errors import UserError
from pfcn_jax.main import main, parse
from pfcn_jax.models.ops.convolution import depthwise_conv2d
from pfcn_jax.models.ops.deformable import deformable_conv
from pfcn_jax.parallel.sharding import data_mesh
from pfcn_jax.studies.benchmark import backbones, forms, measure, prediction, tables
from pfcn_jax.studies.benchmark.subject import load_subject, place, read_images
from pfcn_jax.studies.flops import traced_flops
from pfcn_jax.studies.sections import write_section
from pfcn_jax.utils.environment import environment
from tests.support.tiny import TINY


def _flops(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return traced_flops(jax.jit(function).trace(*arrays).jaxpr)


def test_operations_of_products_convolutions_and_loops():
    assert _flops(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert _flops(jnp.matmul, (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    assert _flops(forms.plain_conv, (2, 6, 8, 5), (3, 3, 5, 4)) == 2 * (2 * 6 * 8 * 4) * (3 * 3 * 5)
    strided = lambda x, kernel: forms.plain_conv(x, kernel, stride=2)  # noqa: E731
    forward = 2 * (2 * 3 * 4 * 4) * (3 * 3 * 5)
    assert _flops(strided, (2, 6, 8, 5), (3, 3, 5, 4)) == forward
    both = jax.grad(lambda x, kernel: jnp.sum(strided(x, kernel)), argnums=(0, 1))
    # The gradients are as dear as the convolution; the forward value itself is not needed and still counted.
    assert _flops(both, (2, 6, 8, 5), (3, 3, 5, 4)) == pytest.approx(3 * forward, rel=0.4)
    scan = lambda x: jax.lax.scan(lambda total, _: (total @ x, None), x, length=6)[0]  # noqa: E731
    assert _flops(scan, (3, 3)) == 6 * 2 * 27
    mesh = data_mesh()
    sharded = jax.shard_map(
        lambda x: x @ x.T, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")
    )
    assert _flops(sharded, (6, 5)) == mesh.size * 2 * (6 // mesh.size) ** 2 * 5  # each device its own product
    larger = lambda x: jax.lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)  # noqa: E731
    assert _flops(larger, (3, 3)) == 2 * 27
    depthwise = lambda x, kernel: depthwise_conv2d(x, kernel, 1, ((1, 1), (1, 1)))  # noqa: E731
    assert _flops(depthwise, (2, 6, 8, 5), (3, 3, 1, 5)) == 2 * (2 * 6 * 8 * 5) * (3 * 3)


def test_a_program_knows_its_costs_and_the_cache_is_as_before():
    before = jax.config.jax_compilation_cache_dir
    x = jnp.ones((64, 64))
    program = measure.compile_program(lambda x: jnp.sin(x @ x), x)
    assert program.flops == 2 * 64**3 and program.peak_bytes >= 2 * 64 * 64 * 4
    assert program.compile_seconds > 0 and program.cached_seconds > 0
    np.testing.assert_allclose(program.run(x), jnp.sin(x @ x), rtol=1e-6)
    assert jax.config.jax_compilation_cache_dir == before


def test_timing_runs_as_often_as_asked():
    calls = []
    timing = measure.time_runs(lambda: calls.append(1), seconds=0.0, at_least=4)
    assert timing.runs == 4 and len(calls) == 5  # one to warm up
    assert timing.fastest <= timing.median <= timing.p95


@pytest.fixture(scope="module")
def subject_and_images():
    args = parse(["benchmark", "predict", *TINY])
    subject = load_subject(args)
    return subject, read_images(args, subject.config)


@pytest.mark.slow
def test_after_the_heads_gives_the_prediction_of_the_whole(subject_and_images):
    subject, images = subject_and_images
    placed = place(images, 2, subject.config)
    arrays = (placed.image, placed.size, placed.original_size)
    whole = jax.jit(prediction.predict_program(subject, placed))(subject.variables, *arrays)
    dense = jax.jit(prediction.network_program(subject))(subject.variables, *arrays[:2])
    after = jax.jit(prediction.post_program(subject, placed))(subject.variables, dense, *arrays)
    np.testing.assert_array_equal(after.panoptic.segment_map, whole.panoptic.segment_map)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["network", "post", "predict", "train", "input"])
def test_every_part_of_a_model_runs(part, tmp_path, capsys):
    output = tmp_path / "result.json"
    words = ["benchmark", part, *TINY, "--batch", "2", "--seconds", "0.1", "--workers", "0", "--output", str(output)]
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
        assert main(words) == 0
    result = json.loads(output.read_text())
    assert len(result["rows"]) == 1 and result["environment"]["versions"]["jax"] == jax.__version__
    assert result["config_hash"] and str(tmp_path) not in result["command"]
    row = result["rows"][0]
    assert row["seconds" if part != "input" else "images_per_s"] > 0
    assert "batch" in capsys.readouterr().out


@pytest.mark.slow
def test_forms_of_the_layers_and_of_the_dice(capsys):
    yardstick = measure.Yardstick()
    layers = forms.layer_rows(canvas=(32, 32), channels=8, dtype=jnp.float32, yardstick=yardstick, seconds=0.0)
    dice = forms.dice_rows(map_shape=(8, 8), channels=4, yardstick=yardstick, seconds=0.0)
    assert len({row["what"] for row in layers}) == 5 and len(dice) == 6
    assert all(row["seconds"] > 0 for row in [*layers, *dice])


def test_a_table_of_backbones(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "SIDE", 32)
    document = tmp_path / "backbones.md"
    document.write_text("<!-- benchmark backbones -->\n<!-- end backbones -->\n")
    words = ["benchmark", "backbones", "--names", "resnet18", "--seconds", "0", "--config.model.backbone_width=8"]
    output = tmp_path / "result.json"
    assert main([*words, "--output", str(output), "--markdown", f"{document}:backbones"]) == 0
    result = json.loads(output.read_text())
    (row,) = result["rows"]
    # (area of the output, input channels) of the 3x3 convolutions by their output channels, then the shortcuts
    convolutions = {8: (64, [8] * 4), 16: (16, [8] + [16] * 3), 32: (4, [16] + [32] * 3), 64: (1, [32] + [64] * 3)}
    counts = [(16 * 16, 7 * 7 * 3 * 8)]
    counts += [(area, 9 * sum(inputs) * outputs) for outputs, (area, inputs) in convolutions.items()]
    counts += [(16, 8 * 16), (4, 16 * 32), (1, 32 * 64)]
    assert row["gflop"] * 1e9 == pytest.approx(sum(2 * area * weights for area, weights in counts))
    assert row["parameters_m"] * 1e6 == pytest.approx(sum(weights for _, weights in counts))
    assert row["seconds"] > 0 and row["channels"] == "8, 16, 32, 64"
    assert "--names resnet18" in result["command"] and "| resnet18 | 1 |" in document.read_text()


def test_all_forms_of_a_layer_give_one_result():
    rng = np.random.default_rng(0)
    x, offsets, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 5, 6, 4), (1, 5, 6, 27), (3, 3, 4, 4))
    )
    ours = deformable_conv(x, offsets, kernel)
    np.testing.assert_allclose(forms.scanned_deformable(x, offsets, kernel), ours, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forms.gathered_deformable(x, offsets, kernel), ours, rtol=1e-4, atol=1e-5)


def test_a_table_goes_into_its_section(tmp_path):
    document = tmp_path / "benchmarks.md"
    document.write_text("# Title\n\n<!-- benchmark one -->\nold\n<!-- end one -->\n\nthe rest\n")
    rows = [{"batch": 1, "seconds": 0.5, "efficiency": 0.5}, {"batch": 8, "seconds": 2.0, "efficiency": None}]
    place = {**environment(), "load_average": [0.0, 0.1, 0.2]}
    about = {"part": "post", "command": "x", "weights": "w", "config_hash": "c"}
    result = {**about, "environment": place, "rows": rows}
    write_section(document, "one", tables.markdown(result))
    text = document.read_text()
    assert "old" not in text and "| 8 | 2 |  |" in text and "| 1 | 0.5 | 50 % |" in text and text.endswith("the rest\n")
    with pytest.raises(UserError, match="two"):
        write_section(document, "two", "x")
    assert "s (median)" in tables.terminal(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--batch", "0"], "at least 1"),
        (["table"], "JSON files"),
        (["table", "nowhere.json"], "nowhere.json"),
        (["predict", "--checkpoint", "a", "--reference", "b"], "give one"),
        (["predict", "--reference", "nowhere"], "nowhere"),
        (["backbones", "--names", "resnet_50"], "resnet50"),
    ],
)
def test_what_cannot_be_measured_is_said(words, message, capsys):
    assert main(["benchmark", *words]) == 2
    assert message in capsys.readouterr().err
