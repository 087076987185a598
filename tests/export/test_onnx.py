"""ONNX files: read by every runtime at every level, with the segments of the live model; the rules one by one."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.loading import LoadedModel, load_checkpoint
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import to_json
from pfcn_jax.data.classes import coco_classes
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.errors import UserError
from pfcn_jax.export import run_exported
from pfcn_jax.export.compare import compare, live_segments, open_exported
from pfcn_jax.export.onnx import convert
from pfcn_jax.export.writing import onnx_shape, write_onnx
from pfcn_jax.interop.convert import to_params
from pfcn_jax.models.build import build_model
from pfcn_jax.panoptic.fusion import Fusion
from pfcn_jax.panoptic.kernels import convolve
from pfcn_jax.panoptic.options import OutputSpec
from pfcn_jax.panoptic.predict import Proposed, paste
from pfcn_jax.studies.reference_weights import make_state_dict
from pfcn_jax.types import Kernels, RegionChannels, image_geometry
from tests.support.tiny import TINY, tiny_variables, write_tiny_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = pathlib.Path(__file__).parents[2]
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def run_everywhere(path: pathlib.Path, feeds: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Outputs of a file in ONNX Runtime at every optimization level, and in OpenVINO."""
    openvino = pytest.importorskip("openvino")
    found = {}
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found[level] = dict(zip(names, session.run(names, feeds)))
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(feeds)
    found["OpenVINO"] = {name: results[name] for name in names}
    return found


