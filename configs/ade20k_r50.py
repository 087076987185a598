"""Panoptic FCN, ResNet-50, ADE20K panoptic (100 things, 50 stuff classes). The authors published no recipe for it.

Command:   python -m pfcn_jax.main --config configs/ade20k_r50.py --config.data.root=DIR --init-from CHECKPOINT
Needs:     DIR with ADEChallengeData2016/ (docs/datasets.md) and a converted ImageNet backbone
           (CHECKPOINT).
Settings:  those of COCO with images of short side 512, the usual size on ADE20K. No figure is published or measured.
"""

from configs import panoptic_fcn_r50


def get_config():
    config = panoptic_fcn_r50.get_config()
    config.name = "ade20k_r50"

    config.inference.min_stuff_area = 1024

    data = config.data
    data.source, data.root = "ade20k", "data/ade20k"
    data.train_split, data.eval_split = "training", "validation"
    data.short_sides, data.max_long_side = (384, 416, 448, 480, 512, 544, 576, 608, 640), 1333
    data.canvases = ((640, 864), (864, 640), (640, 1344), (1344, 640))
    data.eval_short_side, data.eval_max_long_side = 512, 1333
    data.eval_canvases = ((512, 704), (704, 512), (512, 1344), (1344, 512))

    config.train.steps = 60_000
    return config
