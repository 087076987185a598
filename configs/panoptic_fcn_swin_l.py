"""Panoptic FCN*, Swin-L, COCO panoptic, 3x with AdamW: the largest model of the method's journal version.

Command:   python -m pfcn_jax.main --config configs/panoptic_fcn_swin_l.py --config.data.root=DIR
Needs:     COCO 2017 in the panoptic layout at DIR; ImageNet-22k weights of Swin-L by
           --init-from timm-swin_large_patch4_window7_224.ms_in22k.
Published: PQ 51.8 (COCO val), 52.7 (test-dev), with window 7, drop path 0.5 and AdamW 1e-4. The weight decay and the
           backbone's factor of the learning rate are ours.
"""

from configs import panoptic_fcn_r50


def get_config():
    config = panoptic_fcn_r50.get_config()
    config.name = "panoptic_fcn_swin_l"

    model = config.model
    model.backbone = "swin_l"
    model.drop_path = 0.5
    model.freeze_at = 0
    model.encoder_deformable, model.encoder_channels = True, 256
    model.pixel_order, model.pixel_mean, model.pixel_std = "rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    model.remat = True

    config.optim.name = "adamw"
    config.optim.learning_rate, config.optim.weight_decay = 1e-4, 0.05
    config.optim.lr_multipliers = (("backbone", 0.1),)
    config.train.steps = 270_000
    return config
