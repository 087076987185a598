"""CamVid: street scenes of 480x360 with 11 classes, fine-tuned from ImageNet weights.

Command:   python -m pfcn_jax.main --config configs/camvid.py --config.data.root=DIR --workdir runs/camvid
Data:      the 367 + 101 images of the SegNet tutorial as a COCO-panoptic folder, made by `prepare semantic` or
           `prepare palette` with car, pedestrian and bicyclist as things (connected components).
Model:     every class has its own region channel, so that mIoU is over the 11 classes.
Scale:     images are enlarged by 4/3 when scored (poles and signs are thinner than a position of stride 4), and to
           between 1 and 5/3 in training, of which windows of 320x416 are cut.
Result:    docs/fine-tuning.md
"""

from configs import own_data


def get_config():
    config = own_data.from_imagenet()
    config.name = "camvid"

    config.model.region_classes = "all"
    config.targets.max_positives = 96
    config.inference.candidates = 50
    config.inference.min_stuff_area = 256

    data = config.data
    data.root = "data/camvid"
    data.short_sides, data.max_long_side = (360, 400, 440, 480, 520, 560, 600), 2400
    data.crop, data.canvases = (320, 416), ((320, 416),)
    data.eval_short_side, data.eval_max_long_side, data.eval_canvases = 480, 640, ((480, 640),)
    data.max_segments = 128

    config.train.steps = 2200
    return config
