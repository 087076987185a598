"""docs/extending.md: the code on the page works as the page says."""

from __future__ import annotations

import functools
import json
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.augment import ResizeShortSide
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.example import DataError
from pfcn_jax.data.pipeline import Pipeline
from pfcn_jax.data.plan import BatchPlan
from pfcn_jax.metrics import registry
from pfcn_jax.models.build import build_model
from pfcn_jax.models.panoptic_fcn import init_variables
from tests.documents import ROOT, fences
from tests.support.tiny import TINY, write_tiny_model


@pytest.fixture(scope="module")
def page():
    """The blocks of the page, run one after the other, as a module."""
    module = types.ModuleType("extending_page")
    sys.modules[module.__name__] = module  # so that its classes can be pickled
    text = (ROOT / "docs" / "extending.md").read_text()
    for language, code in fences(text):
        assert language == "python"
        exec(compile(code, "docs/extending.md", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


def test_the_data_set_feeds_the_pipeline(page, tmp_path):
    (tmp_path / "train").mkdir()
    scenes = Scenes("train", size=(64, 96), length=3)
    for index in range(3):
        example = scenes[index]
        ids = np.where(np.concatenate([[0], example.class_id < 5])[example.segment_map], example.segment_map * 7, 0)
        ids += index == 1  # an image without void
        Image.fromarray(example.image).save(tmp_path / "train" / f"{index}.png")
        Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "train" / f"{index}_ids.png")
    source = pickle.loads(pickle.dumps(page.Balls(str(tmp_path), "train")))
    assert len(source) == 3 and source.sizes().tolist() == [[64, 96]] * 3
    for index in range(3):
        example = source[index]
        assert np.unique(example.segment_map).max() == len(example.class_id) > 0
        assert (example.segment_map == 0).any() == (index != 1)
    recipe = ResizeShortSide(short_sides=(64,), max_long_side=96)
    plan = BatchPlan(source.sizes(), recipe.largest_size, canvases=((64, 96),), batch_size=3, shuffle=False)
    made = Pipeline(source, recipe, plan, process=(0, 1), max_segments=32)
    with iter(made) as batches:
        batch = next(batches)
    assert batch.image.shape == (3, 64, 96, 3) and batch.segments.is_thing[batch.segments.valid].all()
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(DataError, match="no image here"):
        page.Balls(str(tmp_path), "val")


def test_a_backbone_from_outside_of_the_package_is_one_line_in_a_config(page):
    config = from_command_line([*TINY, f"--config.model.backbone={page.__name__}:plain", "--config.model.freeze_at=2"])
    model = build_model(config.model, 2, 1)
    assert model.frozen_paths() == ("backbone/half", "backbone/res2")
    image = jax.random.randint(jax.random.key(0), (1, 64, 64, 3), 0, 256).astype(jnp.uint8)
    size = jnp.array([[64, 64]])
    variables = init_variables(model, jax.random.key(1))

    @jax.jit
    def descend(params, image):
        def loss(params):
            features = model.apply({"params": params}, image, size, size, method="features")
            return sum(jnp.mean(jnp.square(features[level])) for level in ("res2", "res3", "res4", "res5"))

        value, gradients = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)

    params = variables["params"]
    before, moved = descend(params, image)
    assert float(descend(moved, image)[0]) < float(before)
    for name in ("half", "res2", "res3", "res4", "res5"):
        same = np.array_equal(moved["backbone"][name]["kernel"], params["backbone"][name]["kernel"])
        assert same == (name in ("half", "res2"))
    features = jax.jit(functools.partial(model.apply, method="features"))
    small = features(variables, image, size, size)
    large = features(variables, jnp.pad(image, ((0, 0), (0, 64), (0, 32), (0, 0))), size, size)
    for name, values in small.items():
        np.testing.assert_allclose(large[name][:, : values.shape[1], : values.shape[2]], values, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_backbone_from_outside_of_the_package_trains_a_step(page, tmp_path):
    flags = [f"--config.model.backbone={page.__name__}:plain", "--config.train.steps=1"]
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
        assert front_door.main(["train", *TINY, *flags, "--workdir", str(tmp_path)]) == 0


def test_a_metric_of_a_file_outside_the_package_is_in_the_evaluation(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = [code for _, code in fences(text) if '@register("void_share")' in code]
    (tmp_path / "my_metrics.py").write_text(f"import numpy as np\n{code}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(registry._METRICS, "void_share", raising=False)  # of the page as a module
    model, output = write_tiny_model(tmp_path / "model"), tmp_path / "scores.json"
    names = "--config.evaluation.metrics=('miou', 'my_metrics:void_share')"
    assert front_door.main(["evaluate", "--checkpoint", str(model), names, "--output", str(output)]) == 0
    scores = json.loads(output.read_text())
    assert 0.0 <= scores["void_share"] <= 100.0
    assert "All" in scores and "mIoU" in scores and "AP" not in scores


def test_the_head_speaks_for_every_position(page):
    head = page.BorderHead(channels=32, convs=2)
    level, extent = jnp.ones((1, 8, 8, 16)), jnp.array([[32, 64]])
    out, _ = jax.jit(functools.partial(head.init_with_output, stride=8))(jax.random.key(0), level, extent)
    assert out.shape == (1, 8, 8, 1)
    assert not np.asarray(out)[:, 4:].any() and np.asarray(out)[:, :4].any()
