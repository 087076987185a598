"""Eight COCO photos learned by heart, all 133 classes in the heads: targets, losses, fusion and merge fit together.

Command:   python -m pfcn_jax.main --config configs/coco_memorize.py --config.data.root=DIR --workdir runs/coco_memorize
Data:      any COCO-panoptic folder; the first eight images of its training split, for training and for scoring.
Result:    docs/benchmarks.md. It says nothing about images that the network has not seen.
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.name = "coco_memorize"

    config.targets.max_positives = 64
    config.inference.center_threshold, config.inference.stuff_threshold = 0.1, 0.1
    config.inference.min_stuff_area = 64

    data = config.data
    data.source, data.root = "coco", "data/coco"
    data.train_split = data.eval_split = "train2017"
    data.train_examples = data.eval_examples = 8
    data.short_sides, data.max_long_side = (320,), 512
    data.eval_short_side, data.eval_max_long_side = 320, 512
    data.canvases = data.eval_canvases = ((320, 512), (512, 320))
    data.flip, data.max_segments = 0.0, 64

    config.optim.learning_rate, config.optim.reference_batch = 8e-4, 2
    config.optim.weight_decay, config.optim.warmup_steps = 0.0, 100
    config.inference.merge_score = 0.2

    train = config.train
    train.steps, train.batch_size, train.eval_batch_size = 1400, 2, 2
    train.ema_decay = 0.0
    train.log_every, train.eval_every, train.checkpoint_every = 25, 0, 300
    return config
