"""Which values a config may have, and which go together: what the types of the schema cannot say."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pfcn_jax.errors import ConfigError
from pfcn_jax.models.backbones.registry import find_backbone

if TYPE_CHECKING:  # the schema itself runs these checks
    from pfcn_jax.config.schema import Config
    from pfcn_jax.data.options import DataOptions
    from pfcn_jax.models.options import ModelOptions


# The least value -> keys that may have it.
_AT_LEAST = {
    1: (
        "train.steps", "train.batch_size", "train.accumulate", "train.log_every", "train.eval_batch_size",
        "train.checkpoint_every", "train.keep_latest",
        "data.max_segments", "data.eval_short_side", "data.eval_max_long_side", "data.max_long_side",
        "model.backbone_width", "model.fpn_channels", "model.head_channels", "model.kernel_channels",
        "model.encoder_channels",
        "targets.max_positives", "loss.positives", "inference.candidates", "inference.max_things",
        "optim.reference_batch",
    ),
    0: (
        "seed",
        "train.eval_every", "train.eval_examples", "train.keep_best", "train.preview_pictures", "train.max_skipped",
        "data.train_examples", "data.eval_examples", "data.workers", "data.max_broken",
        "model.freeze_at", "model.position_convs", "model.kernel_convs", "model.encoder_convs",
        "loss.position_weight", "loss.segmentation_weight", "loss.focal_gamma",
        "inference.min_stuff_area",
        # A threshold above 1 lets nothing pass.
        "inference.center_threshold", "inference.stuff_threshold",
        "inference.fusion_threshold", "inference.mask_nms_threshold", "inference.mask_threshold",
        "inference.min_score", "inference.merge_score", "inference.merge_overlap",
        "optim.weight_decay", "optim.warmup_steps", "optim.warmup_factor", "optim.poly_power",
    ),
}  # fmt: skip
_ABOVE_0 = ("optim.learning_rate", "optim.clip_value")
_FROM_0_TO_1 = ("data.flip", "targets.min_overlap", "loss.focal_alpha")
_FROM_0_BELOW_1 = ("train.ema_decay", "optim.momentum", "model.drop_path")
_SMALLEST_SCENE = 32  # pixels of a side


def check_values(config: Config) -> None:
    """Raises ConfigError for the first value that has no meaning, or that another one takes the meaning from."""

    def refuse(path: str, wanted: str) -> None:
        raise ConfigError(f"config.{path}: must be {wanted}, got {_at(config, path)}")

    for least, paths in _AT_LEAST.items():
        for path in paths:
            if not _at(config, path) >= least:
                refuse(path, f"at least {least}")
    for path in _ABOVE_0:
        if not _at(config, path) > 0.0:
            refuse(path, "above 0")
    for path in _FROM_0_TO_1:
        if not 0.0 <= _at(config, path) <= 1.0:
            refuse(path, "from 0 to 1")
    for path in _FROM_0_BELOW_1:
        if not 0.0 <= _at(config, path) < 1.0:
            refuse(path, "at least 0 and below 1")
    for scale in config.tta.scales:
        if not 0.25 <= scale <= 4.0 or scale == 1.0:
            raise ConfigError(f"config.tta.scales: each from 0.25 to 4 and not 1 (the picture itself), got {scale}")
    _check_levels(config.targets.level_ranges)
    _check_model(config.model)
    _check_data(config.data)


def _at(config: Config, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


def _check_levels(ranges: tuple[tuple[float, float], ...]) -> None:
    if len(ranges) != 5:
        raise ConfigError(f"config.targets.level_ranges: must have 5 ranges (p3..p7), got {ranges}")
    for low, high in ranges:
        if not 0.0 <= low <= high:
            raise ConfigError(f"config.targets.level_ranges: expected 0 <= low <= high, got {(low, high)}")


def _check_model(model: ModelOptions) -> None:
    if model.freeze_at > 5:
        raise ConfigError(f"config.model.freeze_at: from 0 (nothing) to 5 (all of the backbone), got {model.freeze_at}")
    find_backbone(model.backbone).check(model)
    if not min(model.pixel_std) > 0.0:
        raise ConfigError(f"config.model.pixel_std: each must be above 0, got {model.pixel_std}")


def _check_data(data: DataOptions) -> None:
    for section, name in ((data.canvases, "canvases"), (data.eval_canvases, "eval_canvases")):
        if not section:
            raise ConfigError(f"config.data.{name}: needs at least one canvas")
        for canvas in section:
            if canvas[0] % 32 or canvas[1] % 32 or min(canvas) <= 0:
                raise ConfigError(f"config.data.{name}: sides must be multiples of 32, got {canvas}")
    if not data.short_sides or min(data.short_sides) < 1:
        raise ConfigError(f"config.data.short_sides: needs at least one side in pixels, got {data.short_sides}")
    if min(data.scene_size) < _SMALLEST_SCENE:
        raise ConfigError(f"config.data.scene_size: sides of at least {_SMALLEST_SCENE} pixels, got {data.scene_size}")
    if data.jitter != (0.0, 0.0) and not 0.0 < data.jitter[0] <= data.jitter[1]:
        raise ConfigError(f"config.data.jitter: expected 0 < low <= high, or (0, 0) for none, got {data.jitter}")
    if data.crop != (0, 0) and min(data.crop) < 1:
        raise ConfigError(f"config.data.crop: must be a (height, width), or (0, 0) for none, got {data.crop}")
    if data.crop == (0, 0):
        for key, used in (("jitter", data.jitter != (0.0, 0.0)), ("crop_with_instance", data.crop_with_instance)):
            if used:
                raise ConfigError(f"config.data.{key}: needs config.data.crop, the size of the window")
