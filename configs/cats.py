"""Cats as polygons: one class of things on web photos, fine-tuned from ImageNet weights.

Command:   python -m pfcn_jax.main --config configs/cats.py --config.data.root=DIR --workdir runs/cats
Data:      227 + 110 photos of 640x640 as a COCO-panoptic folder, made by `prepare yolo`; all else is background.
Scale:     cats are large: whole photos at half their size, on the canvas of the evaluation.
Result:    docs/fine-tuning.md
"""

from configs import own_data


def get_config():
    config = own_data.from_imagenet()
    config.name = "cats"

    config.inference.min_stuff_area = 256

    data = config.data
    data.root = "data/cats"
    data.short_sides, data.max_long_side = (224, 256, 288, 320), 320
    data.eval_short_side, data.eval_max_long_side = 320, 320
    data.canvases = data.eval_canvases = ((320, 320),)
    data.max_segments = 64

    config.train.steps = 1200
    return config
