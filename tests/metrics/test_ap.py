"""AP: encoding against pixels, scores against a slow implementation, edge cases, travel between hosts."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval

from pfcn_jax.metrics import ap, transport


def random_image(rng, num_things=3, size=(40, 50)):
    """Rectangles as labels (the last rows are stuff), shifted rectangles as predictions."""
    gt_map = np.zeros(size, np.int32)
    boxes, gt_classes = [], rng.integers(0, num_things + 1, 6)
    for i in range(6):
        y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        h, w = rng.integers(3, 20, 2)
        gt_map[y : y + h, x : x + w] = i + 1
        boxes.append((y, x, h, w))
    masks, classes = np.zeros((9, *size), bool), rng.integers(0, num_things, 9)
    for k in range(9):
        y, x, h, w = boxes[k % 6]
        dy, dx = rng.integers(-2, 3, 2)
        masks[k, max(y + dy, 0) : y + dy + h, max(x + dx, 0) : x + dx + w] = True
        if rng.random() < 0.7 and gt_classes[k % 6] < num_things:
            classes[k] = gt_classes[k % 6]
    return gt_map, gt_classes, masks, classes, rng.permutation(90)[:9] / 90 + rng.random() * 1e-3


def slow_ap(images, num_things, thresholds):
    """COCO's AP of images without crowds, one class, one threshold, one prediction at a time."""
    per_class = []
    for c in range(num_things):
        total = sum(int((gt_map == i + 1).any()) for gt_map, g, *_ in images for i in np.flatnonzero(g == c))
        if not total:
            continue
        for threshold in thresholds:
            ranked = []
            for gt_map, gt_classes, masks, classes, scores in images:
                truth = [gt_map == i + 1 for i in np.flatnonzero(gt_classes == c)]
                truth = [t for t in truth if t.any()]
                taken = set()
                for k in sorted(np.flatnonzero(classes == c), key=lambda k, s=scores: -s[k]):
                    ious = [
                        (masks[k] & t).sum() / (masks[k] | t).sum() if j not in taken else -1
                        for j, t in enumerate(truth)
                    ]
                    best = max(range(len(ious)), key=lambda j, v=ious: (v[j], j), default=-1)  # the last of equals
                    hit = best >= 0 and ious[best] >= threshold
                    if hit:
                        taken.add(best)
                    ranked.append((scores[k], hit))
            hits = np.cumsum([hit for _, hit in sorted(ranked, key=lambda r: -r[0])])
            recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
            points = [max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]
            per_class.append(np.mean(points))
    return 100 * np.mean(per_class)


def filled(images, num_things=3, first=0):
    records = ap.InstanceRecords(num_things)
    for i, (gt_map, gt_classes, masks, classes, scores) in enumerate(images):
        records.add(first + i, gt_map, gt_classes, np.zeros(len(gt_classes), bool), masks, classes, scores)
    return records


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(3)
    return [random_image(rng) for _ in range(6)]


