"""What can be configured: the schema with its defaults, and the door that checks every key.

The defaults are Panoptic FCN with ResNet-50 on COCO, 1x (configs/panoptic_fcn_r50.py states those of the method). A
config file returns an `ml_collections.ConfigDict`; `from_dict` turns it into these frozen dataclasses. A key that is
not in the schema, or a value of another type, is an error that names the key: nothing is silently ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import pathlib
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections
from absl import flags
from ml_collections import config_flags

from pfcn_jax.config.checks import ConfigError, check_values


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from and how they reach the canvas."""

    # "coco" (any COCO-panoptic folder), "tfds", "cityscapes", "mapillary", "ade20k" (as their owners ship them),
    # "scenes" (drawn by the package); docs/datasets.md
    source: Literal["coco", "tfds", "cityscapes", "mapillary", "ade20k", "scenes"] = "coco"
    root: str = "data/coco"  # folder of the data set; not read by "scenes"
    train_split: str = ""  # "": the split in `root` that is named train...
    eval_split: str = ""  # "": the split in `root` that is named val...
    train_examples: int = 0  # use only the first n examples of the split; 0 = all
    eval_examples: int = 0
    scene_size: tuple[int, int] = (128, 128)  # "scenes" only: height, width
    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # one is drawn for each training picture
    max_long_side: int = 1333
    train_resize: Literal["pillow", "opencv"] = "pillow"  # as the original, or faster and off by one grey level
    eval_short_side: int = 800
    eval_max_long_side: int = 1333
    canvases: tuple[tuple[int, int], ...] = ((800, 1344), (1344, 800), (800, 1088), (1088, 800))  # one compilation each
    eval_canvases: tuple[tuple[int, int], ...] = ((800, 1344), (1344, 800), (800, 1088), (1088, 800))
    flip: float = 0.5  # probability of a horizontal flip
    crop: tuple[int, int] = (0, 0)  # training window (height, width) after resizing; (0, 0): the whole picture
    crop_with_instance: bool = False  # the window holds at least one instance
    # Large-scale jitter: instead of the short sides, a picture is fitted into `crop` and scaled by a factor drawn from
    # this range, as (0.1, 2.0); (0, 0): off.
    jitter: tuple[float, float] = (0.0, 0.0)
    max_segments: int = 255  # rows of the segment table (to 255: a byte a pixel); more are dropped and counted
    cache: bool = False  # keep decoded pictures in memory, in each process that loads: for sets that fit
    workers: int = 4  # decoding processes; 0 = in the training process
    # A training picture that cannot be read stops the run, or its neighbour on the canvas stands in for it.
    on_broken: Literal["stop", "skip"] = "stop"
    max_broken: int = 100  # "skip": so many pictures of a run may be broken; one more stops it


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network (paper section 3). Every key is a keyword of `PanopticFCN`."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    backbone_norm: Literal["frozen_bn", "group_norm"] = (
        "frozen_bn"  # "frozen_bn" (pretrained) or "group_norm" (from scratch)
    )
    backbone_width: int = 64  # channels of the stem; 64 is the ResNet of the papers
    stride_in_1x1: bool = True  # True: MSRA weights; False: torchvision weights
    deformable_stages: tuple[int, ...] = ()  # (3, 4, 5) = "DCN"
    freeze_at: int = 2  # 0: nothing, 1: stem, 2: stem and res2
    fpn_channels: int = 256
    head_channels: int = 256
    kernel_channels: int = 256  # of the kernel map, before embedding
    position_convs: int = 3
    position_deformable: bool = True
    position_coords: bool = False
    region_classes: Literal["stuff", "all"] = "stuff"  # "stuff": any thing and stuff; "all": things, too (Cityscapes)
    kernel_convs: int = 3
    kernel_deformable: bool = False
    kernel_coords: bool = True
    encoder_input: Literal["semantic_fpn", "p2", "sum"] = "semantic_fpn"  # "semantic_fpn", "p2", "sum"
    encoder_convs: int = 3
    encoder_deformable: bool = False  # True: the enhanced (*) model, with encoder_channels = 256
    encoder_coords: bool = True
    encoder_channels: int = 64
    pixel_order: Literal["rgb", "bgr"] = "bgr"  # of the pretrained weights; pictures are read as RGB
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # in pixel_order, as the original applies it
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: Literal["float32", "bfloat16"] = "float32"  # compute type: "float32" or "bfloat16"; parameters stay float32
    remat: bool = False  # recompute the network's blocks in the backward pass: less memory, more time