def write_and_run(function, tmp_path: pathlib.Path, **arrays: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    specs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    path = tmp_path / "function.onnx"
    path.write_bytes(convert(lambda weights, *given: function(*given), {}, specs, {}).SerializeToString())
    return run_everywhere(path, arrays)


def test_a_frozen_norm_becomes_constants(tmp_path):
    """The fault of an earlier converter: `stop_gradient` of a constant, a node that no runtime finds the input of."""

    def norm(x):
        scale, var = jax.lax.stop_gradient((jnp.arange(1.0, 4.0), jnp.full(3, 2.0)))
        return {"y": x * (scale * jax.lax.rsqrt(var + 1e-5))[None, :]}

    specs = {"x": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    model = convert(lambda weights, x: norm(x), {}, specs, {})
    assert [node.op_type for node in model.graph.node] == ["Mul"] and len(model.graph.initializer) == 1
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for found in write_and_run(norm, tmp_path, x=x).values():
        np.testing.assert_allclose(found["y"], x * np.arange(1, 4) / np.sqrt(2 + 1e-5), rtol=1e-6)


def test_rules_are_the_primitives(tmp_path):
    """Each operation that is more than a name: ties, rounding, axes, padding, unrolled loops."""

    def operations(x, n, flags):
        total, _ = jax.lax.scan(
            lambda c, row: (c * 0.5 + row[0] @ row[1], None), x[:, :3], (x[:2, None, :3], x[2:4, :3, None])
        )
        return {
            "first": jnp.argmax(flags, axis=0),
            "first of floats": jnp.argmax(jnp.floor(x * 0) + flags.astype(jnp.float32), axis=1),
            "order": jnp.argsort(flags[:, 0], stable=True),
            "best": jax.lax.top_k(x, 2)[1],
            "quotient": (n - 5) // 3,
            "remainder": (n - 5) % 3,
            "padded": jnp.pad(x, ((1, 2), (0, 1)), constant_values=7.0)[::2, ::-1],
            "product": jnp.einsum("ab,cb->ca", x, x[:2]),
            "batches": jnp.einsum("abc,acd->bad", x.reshape(2, 2, -1), x.reshape(2, -1, 2)),
            "rows": x[jnp.clip(n, 0, 3)],
            "stacked": jnp.stack([x, x * 2], axis=1),
            "any": jnp.any(flags, axis=1),
            "scan": total,
            "chosen": jnp.where(flags[:, :1], x, jnp.broadcast_to(x[:1], x.shape)),
            "power": jax.lax.integer_pow(x, 3) + jnp.square(x) + jax.lax.erfc(x),
        }

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    flags = np.array([[False, True, False, False, True, False]] * 2 + [[True, True, False, False, False, False]] * 2)
    n = np.array([0, 3, 4, 9], np.int32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wanted = jax.tree.map(np.asarray, operations(jnp.asarray(x), jnp.asarray(n), jnp.asarray(flags)))
        everywhere = write_and_run(operations, tmp_path, x=x, n=n, flags=flags)
    for where, found in everywhere.items():
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=f"{name} in {where}")


def test_what_has_no_rule_is_named():
    spec = {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}
    with pytest.raises(UserError, match=r"'cumsum'.*export .pfcn instead"):
        convert(lambda weights, x: {"y": jnp.cumsum(x)}, {}, spec, {})
    with pytest.raises(UserError, match=r"bfloat16.*model.dtype=float32"):
        convert(lambda weights, x: {"y": x.astype(jnp.bfloat16)}, {}, spec, {})


@pytest.mark.parametrize("mask_nms", [False, True])
def test_numpy_pastes_as_the_method(mask_nms):
    """Random kernels and a smooth feature: the same segments as `panoptic.predict.paste`, at every size."""
    rng = np.random.default_rng(5)
    config = from_command_line([*TINY, f"--config.inference.mask_nms={mask_nms}"])
    changed = {"min_stuff_area": 2, "merge_score": 0.05, "mask_nms_threshold": 0.3, "merge_overlap": 0.7}
    options = dataclasses.replace(config.inference, **changed)
    config = dataclasses.replace(config, inference=options)
    channels, output = RegionChannels(3, 3), OutputSpec((144, 112))
    feature = np.kron(rng.normal(size=(4, 4, 8)), np.ones((4, 4, 1))) + rng.normal(size=(16, 16, 8)) / 4

    def kernels(slots: int, valid: np.ndarray, class_id: np.ndarray) -> Kernels:
        score = np.sort(rng.random(slots).astype(np.float32))[::-1].copy()
        return Kernels(2 * rng.normal(size=(slots, 8)).astype(np.float32), class_id.astype(np.int32), score, valid)

    parts = {
        "thing": kernels(20, np.arange(20) < 14, rng.integers(0, 3, 20)),
        "stuff": kernels(4, np.array([True, True, False, True]), np.arange(4)),
    }
    fields = ("weight", "score", "valid")
    given = {f"{kind}_{name}": getattr(part, name) for kind, part in parts.items() for name in fields}
    given |= {"thing_class": parts["thing"].class_id, "feature": feature.astype(np.float32)}
    meta = {"config": json.loads(to_json(config)), "classes": [{"isthing": i < 3} for i in range(6)]}
    things, stuff, feature = jax.tree.map(jnp.asarray, (parts["thing"], parts["stuff"], given["feature"]))
    fusion = Fusion(things, jnp.eye(20), jnp.arange(20), things)
    proposed = Proposed(fusion, None, stuff, feature)
    live = jax.jit(lambda geometry: paste(proposed, geometry, options, channels, output).panoptic)
    for size, original in [((60, 44), (133, 97)), ((64, 64), (20, 17)), ((33, 64), (3, 5)), ((64, 64), (64, 64))]:
        wanted = live(image_geometry(jnp.array(size, jnp.int32), jnp.array(original, jnp.int32)))
        wanted = jax.tree.map(np.asarray, wanted)
        found = run_exported.paste(meta, given, size, original)
        for name in ("class_id", "is_thing", "area"):
            np.testing.assert_array_equal(found[name], getattr(wanted, name)[wanted.valid])
        np.testing.assert_allclose(found["score"], wanted.score[wanted.valid], rtol=1e-5)
        np.testing.assert_array_equal(found["segment_map"], wanted.segment_map[: original[0], : original[1]])
    assert {True, False} == set(found["is_thing"]) and len(found["is_thing"]) > 3


def test_probabilities_are_the_convolution():
    rng = np.random.default_rng(0)
    weight, feature = (rng.normal(size=shape).astype(np.float32) for shape in ((19, 4), (3, 5, 4)))
    found = np.stack(list(run_exported.probabilities(weight * 99, feature)))
    np.testing.assert_allclose(found, jax.nn.sigmoid(convolve(weight * 99, feature)), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_tiny_model_runs_without_jax(tmp_path):
    """`export` and the script beside the file, in a process that has neither JAX nor this package."""
    with jax.numpy_dtype_promotion("standard"):
        checkpoint = write_tiny_model(tmp_path / "tiny")
    image = tmp_path / "scene.png"
    Image.fromarray(Scenes("val", size=(90, 120))[3].image).save(image)
    argv = ["export", "--checkpoint", checkpoint, "--output", tmp_path / "out" / "model.onnx", "--compare", image]
    assert front_door.main(list(map(str, argv))) == 0
    code = (
        "import sys, runpy\n"
        "for name in ('pfcn_jax', 'jax', 'flax', 'onnx', 'cv2'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    files = [tmp_path / "out" / "run_exported.py", tmp_path / "out" / "model.onnx", image, tmp_path / "segments.png"]
    done = subprocess.run([sys.executable, "-I", "-c", code, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, classes = live_segments(load_checkpoint(checkpoint))(np.array(Image.open(image)))
    names = load_checkpoint(checkpoint).classes.names
    assert [line.split()[1] for line in done.stdout.splitlines()] == [names[index] for index in classes]


def _real_model(kind: str, reference_dir: pathlib.Path, side: int) -> LoadedModel:
    """A full architecture with reproducible weights, for images of one small size."""
    data = [f"--config.data.eval_{name}_side={side}" for name in ("short", "max_long")]
    name = "panoptic_fcn_r50" if kind == "r50" else "panoptic_fcn_efficientnet_lite0"
    config = from_command_line(
        [f"--config={ROOT / 'configs' / name}.py", *data, f"--config.data.eval_canvases=(({side}, {side}),)"]
    )
    classes = coco_classes()
    if kind == "r50":
        converted = to_params(make_state_dict(reference_dir, "R50-1x"))
        config, variables = dataclasses.replace(config, model=converted.apply_to(config.model)), converted.variables
    else:
        variables = tiny_variables(build_model(config.model, *classes.counts))
        config = dataclasses.replace(config, inference=dataclasses.replace(config.inference, min_stuff_area=1))
    return LoadedModel(pathlib.Path(kind), config, classes, build_model(config.model, *classes.counts), variables)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["r50", "efficientnet_lite0"])
def test_real_architectures_load_everywhere(kind, reference_dir, image_data_dir, tmp_path):
    """Every optimization level of ONNX Runtime and OpenVINO: the segments of the live model."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loaded = _real_model(kind, reference_dir, 128)
        path, begin = tmp_path / "model.onnx", time.perf_counter()
        write_onnx(path, loaded, onnx_shape(loaded.config, None, (640,)))
        assert time.perf_counter() - begin < 120
        photo = np.array(Image.open(next((image_data_dir / "two_photos" / "images").iterdir())).convert("RGB"))
        live, exported = live_segments(loaded), open_exported(path, "onnx")
        (found,) = compare(live, exported, [("photo", photo)], [])
        assert found.same and found.segments >= 1
        live_map, live_classes = live(photo)
    meta, _ = run_exported.load(path)

    def everywhere(program, image, size, original):
        kernels = run_everywhere(path, {"image": image, "size": size})
        for where, arrays in kernels.items():
            pasted = run_exported.paste(meta, arrays, size[0], original[0])
            assert pasted["class_id"].tolist() == live_classes, where
            assert (pasted["segment_map"] != live_map).mean() <= 5e-4, where
        return pasted

    run_exported.segment(meta, everywhere, photo)
