"""Panoptic FCN, EfficientNet-Lite0, COCO panoptic: a small backbone of plain convolutions for CPUs and edge devices.

Command:   python -m pfcn_jax.main --config configs/panoptic_fcn_efficientnet_lite0.py --config.data.root=DIR
Needs:     COCO 2017 in the panoptic layout at DIR; ImageNet weights of EfficientNet-Lite0 by --init-from CHECKPOINT.
Published: nothing; the schedule is that of ResNet-50 (1x). Short side 512 and no deformable convolution are ours.
"""

from configs import panoptic_fcn_r50


def get_config():
    config = panoptic_fcn_r50.get_config()
    config.name = "panoptic_fcn_efficientnet_lite0"

    model = config.model
    model.backbone = "efficientnet_lite0"
    model.freeze_at = 2  # stem and the stages up to stride 4
    model.pixel_order, model.pixel_mean, model.pixel_std = "rgb", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
    model.fpn_channels = model.head_channels = model.kernel_channels = 128
    model.position_deformable = False

    config.data.short_sides, config.data.max_long_side = (416, 448, 480, 512), 864
    config.data.eval_short_side, config.data.eval_max_long_side = 512, 864
    canvases = ((512, 864), (864, 512), (512, 704), (704, 512))
    config.data.canvases = config.data.eval_canvases = canvases
    return config