def test_encodings_are_the_pixels():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 7), (9, 1), (12, 17)):
        segment_map = rng.integers(0, 4, shape).astype(np.uint8)
        masks = np.stack([segment_map == i + 1 for i in range(5)])  # the last two have no pixel
        expected = [mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        assert ap.encode_segments(segment_map, 5) == expected
        assert ap.encode_masks(masks) == expected
        assert ap.encode_masks(masks[:, ::-1, ::-1][:, ::-1, ::-1]) == expected  # strides do not matter
    assert ap.encode_masks(np.zeros((0, 3, 4), bool)) == []


def test_equals_the_slow_implementation(images, capsys):
    result = ap.ap_result(filled(images))
    np.testing.assert_allclose(result.AP, slow_ap(images, 3, np.linspace(0.5, 0.95, 10)), rtol=1e-12)
    np.testing.assert_allclose(result.AP50, slow_ap(images, 3, [0.5]), rtol=1e-12)
    np.testing.assert_allclose(result.AP75, slow_ap(images, 3, [0.75]), rtol=1e-12)
    np.testing.assert_allclose(result.AP, result.per_class.mean(), rtol=1e-12)
    assert 5 < result.AP < 95 and result.N == 3
    assert result.AP_small == result.AP and np.isnan(result.AP_medium) and np.isnan(result.AP_large)
    assert capsys.readouterr() == ("", "")


class Annotations:
    """What pycocotools asks of its `COCO`, for a whole set of images at once."""

    def __init__(self, rows):
        self.rows = [row | {"id": i + 1} for i, row in enumerate(rows)]

    def getImgIds(self):
        return [row["image_id"] for row in self.rows]

    def getCatIds(self):
        return [0, 1, 2]

    def getAnnIds(self, **_):
        return list(range(len(self.rows)))

    def loadAnns(self, ids):
        return [self.rows[i] for i in ids]

    def annToRLE(self, row):
        return row["segmentation"]


@pytest.mark.parametrize("limit", [100, 2])
def test_image_by_image_is_the_same_as_pycocotools_at_once(limit, capsys):
    rng = np.random.default_rng(11)
    records, labeled, predicted = ap.InstanceRecords(3, max_detections=limit), [], []
    for image in rng.permutation(25).tolist():  # in any order
        gt_map, gt_classes, masks, classes, scores = random_image(rng)
        enlarge = 1 + 3 * (image % 2)  # small and medium areas
        gt_map = gt_map.repeat(enlarge, 0).repeat(enlarge, 1)
        masks = masks.repeat(enlarge, 1).repeat(enlarge, 2)
        masks = masks.repeat(1 + 2 * (image % 3 == 0), axis=0)[: len(classes)]
        scores = np.round(scores, 1)  # many ties, within and between images
        crowd = rng.random(6) < 0.2
        records.add(image, gt_map, gt_classes, crowd, masks, classes, scores)
        for rle, c, k in zip(ap.encode_segments(gt_map, 6), gt_classes.tolist(), crowd.tolist()):
            if c < 3 and mask_utils.area(rle):
                area = float(mask_utils.area(rle))
                labeled.append(
                    {"image_id": image, "category_id": c, "segmentation": rle, "area": area, "iscrowd": int(k)}
                )
        for rle, c, score in zip(ap.encode_masks(masks), classes.tolist(), scores.tolist()):
            area = float(mask_utils.area(rle))
            predicted.append({"image_id": image, "category_id": c, "segmentation": rle, "area": area, "score": score})
    judge = COCOeval(Annotations(labeled), Annotations(predicted), "segm")
    judge.params.imgIds, judge.params.maxDets = list(range(25)), [limit]
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][..., 0]

    def mean(values):
        return 100.0 * values[values > -1].mean()

    result = ap.ap_result(records)
    assert 5 < result.AP < 95 and len(set(records.detections["score"].tolist())) < len(records.detections)
    expected = [mean(precision[..., 0]), mean(precision[5, ..., 0])]
    expected += [mean(precision[..., area]) for area in (1, 2)]
    ours = [result.AP, result.AP75, result.AP_small, result.AP_medium]
    np.testing.assert_allclose(ours, expected, rtol=1e-14)
    np.testing.assert_allclose(result.per_class, [mean(precision[:, :, c, 0]) for c in range(3)], rtol=1e-14)
    capsys.readouterr()


def test_a_detection_is_32_bytes_however_large_its_mask(images):
    assert ap.DETECTION.itemsize == 32
    records = filled(images)
    assert len(records.detections) == sum(len(classes) for _, _, _, classes, _ in images)
    held = sum(array.nbytes for array in records.to_arrays().values())
    assert held == 32 * len(records.detections) + 8 * (2 + len(images) + records.labeled.size)


def test_packed_masks_are_encoded_as_they_are():
    masks = np.random.default_rng(2).random((4, 7, 21)) < 0.5
    assert ap.encode_packed_masks(np.packbits(masks, axis=-1), 21) == ap.encode_masks(masks)
    assert ap.encode_packed_masks(np.zeros((0, 7, 3), np.uint8), 21) == []


def test_perfect_predictions(images):
    records = ap.InstanceRecords(4)
    for i, (gt_map, gt_classes, *_) in enumerate(images):
        rows = [r for r in range(6) if (gt_map == r + 1).any() and gt_classes[r] < 3]
        masks = np.stack([gt_map == r + 1 for r in rows])
        records.add(i, gt_map, gt_classes + (gt_classes == 3), [False] * 6, masks, gt_classes[rows], np.ones(len(rows)))
    result = ap.ap_result(records)
    assert result.N == 3
    np.testing.assert_allclose([result.AP, result.AP50, result.AP75], 100, rtol=1e-12)
    np.testing.assert_allclose(result.per_class, [100, 100, 100, np.nan], rtol=1e-12)


def test_predictions_on_a_crowd_are_excused():
    gt_map = np.zeros((20, 20), int)
    gt_map[:, 10:], gt_map[:5, :5] = 1, 2
    on_crowd, hit, miss = (np.zeros((20, 20), bool) for _ in range(3))
    on_crowd[:9, 11:], hit[:5, :5], miss[15:, :5] = True, True, True
    for masks, scores, expected in (([on_crowd, hit], [0.9, 0.8], 100.0), ([miss, hit], [0.9, 0.8], 50.0)):
        records = ap.InstanceRecords(1)
        records.add(0, gt_map, [0, 0], [True, False], np.stack(masks), [0, 0], scores)
        np.testing.assert_allclose(ap.ap_result(records).AP, expected, rtol=1e-12)


def test_area_ranges():
    gt_map = np.zeros((200, 200), int)
    gt_map[:10, :10], gt_map[20:70, :50], gt_map[80:190, :110] = 1, 2, 3
    records = ap.InstanceRecords(1)
    records.add(0, gt_map, [0] * 3, [False] * 3, np.stack([gt_map == 1, gt_map == 3]), [0, 0], [0.5, 0.6])
    result = ap.ap_result(records)
    np.testing.assert_allclose([result.AP_small, result.AP_medium, result.AP_large], [100, 0, 100], rtol=1e-12)


