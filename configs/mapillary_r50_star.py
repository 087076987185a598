"""Panoptic FCN*, ResNet-50, Mapillary Vistas 1.2: the authors' recipe (37 things, 28 stuff classes).

Command:   python -m pfcn_jax.main --config configs/mapillary_r50_star.py --config.data.root=DIR --init-from CHECKPOINT
Needs:     DIR with config.json, training/ and validation/ as the owners ship them (docs/datasets.md), a converted
           ImageNet backbone (CHECKPOINT), and memory for 32 crops of 1024 x 1024 over all devices.
Published: PQ 36.9 on the validation split. The size of test images was not; short side 1536, long side 2048 is ours.
"""

from configs import panoptic_fcn_r50


def get_config():
    config = panoptic_fcn_r50.get_config()
    config.name = "mapillary_r50_star"

    config.model.encoder_deformable, config.model.encoder_channels = True, 256

    config.targets.level_ranges = ((1.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, 1024.0), (512.0, 4096.0))
    config.targets.max_positives = 800  # up to 400 instances, each on at most two levels
    config.loss.positives = 3

    inference = config.inference
    inference.candidates = 200
    inference.center_threshold, inference.stuff_threshold = 0.2, 0.1
    inference.fusion_threshold = 0.95

    config.optim.learning_rate, config.optim.reference_batch, config.optim.clip_value = 0.02, 32, 15.0

    data = config.data
    data.source, data.root = "mapillary", "data/mapillary_vistas"
    data.train_split, data.eval_split = "training", "validation"
    data.short_sides, data.max_long_side = tuple(range(1024, 2049, 64)), 4096
    data.crop, data.crop_with_instance = (1024, 1024), True
    data.canvases = ((1024, 1024),)
    data.eval_short_side, data.eval_max_long_side = 1536, 2048
    data.eval_canvases = ((1152, 2048), (1536, 2048), (2048, 1536))
    data.max_segments = 512

    config.train.steps, config.train.batch_size, config.train.eval_batch_size = 150_000, 32, 4
    return config
