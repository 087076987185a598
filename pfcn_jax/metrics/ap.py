"""Average precision of instance masks, computed by pycocotools.

Each image is matched as soon as it is added; then its masks are dropped, and a detection is 32 bytes: class, score, and
a bit for each IoU threshold and area range that tells if it was right. So a validation set of any size fits in memory.

The labeled masks come from the id map of a panoptic image. Its instances do not overlap, unlike COCO's polygons, so the
figures lie close to, but are not, those of COCO's instance annotations.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval

from pfcn_jax.metrics.protocol import Labels, Metric, Output, PredictedImage, Summary, Task
from pfcn_jax.metrics.registry import register

RLE = Mapping[str, Any]  # pycocotools' {"size": [height, width], "counts": bytes}

# A stored detection. Bit `area range x number of thresholds + threshold` of `right`: it matched a labeled
# instance; of `ignored`: it does not count there (matched what is ignored, or is itself outside the area range).
DETECTION = np.dtype(
    [("image", "<i4"), ("class", "<i4"), ("score", "<f8"), ("right", "<u8"), ("ignored", "<u8")], align=False
)


def encode_masks(masks: Bool[np.ndarray, "N H W"]) -> list[RLE]:
    """Run-length encoding of each mask."""
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ValueError(f"masks must be bool [N, H, W], got {masks.dtype} {list(masks.shape)}")
    # pycocotools counts down the columns; transposing with OpenCV is several times faster than with NumPy.
    return [mask_utils.encode(cv2.transpose(mask.view(np.uint8)).T) for mask in masks]


def encode_packed_masks(packed: UInt8[np.ndarray, "N H W8"], width: int) -> list[RLE]:
    """Run-length encoding of masks whose rows are packed, eight pixels a byte; one at a time is unpacked."""
    return [encode_masks(np.unpackbits(mask[None], axis=-1, count=width).view(bool))[0] for mask in packed]


def encode_segments(segment_map: Integer[np.ndarray, "H W"], num_segments: int) -> list[RLE]:
    """Run-length encoding of the segments 1..num_segments of an id map, all of them in one pass over the map."""
    height, width = segment_map.shape
    flat = cv2.transpose(np.ascontiguousarray(segment_map, dtype=np.int32)).reshape(-1)
    start = np.concatenate([[0], 1 + np.flatnonzero(flat[1:] != flat[:-1])])
    end = np.append(start[1:], flat.size)
    by_value = np.argsort(flat[start], kind="stable")
    bounds = np.searchsorted(flat[start][by_value], np.arange(1, num_segments + 2))
    encoded = []
    for low, high in itertools.pairwise(bounds):
        runs = by_value[low:high]
        edges = np.stack([start[runs], end[runs]], axis=1).reshape(-1)
        counts = np.diff(edges, prepend=0, append=flat.size)
        counts = counts[:-1] if counts[-1] == 0 else counts  # as pycocotools itself writes it
        encoded.append(mask_utils.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width))
    return encoded


class InstanceRecords:
    """Matched detections and label counts of any number of images. Class ids are 0..num_things - 1.

    Attributes:
      images: ids of the images that were added.
      labeled: how many labeled instances there are to be found, by class and area range.
    """

    def __init__(self, num_things: int, *, max_detections: int = 100):
        """No image yet; the best `max_detections` predictions of a class in an image count (COCO says 100)."""
        self.num_things, self.max_detections = num_things, max_detections
        self.images: set[int] = set()
        self.labeled: Int[np.ndarray, "T A"] = np.zeros((num_things, len(_judge(max_detections).params.areaRng)), int)
        self._detections = bytearray()  # of DETECTION; grows without copying all of it each time

    @property
    def detections(self) -> Shaped[np.ndarray, " n"]:
        """All detections so far: a copy, rows of DETECTION."""
        return np.frombuffer(bytes(self._detections), DETECTION)

    def add(
        self,
        image_id: int,
        gt_map: Integer[np.ndarray, "H W"],
        gt_classes: Integer[np.ndarray, " G"] | Sequence[int],
        gt_crowd: Bool[np.ndarray, " G"] | Sequence[bool],
        pred_masks: Bool[np.ndarray, "N H W"] | Sequence[RLE],
        pred_classes: Integer[np.ndarray, " N"] | Sequence[int],
        pred_scores: Float[np.ndarray, " N"] | Sequence[float],
    ) -> None:
        """Matches the detections of one image.

        Args:
          image_id: an integer of its own for every image.
          gt_map: 0 is void, i > 0 is row i - 1; rows whose class is not a thing are left out, and rows without pixels.
          pred_masks: may overlap; dense, or encoded already.

        Raises:
          ValueError: the image was added before, lengths or sizes that differ, a class that is no thing, a score that
            is not finite, ids beyond the rows.
        """
        gt_map, gt_classes, gt_crowd = np.asarray(gt_map), np.asarray(gt_classes, np.int64), np.asarray(gt_crowd, bool)
        pred_classes, pred_scores = np.asarray(pred_classes, np.int64), np.asarray(pred_scores, np.float64)
        masks: Sequence[RLE] = encode_masks(pred_masks) if isinstance(pred_masks, np.ndarray) else pred_masks
        self._check(image_id, gt_map, gt_classes, gt_crowd, masks, pred_classes, pred_scores)
        labeled, predicted = collections.defaultdict(list), collections.defaultdict(list)
        for rle, class_id, crowd in zip(encode_segments(gt_map, len(gt_classes)), gt_classes.tolist(), gt_crowd):
            if class_id < self.num_things and mask_utils.area(rle) > 0:
                labeled[class_id].append(_annotation(rle) | {"iscrowd": int(crowd), "ignore": int(crowd)})
        for rle, class_id, score in zip(masks, pred_classes.tolist(), pred_scores.tolist()):
            predicted[class_id].append(_annotation(rle) | {"score": score})
        judged = {
            class_id: judge_class(labeled[class_id], predicted[class_id], self.max_detections)
            for class_id in sorted(labeled.keys() | predicted.keys())
        }
        self.images.add(int(image_id))
        for class_id, (count, rows) in judged.items():
            self.labeled[class_id] += count
            rows["image"], rows["class"] = image_id, class_id
            self._detections += rows.tobytes()

    def _check(self, image_id, gt_map, gt_classes, gt_crowd, masks, pred_classes, pred_scores) -> None:
        here = f"image {image_id}"
        if int(image_id) in self.images:
            raise ValueError(f"{here} was added before")
        if len(gt_classes) != len(gt_crowd):
            raise ValueError(f"{here}: {len(gt_classes)} labeled classes, but {len(gt_crowd)} crowd flags")
        if not len(masks) == len(pred_classes) == len(pred_scores):
            lengths = f"{len(masks)} masks, {len(pred_classes)} classes, {len(pred_scores)} scores"
            raise ValueError(f"{here}: {lengths} predicted")
        if gt_map.size and not 0 <= int(gt_map.min()) <= int(gt_map.max()) <= len(gt_classes):
            raise ValueError(f"{here}: ids {int(gt_map.min())}..{int(gt_map.max())}, but {len(gt_classes)} segments")
        if len(gt_classes) and int(gt_classes.min()) < 0:
            raise ValueError(f"{here}: a labeled segment has class {int(gt_classes.min())}")
        outside = pred_classes[(pred_classes < 0) | (pred_classes >= self.num_things)]
        if outside.size:
            raise ValueError(f"{here}: predicted class {int(outside[0])} is not one of {self.num_things} things")
        if not np.isfinite(pred_scores).all():
            raise ValueError(f"{here}: a predicted score is not finite")
        for rle in masks:
            if tuple(rle["size"]) != gt_map.shape:
                raise ValueError(
                    f"{here}: a mask of size {list(rle['size'])}, but the labels have {list(gt_map.shape)}"
                )

    def __add__(self, other: InstanceRecords) -> InstanceRecords:
        if self.num_things != other.num_things:
            raise ValueError(f"records of {self.num_things} and of {other.num_things} things cannot be added")
        if self.max_detections != other.max_detections:
            raise ValueError(f"records of {self.max_detections} and {other.max_detections} detections cannot be added")
        if both := self.images & other.images:
            raise ValueError(f"image {min(both)} is in both records")
        total = InstanceRecords(self.num_things, max_detections=self.max_detections)
        total.images, total.labeled = self.images | other.images, self.labeled + other.labeled
        total._detections = self._detections + other._detections
        return total

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The records as flat arrays (of lengths that differ from host to host)."""
        return {
            "num_things": np.array(self.num_things, np.int64),
            "max_detections": np.array(self.max_detections, np.int64),
            "image_id": np.array(sorted(self.images), np.int64),
            "labeled": self.labeled,
            "detections": self.detections,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> InstanceRecords:
        records = cls(int(arrays["num_things"]), max_detections=int(arrays["max_detections"]))
        records.images = set(arrays["image_id"].tolist())
        records.labeled = np.asarray(arrays["labeled"], np.int64)
        records._detections = bytearray(np.asarray(arrays["detections"], DETECTION).tobytes())
        return records


def _judge(max_detections: int) -> COCOeval:
    """pycocotools' rules (IoU thresholds .50:.05:.95; all, small, medium, large areas) for image 0 and class 0."""
    judge = COCOeval(iouType="segm")
    judge.params.imgIds, judge.params.catIds, judge.params.maxDets = [0], [0], [max_detections]
    return judge


def _annotation(rle: RLE) -> dict[str, Any]:
    return {"segmentation": rle, "area": float(mask_utils.area(rle))}


def judge_class(
    labeled: list[dict[str, Any]], predicted: list[dict[str, Any]], max_detections: int
) -> tuple[Int[np.ndarray, " A"], Shaped[np.ndarray, " n"]]:
    """Matches the predictions of one class in one image, the best first, to its labeled instances.

    Returns:
      The labeled instances to be found in each area range, and a row of DETECTION for each prediction that counts
      (without image and class).
    """
    judge = _judge(max_detections)
    for side in (labeled, predicted):
        for number, annotation in enumerate(side, start=1):  # the judge takes an id of 0 for "matched to nothing"
            annotation["id"] = number
    judge._gts, judge._dts = {(0, 0): labeled}, {(0, 0): predicted}
    judge.ious = {(0, 0): judge.computeIoU(0, 0)}
    ranges = judge.params.areaRng
    count, rows = np.zeros(len(ranges), np.int64), np.zeros(min(len(predicted), max_detections), DETECTION)
    for number, area_range in enumerate(ranges):
        found = judge.evaluateImg(0, 0, area_range, max_detections)
        count[number] = np.count_nonzero(found["gtIgnore"] == 0)
        rows["score"] = found["dtScores"]
        for name, flags in (("right", found["dtMatches"] != 0), ("ignored", found["dtIgnore"])):
            bits = np.arange(len(flags), dtype=np.uint64) + np.uint64(number * len(flags))
            rows[name] |= (flags.astype(np.uint64) << bits[:, None]).sum(axis=0, dtype=np.uint64)
    return count, rows


@dataclasses.dataclass(frozen=True)
class APResult:
    """In percent, NaN where no labeled instance makes it defined; N classes have a labeled instance."""

    AP: float
    AP50: float
    AP75: float
    AP_small: float  # labeled area below 32 x 32 pixels
    AP_medium: float
    AP_large: float  # above 96 x 96
    N: int
    per_class: Float[np.ndarray, " T"]

    def to_dict(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "per_class"}


def ap_result(records: InstanceRecords) -> APResult:
    """COCO's AP: mean over IoU thresholds .50:.05:.95 of the 101-point interpolated precision, mean over classes."""
    if not records.labeled.any():
        nan = float("nan")
        return APResult(nan, nan, nan, nan, nan, nan, 0, np.full(records.num_things, nan))
    # In the order of the images, as in pycocotools (its sort by score is stable), whatever the hosts and batches.
    detections = records.detections
    detections = detections[np.argsort(detections["image"], kind="stable")]
    precision = np.stack(
        [
            _precision(detections[detections["class"] == class_id], records.labeled[class_id])
            for class_id in range(records.num_things)
        ]
    )  # [classes, 10 IoUs, 101 recalls, area ranges], -1: undefined
    areas = {name: i for i, name in enumerate(_judge(1).params.areaRngLbl)}

    def mean(values: np.ndarray) -> float:
        defined = values[values > -1]
        return 100.0 * float(defined.mean()) if defined.size else float("nan")

    everything = precision[..., areas["all"]]
    per_class = np.array([mean(everything[c]) for c in range(records.num_things)])
    return APResult(
        AP=mean(everything),
        AP50=mean(everything[:, 0]),
        AP75=mean(everything[:, 5]),
        AP_small=mean(precision[..., areas["small"]]),
        AP_medium=mean(precision[..., areas["medium"]]),
        AP_large=mean(precision[..., areas["large"]]),
        N=int(np.isfinite(per_class).sum()),
        per_class=per_class,
    )


def _precision(
    detections: Shaped[np.ndarray, " n"], labeled: Int[np.ndarray, " A"]
) -> Float[np.ndarray, "thresholds recalls A"]:
    """Interpolated precision of one class: to the judge, all its detections are one image."""
    judge = _judge(max(len(detections), 1))
    thresholds = len(judge.params.iouThrs)
    judge.evalImgs = []
    for number, count in enumerate(labeled.tolist()):
        bits = np.arange(thresholds, dtype=np.uint64) + np.uint64(number * thresholds)
        flags = {name: (detections[name] >> bits[:, None] & np.uint64(1)).astype(bool) for name in ("right", "ignored")}
        found = {"dtScores": detections["score"], "dtMatches": flags["right"], "dtIgnore": flags["ignored"]}
        judge.evalImgs.append(found | {"gtIgnore": np.zeros(count, np.int8)})
    judge._paramsEval = judge.params
    with contextlib.redirect_stdout(io.StringIO()):
        judge.accumulate()
    return judge.eval["precision"][:, :, 0, :, 0]


@register("ap")
@dataclasses.dataclass
class AveragePrecision(Metric):
    """COCO's AP of instance masks over a data set."""

    records: InstanceRecords
    needs: ClassVar[tuple[Output, ...]] = ("thing_masks",)

    @classmethod
    def zeros(cls, task: Task) -> Self:
        return cls(task, InstanceRecords(task.num_things))

    def add(self, labels: Labels, prediction: PredictedImage) -> None:
        masks, classes, scores = prediction.thing_masks, prediction.thing_class_id, prediction.thing_score
        assert masks is not None and classes is not None and scores is not None
        self.records.add(
            labels.image_id,
            labels.segment_map,
            labels.class_id,
            labels.is_crowd,
            encode_packed_masks(masks, labels.segment_map.shape[1]),
            classes,
            scores,
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(self.task, self.records + other.records)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return self.records.to_arrays()

    @classmethod
    def from_arrays(cls, task: Task, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(task, InstanceRecords.from_arrays(arrays))

    def summary(self) -> Summary:
        values = ap_result(self.records).to_dict()
        line = "AP: " + json.dumps({key: round(value, 2) for key, value in values.items()})
        return Summary({"AP": values}, {"AP": values["AP"], "AP50": values["AP50"]}, (line,))
