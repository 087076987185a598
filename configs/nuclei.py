"""Nuclei in microscope images (Data Science Bowl 2018): hundreds of touching instances, trained from scratch.

Command:   python -m pfcn_jax.main --config configs/nuclei.py --config.data.root=DIR --workdir runs/nuclei
Data:      a COCO-panoptic folder with the splits `train` and `val`; one thing (nucleus), one stuff (background).
Model:     the quickstart's small network with 128 channels in the encoder. Nuclei look alike, so kernels tell them
           apart by the coordinate channels: these need channels, and must span as many pixels in training as when
           scored. So training sees whole images on the canvases of the evaluation, and no windows. For the same
           reason only nearly equal kernels are fused.
Result:    docs/benchmarks.md
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.name = "nuclei"

    config.model.encoder_channels = 128
    config.model.position_deformable = False  # the shapes hardly differ
    config.targets.max_positives = 256
    config.loss.positives = 4  # half of the nuclei cover no more positions of stride 8

    inference = config.inference
    inference.candidates, inference.max_things = 400, 400
    inference.center_threshold, inference.fusion_threshold = 0.15, 0.998
    inference.min_stuff_area = 256

    data = config.data
    data.source, data.root = "coco", "data/nuclei"
    data.train_split, data.eval_split = "train", "val"
    data.short_sides, data.max_long_side = (320,), 448
    data.eval_short_side, data.eval_max_long_side = 320, 448
    data.canvases = data.eval_canvases = ((320, 320), (320, 448))
    data.max_segments, data.eval_examples = 400, 0

    optim = config.optim
    optim.learning_rate, optim.reference_batch, optim.warmup_steps = 1e-3, 2, 150

    train = config.train
    train.steps, train.batch_size = 4800, 2
    train.ema_decay = 0.998
    train.log_every, train.eval_every, train.eval_examples, train.eval_batch_size = 10, 0, 32, 4
    train.checkpoint_every = 500
    return config
