"""The paper's ablations: every row of its seven tables as a config, on COCO or on drawn scenes.

Command:   python -m pfcn_jax.main ablate --table fusion_threshold --config configs/ablations.py
           python -m pfcn_jax.main ablate --table all --config configs/ablations.py:scenes --seeds 0 1
One row:   python -m pfcn_jax.main --config configs/ablations.py:encoder_channels:128
           python -m pfcn_jax.main --config configs/ablations.py:scenes:encoder_channels:128
Published: docs/ablations.md, beside what the small schedule on scenes gives.
"""

from configs import panoptic_fcn_r50, quickstart
from pfcn_jax.studies.ablate.tables import find_row


def get_config(name: str = "coco"):
    """The config of "BASE", "BASE:TABLE:ROW" or "TABLE:ROW"; BASE is "coco" (the canonical one) or "scenes"."""
    first, _, rest = name.partition(":")
    base, row = (first, rest) if first in BASES else ("coco", name)
    config = BASES[base]()
    config.name = "ablations" if base == "coco" else f"ablations_{base}"
    if row:
        table, found = find_row(row)
        config.update_from_flattened_dict(found.changes)
        config.name = f"{config.name}_{table.name}_{found.name}"
    return config


def _scenes():
    """The quickstart's small network with the paper's 64 channels in the encoder, and a fifth of its steps."""
    config = quickstart.get_config()
    config.model.encoder_channels = 64
    side = 96
    data = config.data
    data.scene_size = (side, side)
    data.short_sides, data.max_long_side = (side,), side
    data.eval_short_side, data.eval_max_long_side = side, side
    data.canvases = data.eval_canvases = ((side, side),)
    data.eval_examples = 200
    config.inference.min_stuff_area = 225  # the quickstart's share of the image
    config.optim.learning_rate, config.optim.warmup_steps = 2e-3, 60  # a short schedule bears a higher rate
    train = config.train
    train.steps, train.ema_decay = 600, 0.98
    train.checkpoint_every, train.preview_images = 200, 0
    return config


BASES = {"coco": panoptic_fcn_r50.get_config, "scenes": _scenes}
