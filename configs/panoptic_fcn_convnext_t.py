"""Panoptic FCN, ConvNeXt-T, COCO panoptic, 1x with AdamW.

Command:   python -m pfcn_jax.main --config configs/panoptic_fcn_convnext_t.py --config.data.root=DIR
Needs:     COCO 2017 in the panoptic layout at DIR; ImageNet weights of ConvNeXt-T by --init-from CHECKPOINT.
Published: nothing for this method. Learning rate, weight decay and drop path are those of ConvNeXt-T's detectors
           (AdamW 1e-4, 0.05, 0.4); in place of their decay by layers the backbone learns at a fifth.
"""

from configs import panoptic_fcn_r50


def get_config():
    config = panoptic_fcn_r50.get_config()
    config.name = "panoptic_fcn_convnext_t"

    model = config.model
    model.backbone = "convnext_t"
    model.drop_path = 0.4
    model.freeze_at = 0
    model.pixel_order, model.pixel_mean, model.pixel_std = "rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

    config.optim.name = "adamw"
    config.optim.learning_rate, config.optim.weight_decay = 1e-4, 0.05
    config.optim.lr_multipliers = (("backbone", 0.2),)
    return config