def test_only_so_many_detections_count(images):
    gt_map = np.zeros((4, 30), int)
    gt_map[:, ::3] = np.arange(1, 11)
    masks = np.stack([gt_map == i + 1 for i in range(10)])
    for limit, expected in ((100, 100), (4, 100 * 41 / 101)):
        records = ap.InstanceRecords(1, max_detections=limit)
        records.add(0, gt_map, [0] * 10, [False] * 10, masks, [0] * 10, np.ones(10))
        np.testing.assert_allclose(ap.ap_result(records).AP, expected, rtol=1e-12)
        assert len(records.detections) == min(limit, 10)


def test_no_predictions_no_labels_no_images():
    nothing = ap.ap_result(ap.InstanceRecords(2))
    assert np.isnan(nothing.AP) and nothing.N == 0
    no_masks = np.zeros((0, 4, 4), bool)
    for gt_map, crowd, expected in ((np.ones((4, 4), int), False, 0.0), (np.ones((4, 4), int), True, np.nan)):
        records = ap.InstanceRecords(2)
        records.add(5, gt_map, [1], [crowd], no_masks, [], [])
        result = ap.ap_result(records)
        np.testing.assert_array_equal(result.AP, expected)
        np.testing.assert_array_equal(result.per_class, [np.nan, expected])
    records = ap.InstanceRecords(2)
    records.add(5, np.zeros((4, 4), int), [], [], np.ones((1, 4, 4), bool), [0], [0.5])
    assert np.isnan(ap.ap_result(records).AP)
    records = ap.InstanceRecords(2)
    records.add(5, np.ones((4, 4), int), [0], [False], np.zeros((1, 4, 4), bool), [0], [0.5])  # an empty mask
    assert ap.ap_result(records).AP == 0.0


def test_records_of_several_hosts_give_the_same_result(images):
    whole = ap.ap_result(filled(images))
    parts = [filled(images[4:], first=4), filled(images[:1]), filled(images[1:4], first=1), ap.InstanceRecords(3)]
    travelled = [ap.InstanceRecords.from_arrays(transport.unpack(transport.pack(part.to_arrays()))) for part in parts]
    together = travelled[0] + travelled[1] + travelled[2] + travelled[3]
    result = ap.ap_result(together)
    assert result.to_dict() | {"AP_medium": 0, "AP_large": 0} == whole.to_dict() | {"AP_medium": 0, "AP_large": 0}
    np.testing.assert_array_equal(result.per_class, whole.per_class)
    for name, array in together.to_arrays().items():
        again = ap.InstanceRecords.from_arrays(together.to_arrays()).to_arrays()[name]
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)
    with pytest.raises(ValueError, match="image 4 is in both"):
        _ = parts[0] + parts[0]
    with pytest.raises(ValueError, match="3 and of 2 things"):
        _ = parts[0] + ap.InstanceRecords(2)
    with pytest.raises(ValueError, match="100 and 50 detections"):
        _ = parts[0] + ap.InstanceRecords(3, max_detections=50)


@pytest.mark.parametrize("change, message", [
    ({"image_id": 0}, "image 0 was added before"),
    ({"gt_crowd": []}, "1 labeled classes, but 0 crowd flags"),
    ({"pred_classes": []}, "1 masks, 0 classes, 1 scores predicted"),
    ({"gt_map": np.full((4, 4), 2)}, "ids 2..2, but 1 segments"),
    ({"gt_classes": [-1]}, "labeled segment has class -1"),
    ({"pred_classes": [2]}, "predicted class 2 is not one of 2 things"),
    ({"pred_scores": [np.nan]}, "score is not finite"),
    ({"pred_masks": np.ones((1, 4, 5), bool)}, r"mask of size \[4, 5\], but the labels have \[4, 4\]"),
    ({"pred_masks": np.ones((1, 4, 4))}, "masks must be bool"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_refused(change, message):
    records = ap.InstanceRecords(2)
    image = {"image_id": 1, "gt_map": np.ones((4, 4), int), "gt_classes": [0], "gt_crowd": [False]}
    image |= {"pred_masks": np.ones((1, 4, 4), bool), "pred_classes": [0], "pred_scores": [0.5]}
    records.add(**(image | {"image_id": 0}))
    with pytest.raises(ValueError, match=message):
        records.add(**(image | change))
    assert records.images == {0}


def test_counts_travel_in_64_bits():
    arrays = {"a": np.array([1 << 60, -1]), "b": np.array(0.1), "c": np.zeros((0, 3), np.uint8)}
    again = transport.unpack(transport.pack(arrays))
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].shape == array.shape
        np.testing.assert_array_equal(again[name], array)
