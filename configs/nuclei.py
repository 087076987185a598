"""Nuclei in microscope images (Data Science Bowl 2018): hundreds of touching instances, trained from scratch.

Command:   python -m pfcn_jax.main --config configs/nuclei.py --config.data.root=DIR --workdir runs/nuclei
Data:      a COCO-panoptic folder with the splits `train` and `val`; one thing (nucleus), one stuff (background).
Model:     the quickstart's small network. Training sees windows of 256 x 256 of pictures enlarged up to 2.5 times:
           centers of nuclei ten pixels apart fall into one cell of stride 8 otherwise. Scored are whole pictures of
           short side 256: nuclei look alike, so kernels tell them apart by the coordinate channels, which must span
           as many pixels as in training. For the same reason only nearly equal kernels are fused.
Result:    docs/benchmarks.md
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.name = "nuclei"

    config.targets.max_positives = 256
    inference = config.inference
    inference.candidates, inference.max_things = 400, 400
    inference.center_threshold, inference.fusion_threshold = 0.1, 0.99
    inference.min_stuff_area = 256

    data = config.data
    data.source, data.root = "coco", "data/nuclei"
    data.train_split, data.eval_split = "train", "val"
    data.short_sides, data.max_long_side = (384, 448, 512, 576, 640), 1280
    data.crop, data.crop_with_instance = (256, 256), True
    data.canvases = ((256, 256),)
    data.eval_short_side, data.eval_max_long_side = 256, 544
    data.eval_canvases = ((256, 256), (256, 352), (288, 544))
    data.max_segments, data.eval_examples = 400, 0

    config.optim.learning_rate, config.optim.warmup_steps = 1.2e-3, 100

    train = config.train
    train.steps, train.batch_size = 4000, 4
    train.ema_decay = 0.998
    train.log_every, train.eval_every, train.eval_examples, train.eval_batch_size = 20, 0, 32, 4
    train.checkpoint_every = 500
    return config