@dataclasses.dataclass(frozen=True)
class TargetsConfig:
    """What the heads should say (paper section 3.2)."""

    level_ranges: tuple[tuple[float, float], ...] = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
    center: Literal["mass", "box"] = "mass"  # "mass" or "box"
    min_overlap: float = 0.7  # IoU that a box shifted by the Gaussian's radius keeps
    max_positives: int = 200  # (instance, level) pairs a picture; pairs beyond are dropped and counted
    padding: Literal["picture", "canvas"] = (
        "picture"  # "picture": the canvas' padding never counts; "canvas": it does, as in the original
    )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the four losses (paper section 3.3)."""

    position_weight: float = 1.0
    segmentation_weight: float = 3.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    positives: int = 7  # k: kernels sampled for each (instance, level)
    weighted_dice: bool = True  # False: plain dice over the k kernels


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """From heads to segments (paper section 3.4)."""

    candidates: int = 50  # peaks kept on each level, over all classes
    center_threshold: float = 0.05
    stuff_threshold: float = 0.05
    fusion_threshold: float = 0.9  # cosine similarity; above 1 switches fusion off
    class_aware_fusion: bool = True
    mask_nms: bool = False  # mask NMS after fusion (ablation)
    mask_nms_threshold: float = 0.5
    mask_threshold: float = 0.4
    min_score: float = 0.05  # after rescoring by the mask's mean probability
    max_things: int = 100
    merge_score: float = 0.2
    merge_overlap: float = 0.5
    min_stuff_area: int = 4096  # pixels at the original size


@dataclasses.dataclass(frozen=True)
class TTAConfig:
    """Test-time augmentation: further views of each picture at `evaluate` and `predict` (docs/inference.md)."""

    scales: tuple[float, ...] = ()  # beside the picture itself, relative to data.eval_short_side: (0.75, 1.25)
    flip: bool = False  # each of them also mirrored


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser (paper section 4.1)."""

    name: Literal["sgd", "adamw"] = "sgd"  # "sgd" or "adamw"
    learning_rate: float = 0.01  # for a batch of reference_batch; scaled linearly to the batch in use
    reference_batch: int = 16
    momentum: float = 0.9  # adamw: beta 1
    weight_decay: float = 1e-4  # not on norm parameters
    clip_value: float = 35.0  # each gradient element is clipped to +- this
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    poly_power: float = 0.9
    # (path, factor) pairs: parameters below "backbone" or "backbone/res5_0" learn factor times as fast; the longest
    # path that fits counts
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    frozen: tuple[str, ...] = ()  # paths below which nothing is trained, besides what model.freeze_at names


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training program."""

    steps: int = 90_000
    batch_size: int = 16  # over all devices and all parts of a step
    accumulate: int = 1  # parts that a batch is computed in, one after the other: less memory, the same result
    ema_decay: float = 0.0  # of the averaged weights that are evaluated and kept as the model; 0 = no averaging
    log_every: int = 20
    eval_every: int = 5000  # 0: only at the end
    eval_examples: int = 500  # of a periodic evaluation; 0 = all (the last one always takes all)
    eval_batch_size: int = 8  # at least; rounded up to a multiple of the devices
    checkpoint_every: int = 2500
    keep_latest: int = 2
    keep_best: int = 1  # by PQ of the evaluation
    preview_pictures: int = 8  # overlay pictures written by the last evaluation
    init_from: str = ""  # a checkpoint of this project to start from: a model, or a backbone made by `convert`
    # A loss or gradient that is not finite stops the run, or leaves the update of its step out.
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 100  # "skip": so many steps of a run may be left out; one more stops it
    fresh_heads: bool = False  # what does not fit outside its backbone (other classes) starts fresh; else an error


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    name: str = "panoptic_fcn_r50"
    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    targets: TargetsConfig = dataclasses.field(default_factory=TargetsConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
    tta: TTAConfig = dataclasses.field(default_factory=TTAConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def default_config() -> ml_collections.ConfigDict:
    """The schema's defaults as a ConfigDict, the starting point of every config file."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()), convert_dict=True)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Checks a config against the schema.

    Raises:
      ConfigError: for an unknown key (with the nearest known one) or a value of a wrong type, or values that cannot
        work together; it names the key.
    """
    if isinstance(tree, ml_collections.ConfigDict):
        tree = tree.to_dict()
    config = _build(Config, tree, "config")
    check_values(config)
    return config


def from_command_line(config_argv: list[str], base: Config | None = None) -> Config:
    """`--config=FILE --config.key=value ...` -> a checked config. `FILE:NAME` hands NAME to the file's `get_config`.

    Args:
      base: what the keys change if no file is given (the config of a checkpoint).

    Raises:
      ConfigError: if there is no file, the file fails, or a key or value does not fit.
    """
    _check_overrides(config_argv)
    files = [word.partition("=")[2] for word in config_argv if word.startswith("--config=")]
    values, argv = flags.FlagValues(), ["pfcn_jax", *config_argv]
    if files:
        file = files[-1].partition(":")[0]
        if not pathlib.Path(file).is_file():
            raise ConfigError(f"{file}: no such config file")
        config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=argv)
    elif base is not None:
        tree = ml_collections.ConfigDict(dataclasses.asdict(base), convert_dict=True)
        config_flags.DEFINE_config_dict("config", tree, flag_values=values, lock_config=True, sys_argv=argv)
    else:
        raise ConfigError("no config: add --config configs/quickstart.py (or another file of configs/)")
    try:
        values(argv)
        tree = values.config.to_dict()
    except (flags.Error, OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{' '.join(config_argv)}: {_reason(error)}") from error
    return from_dict(tree)


def _check_overrides(config_argv: list[str]) -> None:
    """Raises ConfigError for the first `--config.key=value` whose key the schema does not have."""
    for word in config_argv:
        name, path = word.partition("=")[0].removeprefix("--"), "config"
        schema: Any = Config
        for key in name.partition("[")[0].split(".")[1:]:
            if not dataclasses.is_dataclass(schema):
                raise ConfigError(f"{name}: unknown config key ({path} is a value, not a section of keys)")
            _check_key(schema, key, path)
            schema, path = typing.get_type_hints(schema)[key], f"{path}.{key}"


def _check_key(schema: Any, key: str, path: str) -> None:
    known = [field.name for field in dataclasses.fields(schema)]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{path}.{key}: unknown config key{hint} (known: {', '.join(known)})")


def _reason(error: Exception) -> str:
    """What went wrong. A config file that fails is reported as a whole traceback: its last line says why."""
    text = str(error.args[0]).strip(chr(39))
    return text.strip().splitlines()[-1].partition(": ")[2] if "Traceback" in text else text


def to_json(config: Config) -> str:
    """The config as sorted JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def config_hash(config: Config) -> str:
    """Twelve hex digits that change with any value of the config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def _build(schema: type, tree: Mapping[str, Any], path: str) -> Any:
    for key in tree:
        _check_key(schema, str(key), path)
    hints = typing.get_type_hints(schema)
    values = {key: _convert(value, hints[key], f"{path}.{key}") for key, value in tree.items()}
    return schema(**values)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type that the schema asks for; JSON's lists become tuples, whole numbers may stand for floats."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: is a section of keys, got {value!r}")
        return _build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: must be a sequence, got {value!r}")
        parts = typing.get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            parts = (parts[0],) * len(value)
        if len(parts) != len(value):
            raise ConfigError(f"{path}: must have {len(parts)} entries, got {value!r}")
        return tuple(_convert(entry, part, f"{path}[{i}]") for i, (entry, part) in enumerate(zip(value, parts)))
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{path}: must be one of {', '.join(typing.get_args(hint))}, got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: must be {hint.__name__}, got {value!r}")
    return value
