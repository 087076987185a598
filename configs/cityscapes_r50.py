"""Panoptic FCN, ResNet-50, Cityscapes: the authors' recipe.

Command:   python -m pfcn_jax.main --config configs/cityscapes_r50.py --config.data.root=DIR --init-from CHECKPOINT
Needs:     DIR with leftImg8bit/ and gtFine/ as the owners ship them (docs/datasets.md), a converted ImageNet backbone
           (CHECKPOINT), and memory for 32 crops of 512 x 1024 over all devices.
Published: PQ 59.6 on val; 61.4 for the enhanced model (model.encoder_deformable = True, encoder_channels = 256).
"""

from configs import panoptic_fcn_r50


def get_config():
    config = panoptic_fcn_r50.get_config()
    config.name = "cityscapes_r50"

    config.model.region_classes = "all"  # the region head tells all 19 classes apart, and mIoU is over the 19

    config.targets.level_ranges = ((1.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, 1024.0), (512.0, 2048.0))
    config.targets.max_positives = 300  # up to 150 instances, each on at most two levels
    config.loss.segmentation_weight = 4.0

    inference = config.inference
    inference.candidates = 200
    inference.center_threshold, inference.stuff_threshold = 0.01, 0.1
    inference.fusion_threshold, inference.mask_threshold = 0.97, 0.5

    config.optim.learning_rate, config.optim.reference_batch, config.optim.clip_value = 0.02, 32, 15.0

    data = config.data
    data.source, data.root = "cityscapes", "data/cityscapes"
    data.train_split, data.eval_split = "train", "val"
    data.short_sides, data.max_long_side = tuple(range(512, 2049, 64)), 4096
    data.crop, data.crop_with_instance = (512, 1024), True
    data.canvases = ((512, 1024),)
    data.eval_short_side, data.eval_max_long_side = 1024, 2048
    data.eval_canvases = ((1024, 2048),)

    config.train.steps, config.train.batch_size = 65_000, 32
    return config
