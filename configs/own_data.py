"""Your own images: the quickstart's small network from scratch, for any data set in the COCO-panoptic layout.

Command:   python -m pfcn_jax.main --config configs/own_data.py --config.data.root=DIR --workdir runs/own
Data:      DIR with annotations/panoptic_train*.json and panoptic_val*.json (docs/datasets.md: from images and masks
           to a trained model). Classes, names and colors are read from there. Images of any shape fit.
Larger:    for a ResNet-50 from converted weights the same DIR goes into configs/panoptic_fcn_r50.py.
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.name = "own_data"

    config.targets.max_positives = 200
    config.inference.candidates = 100
    config.inference.min_stuff_area = 256

    data = config.data
    data.source, data.root = "coco", "data/own"
    data.train_split = data.eval_split = ""
    data.short_sides, data.max_long_side = (256, 288, 320, 352, 384), 640
    data.flip = 0.5
    data.canvases = data.eval_canvases = ((384, 512), (512, 384), (384, 640), (640, 384))
    data.eval_short_side, data.eval_max_long_side = 320, 640
    data.max_segments, data.eval_examples = 255, 0
    data.workers = 2

    config.train.steps, config.train.eval_batch_size = 4000, 4
    config.train.checkpoint_every = 500
    return config
