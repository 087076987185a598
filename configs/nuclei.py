"""Nuclei in microscope images (Data Science Bowl 2018): hundreds of touching instances, from ImageNet weights.

Command:   python -m pfcn_jax.main --config configs/nuclei.py --config.data.root=DIR --workdir runs/nuclei
Data:      a COCO-panoptic folder with the splits `train` and `val`; one thing (nucleus), one stuff (background).
Model:     96 channels in the encoder. Nuclei look alike, so kernels tell them apart by the coordinate channels: these
           need channels, and must span as many pixels in training as when scored. So training sees whole images on the
           canvases of the evaluation, and no windows. For the same reason only nearly equal kernels are fused.
Result:    docs/fine-tuning.md
"""

from configs import own_data


def get_config():
    config = own_data.from_imagenet()
    config.name = "nuclei"

    config.model.encoder_channels = 96
    config.targets.max_positives = 256
    config.loss.positives = 4  # half of the nuclei cover no more positions of stride 8

    inference = config.inference
    inference.candidates, inference.max_things = 400, 400
    inference.center_threshold, inference.fusion_threshold = 0.15, 0.998
    inference.min_stuff_area = 256

    data = config.data
    data.root = "data/nuclei"
    data.short_sides, data.max_long_side = (384,), 512
    data.eval_short_side, data.eval_max_long_side = 384, 512
    data.canvases = data.eval_canvases = ((384, 384), (384, 512))
    data.max_segments = 400

    config.evaluation.metrics = ("pq", "ap", "miou", "bowl")
    config.optim.reference_batch = 2
    config.train.steps, config.train.batch_size = 3600, 2
    return config
