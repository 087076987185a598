"""Panoptic FCN, ResNet-50, COCO panoptic, 1x: the canonical config, in the paper's order.

Command:   python -m pfcn_jax.main --config configs/panoptic_fcn_r50.py --config.data.root=DIR --init-from CHECKPOINT
Needs:     COCO 2017 in the panoptic layout at DIR and a converted ImageNet backbone (CHECKPOINT; docs/training.md).
Published: PQ 41.1, SQ 79.8, RQ 49.9, AP 32.2, mIoU 41.5 (COCO val, 90k steps, batch 16).
"""

from pfcn_jax.config.schema import default_config


def get_config():
    config = default_config()
    config.name = "panoptic_fcn_r50"
    config.seed = 0

    # The network (paper section 3.1 and 3.2)
    model = config.model
    model.backbone = "resnet50"
    model.backbone_norm = "frozen_bn"
    model.backbone_width = 64
    model.stride_in_1x1 = True  # the ImageNet weights of the original are MSRA's
    model.deformable_stages = ()
    model.drop_path = 0.0
    model.freeze_at = 2  # stem and res2
    model.fpn_channels = 256
    model.head_channels = 256
    model.kernel_channels = 256
    model.position_convs, model.position_deformable, model.position_coords = 3, True, False
    model.region_classes = "stuff"
    model.kernel_convs, model.kernel_deformable, model.kernel_coords = 3, False, True
    model.encoder_input = "semantic_fpn"
    model.encoder_convs, model.encoder_deformable, model.encoder_coords = 3, False, True
    model.encoder_channels = 64
    model.pixel_order = "bgr"
    model.pixel_mean = (123.675, 116.28, 103.53)  # written in RGB order, applied to BGR: as the original does
    model.pixel_std = (1.0, 1.0, 1.0)
    model.dtype = "float32"
    model.remat = False

    # Targets (paper section 3.2)
    config.targets.level_ranges = ((1.0, 64.0), (32.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, 2048.0))
    config.targets.center = "mass"
    config.targets.min_overlap = 0.7
    config.targets.max_positives = 200
    config.targets.padding = "image"

    # Losses (paper section 3.3): L = 1.0 L_pos + 3.0 L_seg
    config.loss.position_weight = 1.0
    config.loss.segmentation_weight = 3.0
    config.loss.focal_alpha, config.loss.focal_gamma = 0.25, 2.0
    config.loss.positives = 7
    config.loss.weighted_dice = True

    # Inference (paper section 3.4)
    config.inference.candidates = 50
    config.inference.center_threshold = 0.05
    config.inference.stuff_threshold = 0.05
    config.inference.fusion_threshold = 0.9
    config.inference.class_aware_fusion = True
    config.inference.mask_nms, config.inference.mask_nms_threshold = False, 0.5
    config.inference.mask_threshold = 0.4
    config.inference.min_score = 0.05
    config.inference.max_things = 100
    config.inference.merge_score, config.inference.merge_overlap = 0.2, 0.5
    config.inference.min_stuff_area = 4096

    # Test-time augmentation: none
    config.tta.scales, config.tta.flip = (), False

    # Optimizer (paper section 4.1)
    config.optim.name = "sgd"
    config.optim.learning_rate, config.optim.reference_batch = 0.01, 16
    config.optim.momentum, config.optim.weight_decay, config.optim.clip_value = 0.9, 1e-4, 35.0
    config.optim.warmup_steps, config.optim.warmup_factor, config.optim.poly_power = 1000, 0.001, 0.9
    config.optim.lr_multipliers, config.optim.frozen = (), ()  # as (("backbone", 0.1),), ("backbone/res3_0",)

    # Data: short side drawn from 640..800, long side at most 1333, flips
    config.data.source = "coco"
    config.data.root = "data/coco"
    config.data.train_split = config.data.eval_split = ""  # found in root: train2017 and val2017
    config.data.short_sides, config.data.max_long_side = (640, 672, 704, 736, 768, 800), 1333
    config.data.eval_short_side, config.data.eval_max_long_side = 800, 1333
    config.data.canvases = ((800, 1344), (1344, 800), (800, 1088), (1088, 800))
    config.data.eval_canvases = ((800, 1344), (1344, 800), (800, 1088), (1088, 800))
    config.data.train_resize = "pillow"
    config.data.flip = 0.5
    config.data.crop, config.data.crop_with_instance, config.data.jitter = (0, 0), False, (0.0, 0.0)
    config.data.max_segments = 255
    config.data.cache, config.data.workers = False, 4
    config.data.on_broken, config.data.max_broken = "stop", 100

    # Schedule: 1x
    config.train.steps = 90_000
    config.train.batch_size, config.train.accumulate = 16, 1
    config.train.ema_decay = 0.0  # no averaged weights
    config.train.on_nonfinite, config.train.max_skipped = "stop", 100
    return config
