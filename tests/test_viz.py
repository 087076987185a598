"""Drawings: colors, labels that fit and do not collide, heat maps, panels."""

from __future__ import annotations

import itertools
import json

import jinja2
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import viz
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.decode import decode_ids
from pfcn_jax.viz import labels, panoptic

CLASSES = ClassTable(
    names=("cat", "dog", "sky"),
    category_ids=(1, 2, 3),
    is_thing=(True, True, False),
    colors=((200, 30, 40), (20, 200, 60), (90, 120, 250)),
)
COLORS = CLASSES.palette


def things(*names: str) -> ClassTable:
    return ClassTable(names, tuple(range(1, len(names) + 1)), (True,) * len(names))


def scene(height=120, width=160):
    """Two cats, a dog, sky; some void."""
    segment_map = np.zeros((height, width), np.int32)
    segment_map[: height // 2] = 4
    segment_map[20:100, 10:70], segment_map[50:110, 90:150], segment_map[5:12, 100:110] = 1, 2, 3
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, segment_map, [0, 0, 1, 2]


def test_fill_is_a_blend_and_void_stays():
    image, segment_map, class_ids = scene()
    drawn = viz.overlay(image, segment_map, CLASSES, class_ids, style=viz.OverlayStyle(alpha=0.4, labels=False))
    shades = viz.segment_colors(class_ids, COLORS)
    assert drawn.dtype == np.uint8 and drawn.shape == image.shape
    for y, x in ((30, 30), (80, 100), (8, 105), (2, 2), (119, 0)):
        row = segment_map[y, x]
        alpha = {0: 0.0, 4: 0.34}.get(int(row), 0.4)
        shade = shades[row - 1].astype(float) if row else np.zeros(3)
        np.testing.assert_allclose(drawn[y, x], (1 - alpha) * image[y, x] + alpha * shade, atol=0.51)
    assert not segment_map[113:].any()  # away from every outline
    np.testing.assert_array_equal(drawn[113:], image[113:])


def test_first_of_a_class_has_its_color_and_the_others_shades_of_their_own():
    shades = viz.segment_colors([1, 0, 0, 2, 0], COLORS)
    np.testing.assert_array_equal(shades[[0, 1, 3]], COLORS[[1, 0, 2]])
    many = viz.segment_colors([0] * 40, COLORS)
    assert len(np.unique(many, axis=0)) == 40
    assert viz.segment_colors([], COLORS).shape == (0, 3)
    neighbors = viz.segment_colors([0] * 4, COLORS).astype(int)
    for a, b in itertools.combinations(neighbors, 2):
        assert np.abs(a - b).max() > 25  # to be told apart


def test_a_numbered_segment_has_its_color_whatever_is_beside_it():
    shades = viz.segment_colors([1, 0, 0, 2], COLORS, [4, 9, 11, 0])
    np.testing.assert_array_equal(shades[2], viz.segment_colors([0], COLORS, [11])[0])
    np.testing.assert_array_equal(shades[3], COLORS[2])
    assert len(np.unique(viz.segment_colors([0] * 30, COLORS, range(1, 31)), axis=0)) == 30


def test_outlines_touch_borders_only():
    image, segment_map, class_ids = scene()
    lined = viz.overlay(image, segment_map, CLASSES, class_ids, style=viz.OverlayStyle(labels=False))
    opacity = np.where(np.array(CLASSES.is_thing)[class_ids], 0.5, 0.425)
    plain = panoptic._fill(image, segment_map, viz.segment_colors(class_ids, COLORS), opacity)
    changed = (plain != lined).any(axis=-1)
    assert changed[20, 15:65].all() and changed[25:95, 10].all()  # the first cat's border
    assert not changed[25:95, 15:65].any() and not changed[62:110, 152:].any()


def placed_labels(segment_map, texts, thing):
    return panoptic._place_labels(segment_map, texts, np.array(thing), panoptic._boxes(segment_map, len(texts)))


def random_map(seed):
    """Blobs of all sizes: cells of a random point set, some of them void."""
    rng = np.random.default_rng(seed)
    height, width, count = int(rng.integers(60, 240)), int(rng.integers(60, 240)), int(rng.integers(1, 30))
    points = rng.uniform(0, 1, (count, 2)) * (height, width)
    y, x = np.mgrid[:height, :width]
    distance = (y[None] - points[:, 0, None, None]) ** 2 + (x[None] - points[:, 1, None, None]) ** 2
    nearest = np.argmin(distance, axis=0)
    return np.where(distance.min(axis=0) < rng.uniform(5, 60) ** 2, nearest + 1, 0).astype(np.int32), count


def test_labels_lie_in_the_image_and_never_collide():
    number = 0
    for seed in range(30):
        segment_map, count = random_map(seed)
        thing = np.random.default_rng(seed).random(count) < 0.6
        found = placed_labels(segment_map, [f"thing {i}" for i in range(count)], thing)
        taken = np.zeros(segment_map.shape, int)
        for label in found.values():
            assert 0 <= label.x0 < label.x1 <= segment_map.shape[1]
            assert 0 <= label.y0 < label.y1 <= segment_map.shape[0]
            assert (label.y1 - label.y0, label.x1 - label.x0) == labels.label_size(label.text, label.font_size)
            taken[label.y0 : label.y1, label.x0 : label.x1] += 1
        assert taken.max(initial=0) <= 1
        number += len(found)
    assert number > 100


def test_a_label_placed_inside_lies_inside():
    number = 0
    for seed in range(40):
        segment_map, count = random_map(seed)
        for row in range(1, count + 1):
            segment = segment_map == row
            label = labels.place_inside(segment, "cat 0.87", largest=14, smallest=6, free=np.ones_like(segment))
            if label is not None:
                box = segment[label.y0 : label.y1, label.x0 : label.x1]
                # One pixel of rounding at the rim is allowed, no more.
                assert box[1:-1, 3:-3].all(), (seed, row)
                number += 1
    assert number > 60


def test_label_grows_with_its_segment_and_seeks_its_middle():
    segment = np.zeros((200, 400), bool)
    segment[90:110, 190:260] = True
    everywhere = np.ones_like(segment)
    small = labels.place_inside(segment, "cat", largest=40, smallest=5, free=everywhere)
    segment[40:160, 100:320] = True
    large = labels.place_inside(segment, "cat", largest=40, smallest=5, free=everywhere)
    assert 8 <= small.font_size <= 14 and large.font_size == 40
    assert abs((large.y0 + large.y1) / 2 - 100) <= 3 and abs((large.x0 + large.x1) / 2 - 210) <= 8
    segment[:] = False
    segment[50:54, 50:54] = True
    assert labels.place_inside(segment, "cat", largest=40, smallest=5, free=everywhere) is None


def test_label_moves_when_its_place_is_taken_and_goes_when_all_are():
    segment = np.ones((60, 200), bool)
    free = segment.copy()
    first = labels.place_inside(segment, "cat", largest=12, smallest=12, free=free)
    free[first.y0 : first.y1, first.x0 : first.x1] = False
    second = labels.place_inside(segment, "cat", largest=12, smallest=12, free=free)
    assert free[second.y0 : second.y1, second.x0 : second.x1].all()
    assert labels.place_inside(segment, "cat", largest=12, smallest=12, free=np.zeros_like(segment)) is None


def test_small_segments_are_named_beside_but_not_over_other_things():
    free, others = np.ones((100, 100), bool), np.zeros((100, 100), bool)
    box = (50, 50, 54, 54)
    above = labels.place_beside(box, "cat", font_size=10, free=free, others=others)
    assert above.y1 <= 50 and above.x0 < 52 < above.x1
    others[:50] = True
    below = labels.place_beside(box, "cat", font_size=10, free=free, others=others)
    assert below.y0 >= 54
    at_the_top = labels.place_beside((0, 50, 4, 54), "cat", font_size=10, free=free, others=others)
    assert at_the_top is None  # above is outside, below and beside are things
    assert labels.place_beside(box, "cat" * 30, font_size=10, free=free, others=others) is None


def test_names_change_the_image_only_under_their_plates():
    image, segment_map, class_ids = scene()
    arguments = (image, segment_map, CLASSES, class_ids, [0.9, 0.5, float("nan"), float("nan")])
    plain = viz.overlay(*arguments, style=viz.OverlayStyle(labels=False))
    named = viz.overlay(*arguments)
    found = placed_labels(segment_map, ["cat 0.90", "cat 0.50", "dog", "sky"], [True, True, True, False])
    assert [found[row].text for row in sorted(found)] == ["cat 0.90", "cat 0.50", "dog", "sky"]
    under = np.zeros(segment_map.shape, bool)
    for label in found.values():
        under[label.y0 : label.y1, label.x0 : label.x1] = True
        plate = named[label.y0 : label.y1, label.x0 : label.x1].astype(int)
        assert plate.max() > 180 and plate.mean() < 130  # light text on a dark plate
    changed = (plain != named).any(axis=-1)
    assert not changed[~under].any() and changed[under].mean() > 0.9


def test_odd_images_are_drawn():
    for shape, names in (((1, 1), ("a",)), ((3, 200), ("a\nb",)), ((200, 2), ("",)), ((20, 20), ("long " * 40,))):
        image = np.full((*shape, 3), 7, np.uint8)
        drawn = viz.overlay(image, np.ones(shape, np.uint8), things(*names), [0], [0.5])
        assert drawn.shape == image.shape
        assert (drawn != image).any()
    empty = viz.overlay(image, np.zeros(shape, np.int64), CLASSES, [], [])
    np.testing.assert_array_equal(empty, image)
    crowded = np.arange(1, 401, dtype=np.int32).reshape(20, 20)
    assert viz.overlay(image, crowded, things("a"), [0] * 400).shape == image.shape


def test_scale_magnifies_the_drawing():
    image, segment_map, class_ids = scene()
    drawn = viz.overlay(image, segment_map, CLASSES, class_ids, scale=2.5)
    assert drawn.shape == (300, 400, 3)


@pytest.mark.parametrize("change, message", [
    ({"image": np.zeros((4, 4), np.uint8)}, r"image must be uint8 \[h, w, 3\]"),
    ({"image": np.zeros((4, 4, 3))}, "got float64"),
    ({"segment_map": np.zeros((4, 5), int)}, "does not belong to an image"),
    ({"segment_map": np.full((4, 4), 2)}, "ids 2..2, but there are 1 segments"),
    ({"scores": [0.5, 0.5]}, "1 segments, but 2 scores"),
    ({"class_ids": [3]}, "classes 3..3, but 3 names"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused(change, message):
    arguments = {"image": np.zeros((4, 4, 3), np.uint8), "segment_map": np.ones((4, 4), int), "classes": CLASSES}
    with pytest.raises(ValueError, match=message):
        viz.overlay(**(arguments | {"class_ids": [0]} | change))


def test_heatmap_shows_scores_where_they_are():
    image = np.full((40, 60, 3), 128, np.uint8)
    score = np.zeros((8, 8), np.float32)
    score[2, 3] = 1.0
    heat = viz.heatmap(score, image, stride=8, smooth=False)
    assert heat.shape == image.shape and heat.dtype == np.uint8
    hot = np.zeros((40, 60), bool)
    hot[16:24, 24:32] = True
    assert len(np.unique(heat[hot], axis=0)) == len(np.unique(heat[~hot], axis=0)) == 1
    assert heat[hot].mean() > 150 and heat[~hot].mean() < 70
    smooth = viz.heatmap(score, image, stride=8)
    assert np.unravel_index(smooth.sum(axis=-1).argmax(), hot.shape) in [(y, x) for y in (19, 20) for x in (27, 28)]
    assert smooth[:, 45:].max() < 70


def test_heatmap_scales_and_clips():
    image = np.zeros((4, 4, 3), np.uint8)
    half = viz.heatmap(np.full((1, 1), 0.5), image, highest=0.5)
    np.testing.assert_array_equal(half, viz.heatmap(np.full((2, 2), 9.0), image))
    np.testing.assert_array_equal(viz.heatmap(np.full((1, 1), np.nan), image), image)
    for score, stride, message in ((np.zeros(3), None, "score must be"), (np.zeros((2, 2)), 1, "do not cover 4 x 4")):
        with pytest.raises(ValueError, match=message):
            viz.heatmap(score, image, stride=stride)


def solid(height, width, value):
    return np.full((height, width, 3), value, np.uint8)


def test_panel_row():
    row = viz.panel_row([solid(40, 30, 10), solid(20, 30, 90)], gap=4)
    assert row.shape == (48, 4 + 30 + 4 + 60 + 4, 3)
    assert (row[4:44, 4:34] == 10).all() and (row[4:44, 38:98] == 90).all() and (row[:4] == 255).all()
    titled = viz.panel_row([solid(40, 30, 10), solid(20, 30, 90)], ["one", "a title that is too long"], gap=4)
    assert titled.shape == (48 + 16, 102, 3)
    np.testing.assert_array_equal(titled[20:60], row[4:44])
    assert titled[4:20, 4:34].min() < 100 and (titled[:20, 34:38] == 255).all() and (titled[:20, 98:] == 255).all()


def test_contact_sheet():
    sheet = viz.contact_sheet([solid(10, 10, v) for v in (10, 20, 30)], columns=2, cell=(20, 40), gap=2)
    assert sheet.shape == (2 + 2 * 22, 2 + 2 * 42, 3)
    assert (sheet[2:22, 12:32] == 10).all() and (sheet[2:22, 54:74] == 20).all() and (sheet[24:44, 12:32] == 30).all()
    assert (sheet[24:44, 44:] == 255).all()
    assert viz.contact_sheet([solid(9, 9, 0)] * 5, [""] * 5, cell=(9, 9), gap=0).shape == (2 * 25, 27, 3)
    for arguments, message in (
        (([],), "no image"), (([solid(2, 2, 0)], ["a", "b"]), "1 images, but 2 titles"),
        (([np.zeros((2, 2))],), "image 0 must be"), (([solid(2, 2, 0)], None), "columns must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            viz.contact_sheet(*arguments, columns=0)


def test_kinds_of_pixels_get_their_colors():
    image = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    kinds = np.zeros((20, 30), np.int32)
    kinds[5:10, 5:25] = 1
    drawn = viz.paint_kinds(image, kinds, [None, (255, 0, 0)], alpha=0.75)
    assert drawn.shape == image.shape and np.ptp(drawn[0, 0]) == 0  # gray where there is no color
    assert drawn[7, 7, 0] > drawn[7, 7, 1] + 150
    assert viz.paint_kinds(image, kinds, [None, (255, 0, 0)], scale=2.0).shape == (40, 60, 3)
    for bad, colors in ((kinds[:5], [None, None]), (kinds, [None])):
        with pytest.raises(ValueError, match="kinds"):
            viz.paint_kinds(image, bad, colors)


def test_rings_surround_their_points():
    black = np.zeros((40, 40, 3), np.uint8)
    drawn = viz.mark_points(black, [(10.0, 30.0)], [(255, 255, 0)], radius=5)
    rows, columns = np.nonzero(drawn[..., 0] > 200)
    assert abs(rows.mean() - 10) < 0.6 and abs(columns.mean() - 30) < 0.6 and not drawn[10, 30].any()
    assert not black.any()


def test_similarities_as_a_image():
    values = np.eye(4, dtype=np.float32)
    values[0, 1] = values[1, 0] = 0.95
    drawn = viz.similarity_matrix(values, [2, 3, 4], side=200)
    assert drawn.shape == (200, 200, 3)
    bright, dark = drawn[25, 75].astype(int), drawn[25, 175].astype(int)
    assert bright.sum() > dark.sum() + 100
    assert (drawn[0, 50] == 255).all() and not (drawn[149, 125] == 255).all()  # a frame around two, none around one
    assert viz.similarity_matrix(np.zeros((0, 0), np.float32)).size


def test_pages_escape_and_miss_nothing():
    encoded = viz.encode_webp(np.zeros((4, 6, 3), np.uint8))
    assert encoded[:4] == b"RIFF" and viz.data_uri(encoded).startswith("data:image/webp;base64,")
    with pytest.raises(jinja2.UndefinedError):
        viz.render("report.html", title="a")


def test_labels_of_real_photos(image_data_dir):
    """The drawing of a labeled photo names everything in it."""
    folder = image_data_dir / "coco_sample"
    content = json.loads((folder / "annotations/panoptic_val2017.json").read_text())
    category = {entry["id"]: entry for entry in content["categories"]}
    entry = next(a for a in content["annotations"] if a["image_id"] == 785)
    ids = decode_ids((folder / "annotations/panoptic_val2017" / entry["file_name"]).read_bytes(), entry["file_name"])
    segments = entry["segments_info"]
    segment_map = sum((i + 1) * (ids == s["id"]) for i, s in enumerate(segments)).astype(np.int32)
    names = [category[s["category_id"]]["name"] for s in segments]
    is_thing = [bool(category[s["category_id"]]["isthing"]) for s in segments]
    image = np.array(Image.open(folder / "val2017/000000000785.jpg").convert("RGB"))
    classes = ClassTable.from_coco(content["categories"])
    class_of = [classes.class_of_category[s["category_id"]] for s in segments]
    drawn = viz.overlay(image, segment_map, classes, class_of)
    assert drawn.shape == image.shape
    found = placed_labels(segment_map, names, is_thing)
    assert {label.text for label in found.values()} == {"person", "skis", "snow", "sky-other-merged"}
    person = found[names.index("person")]
    assert (segment_map[person.y0 : person.y1, person.x0 : person.x1] == 1 + names.index("person")).mean() > 0.97
