"""VPQ and STQ against slow, obvious implementations of their definitions, and by hand."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pytest

from pfcn_jax.codec import write_id_png
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.video_scores import score_videos
from pfcn_jax.main import main
from pfcn_jax.metrics.pq import count_overlap, pq_counts
from pfcn_jax.metrics.stq import stq_result
from pfcn_jax.metrics.video import FrameSegments, VideoOverlaps
from pfcn_jax.metrics.vpq import vpq_counts, vpq_result

IS_THING = (True, True, False)
Frame = tuple[np.ndarray, list[tuple[int, int, bool]]]  # id map; class, track and crowd of each row


def frame(rows: list[list[int]], *segments: tuple[int, int] | tuple[int, int, bool]) -> Frame:
    return np.array(rows), [(*segment, False)[:3] for segment in segments]


def overlaps(truth: list[Frame], predicted: list[Frame], is_thing=IS_THING) -> VideoOverlaps:
    video = VideoOverlaps(is_thing)
    for (gt_map, gt), (pred_map, pred) in zip(truth, predicted, strict=True):
        pairs = [
            FrameSegments(*(np.array(column, kind) for column, kind in zip(zip(*rows), (int, int, bool))))
            if rows
            else FrameSegments(np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool))
            for rows in (gt, pred)
        ]
        video.add(*pairs, count_overlap(gt_map, len(gt), pred_map, len(pred)))
    return video


def pixels(frames: list[Frame]) -> dict[tuple[int, int, int], tuple]:
    """(frame, row, column) -> (class, track, crowd); the track of stuff and of crowds is None."""
    found = {}
    for t, (id_map, segments) in enumerate(frames):
        for place in np.ndindex(id_map.shape):
            if value := id_map[place]:
                class_id, track, crowd = segments[value - 1]
                found[(t, *place)] = (class_id, track if IS_THING[class_id] and not crowd else None, crowd)
    return found


def tubes_of(found: dict) -> dict[tuple, set]:
    tubes: dict[tuple, set] = {}
    for place, tube in found.items():
        tubes.setdefault(tube, set()).add(place)
    return tubes


def slow_vpq(truth: list[Frame], predicted: list[Frame], window: int) -> tuple:
    """TP, FP, FN and the sum of IoUs of each class: one window, one pair of tubes at a time, on sets of pixels."""
    tp, fp, fn, iou = ([0] * len(IS_THING) for _ in range(4))
    for start in range(len(truth) - window + 1):
        clip = slice(start, start + window)
        labeled = pixels(truth[clip])
        gt, pred = tubes_of(labeled), tubes_of(pixels(predicted[clip]))
        matched = set()
        for g, g_set in gt.items():
            for p, p_set in pred.items():
                if g[2] or g[0] != p[0]:
                    continue
                value = len(g_set & p_set) / len(g_set | {place for place in p_set if place in labeled})
                if value > 0.5:
                    tp[g[0]] += 1
                    iou[g[0]] += value
                    matched |= {("gt", g), ("pred", p)}
        for g in gt:
            fn[g[0]] += not g[2] and ("gt", g) not in matched
        for p, p_set in pred.items():
            excused = [place for place in p_set if labeled.get(place, (p[0], None, True)) == (p[0], None, True)]
            fp[p[0]] += ("pred", p) not in matched and len(excused) <= 0.5 * len(p_set)
    return tp, fp, fn, iou


def slow_stq(videos: list[tuple[list[Frame], list[Frame]]]) -> tuple[float, float, float]:
    """STQ, AQ and SQ by their formulas, on sets of pixels."""
    association, hits, unions = [], np.zeros(len(IS_THING)), np.zeros(len(IS_THING))
    for truth, predicted in videos:
        labeled, seen = pixels(truth), pixels(predicted)
        on_crowd = {place for place, tube in labeled.items() if tube[2] and IS_THING[tube[0]]}
        gt_ids = {tube[1] for tube in labeled.values() if tube[1] is not None}
        pred_ids = {tube[1] for tube in seen.values() if tube[1] is not None}
        for g in gt_ids:
            g_set = {place for place, tube in labeled.items() if tube[1] == g}
            total = 0.0
            for p in pred_ids:
                p_set = {place for place, tube in seen.items() if tube[1] == p} - on_crowd
                tpa = len(g_set & p_set)
                if tpa:
                    fpa, fna = len(p_set) - tpa, len(g_set) - tpa
                    total += tpa * tpa / (tpa + fpa + fna)
            association.append(total / len(g_set))
        for c in range(len(IS_THING)):
            of_gt = {place for place, tube in labeled.items() if tube[0] == c}
            of_pred = {place for place, tube in seen.items() if tube[0] == c and place in labeled}
            hits[c] += len(of_gt & of_pred)
            unions[c] += len(of_gt | of_pred)
    aq = float(np.mean(association)) if association else math.nan
    sq = float(np.mean(hits[unions > 0] / unions[unions > 0])) if unions.any() else math.nan
    return math.sqrt(aq * sq), aq, sq


def random_video(seed: int) -> tuple[list[Frame], list[Frame]]:
    """Labeled and predicted frames that agree in part: blocks that move, some under another id or class, some noise."""
    rng = np.random.default_rng(seed)
    size, count = int(rng.integers(3, 9)), int(rng.integers(1, 7))
    kinds = [(int(rng.integers(0, 3)), 7 + i, bool(rng.random() < 0.2)) for i in range(count)]
    grid = rng.integers(0, count + 1, (size, size))
    renamed = {i: int(rng.integers(0, 40)) for i in range(count)}
    truth, predicted = [], []
    for _ in range(int(rng.integers(1, 6))):
        gt_map = np.roll(grid, int(rng.integers(0, 2)), axis=1)
        noise = rng.random(gt_map.shape) < rng.choice([0.0, 0.2])
        pred_map = np.where(noise, rng.integers(0, count + 1, gt_map.shape), gt_map)
        swap = {i: renamed[i] if rng.random() < 0.8 else int(rng.integers(0, 40)) for i in range(count)}
        seen = [(kind if rng.random() < 0.9 else 1, swap[i], False) for i, (kind, _, _) in enumerate(kinds)]
        truth.append((gt_map, kinds))
        predicted.append((pred_map, seen))
    return truth, predicted


def test_random_videos_equal_the_definition_of_vpq():
    totals = np.zeros(3, int)
    for seed in range(120):
        truth, predicted = random_video(seed)
        video = overlaps(truth, predicted)
        for window in (1, 2, 4):
            counts = vpq_counts(video, window)
            tp, fp, fn, iou = slow_vpq(truth, predicted, window)
            np.testing.assert_array_equal([counts.tp, counts.fp, counts.fn], [tp, fp, fn])
            np.testing.assert_allclose(counts.iou, iou, rtol=0, atol=1e-12)
            totals += [counts.tp.sum(), counts.fp.sum(), counts.fn.sum()]
    assert totals.min() > 100  # the cases are worth something


def test_random_videos_equal_the_definition_of_stq():
    for seed in range(60):
        videos = [random_video(3 * seed + i) for i in range(1 + seed % 3)]
        result = stq_result([overlaps(*video) for video in videos], IS_THING)
        expected = [100 * value for value in slow_stq(videos)]
        np.testing.assert_allclose([result.STQ, result.AQ, result.SQ], expected, rtol=1e-12, err_msg=str(seed))


def test_vpq_of_one_frame_is_pq():
    for seed in range(30):
        truth, predicted = random_video(seed)
        (gt_map, gt), (pred_map, pred) = truth[0], predicted[0]
        crowds = [class_id for class_id, _, crowd in gt if crowd]
        stuff = [class_id for class_id, _, crowd in gt if not crowd and not IS_THING[class_id]]
        seen = [segment[0] if not IS_THING[segment[0]] else segment[:2] for segment in pred]
        if any(len(set(group)) < len(group) for group in (crowds, stuff, seen)):
            continue  # repeats within an image, which are one tube here
        counts = vpq_counts(overlaps(truth[:1], predicted[:1]), 1)
        columns = [[segment[i] for segment in gt] for i in (0, 2)]
        expected = pq_counts(gt_map, *columns, pred_map, [segment[0] for segment in pred], len(IS_THING))
        for name, array in expected.to_arrays().items():
            np.testing.assert_array_equal(counts.to_arrays()[name], array)


def test_an_exchange_of_ids_by_hand():
    """Two cats of four pixels a frame, found exactly in three frames; in the last one their ids are exchanged."""
    rows = [[1, 1, 1, 1, 2, 2, 2, 2]]
    truth = [frame(rows, (0, 1), (0, 2))] * 3
    predicted = [frame(rows, (0, 5), (0, 6))] * 2 + [frame(rows, (0, 6), (0, 5))]
    video = overlaps(truth, predicted)
    # k = 1: every frame is perfect. k = 3: one window, in which each tube shares 8 of 12 + 12 - 8 = 16 pixels: IoU 1/2.
    assert vpq_result([video], 1, IS_THING).all.PQ == 100.0
    three = vpq_counts(video, 3)
    assert (three.tp[0], three.fp[0], three.fn[0]) == (0, 2, 2)
    # k = 2: a perfect window, and one in which no tube reaches 1/2 (4 of 12).
    two = vpq_counts(video, 2)
    assert (two.tp[0], two.fp[0], two.fn[0], two.iou[0]) == (2, 2, 2, 2.0)
    # AQ of each cat: (8 x 8 / 16 + 4 x 4 / 20) / 12 = 0.4; SQ: one class, every pixel right.
    scores = stq_result([video], IS_THING)
    assert scores.SQ == 100.0 and scores.tracks == 2
    np.testing.assert_allclose([scores.AQ, scores.STQ], [40.0, 100 * math.sqrt(0.4)], rtol=1e-12)


def test_ids_of_stuff_do_not_matter_and_association_ignores_classes():
    rows = [[1, 1, 2, 2]]
    truth = [frame(rows, (0, 1), (2, 9))] * 2
    stuff_renamed = [frame(rows, (0, 4), (2, 8)), frame(rows, (0, 4), (2, 4))]
    assert stq_result([overlaps(truth, stuff_renamed)], IS_THING).STQ == 100.0
    assert vpq_result([overlaps(truth, stuff_renamed)], 2, IS_THING).all.PQ == 100.0
    other_class = [frame(rows, (0, 4), (2, 8)), frame(rows, (1, 4), (2, 8))]
    assert stq_result([overlaps(truth, other_class)], IS_THING).AQ == 100.0


def test_void_counts_against_an_id_but_crowds_do_not():
    """As in the authors' evaluator: pixels of a predicted id on void are FPA, those on a crowd are left out."""
    truth = [frame([[1, 1, 0, 2]], (0, 1), (1, 2, True))]
    on_void, on_crowd = frame([[1, 1, 1, 0]], (0, 5)), frame([[1, 1, 0, 1]], (0, 5))
    np.testing.assert_allclose(stq_result([overlaps(truth, [on_void])], IS_THING).AQ, 100 * 2 / 3)
    assert stq_result([overlaps(truth, [on_crowd])], IS_THING).AQ == 100.0


def test_scores_of_several_videos():
    perfect = overlaps([frame([[1]], (0, 1))] * 2, [frame([[1]], (0, 4))] * 2)
    nothing = overlaps([frame([[1]], (0, 1))] * 1, [frame([[0]])] * 1)
    scores = score_videos([perfect, nothing], windows=(1, 2))
    np.testing.assert_allclose(scores.vpq[1].all.PQ, 100 * 2 / 2.5)
    assert scores.vpq[2].all.PQ == 100.0  # the shorter video has no window of two frames
    np.testing.assert_allclose([scores.mean_vpq, scores.stq.AQ, scores.stq.SQ], [90.0, 50.0, 100 * 2 / 3])
    as_dict = json.loads(json.dumps(scores.to_dict((7, 8, 9)), allow_nan=False))
    assert as_dict["VPQ"] == scores.mean_vpq and as_dict["windows"]["2"]["per_class"]["7"]["TP"] == 1
    assert "2 videos, 3 frames, 2 labeled tracks" in scores.table()
    empty = score_videos([overlaps([frame([[0]])], [frame([[0]])])], windows=(1,))
    assert math.isnan(empty.mean_vpq) and empty.to_dict((7, 8, 9))["STQ"] is None and "-" in empty.table()


@pytest.mark.parametrize(
    ("windows", "message"),
    [((0,), "a window of 0 frames: must be from 1 to 1"), ((1, 2), "a window of 2 frames: must be from 1 to 1")],
)
def test_windows_that_no_video_has_are_refused(windows, message):
    video = overlaps([frame([[1]], (0, 1))], [frame([[1]], (0, 1))])
    with pytest.raises(UserError, match=message):
        score_videos([video], windows)
    with pytest.raises(UserError, match="no video to score"):
        score_videos([])


def write_files(folder: pathlib.Path, videos: dict[str, list[Frame]]) -> list[str]:
    """A JSON and a folder of PNGs, in which the segment ids are those of tracks; their paths."""
    annotations = []
    for name, frames in videos.items():
        (folder / name).mkdir(parents=True)
        for number, (id_map, segments) in enumerate(frames):
            file_name = f"{name}/{number}.png"
            ids = np.array([0, *(track for _, track, _ in segments)], np.int32)
            write_id_png(folder / file_name, ids[id_map])
            entries = [
                {"id": t, "category_id": 10 + c} for r, (c, t, _) in enumerate(segments) if (id_map == r + 1).any()
            ]
            annotations.append({"image_id": file_name, "file_name": file_name, "segments_info": entries})
    categories = [{"id": 10 + c, "name": f"class {c}", "isthing": int(thing)} for c, thing in enumerate(IS_THING)]
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({"annotations": annotations, "categories": categories}))
    return [str(path), str(folder)]


def test_files_of_videos_are_scored_as_frames_in_memory(tmp_path, capsys):
    rows = [[1, 1, 1, 2, 2, 3, 3, 3]]
    truth = {"a": [frame(rows, (0, 1), (1, 2), (2, 9))] * 3, "b": [frame(rows, (0, 1), (0, 2), (2, 9))] * 2}
    exchanged = frame(rows, (0, 6), (0, 5), (2, 4))
    predicted = {"a": [frame([[1, 1, 0, 2, 2, 3, 3, 1]], (0, 8), (1, 3), (2, 4))] * 3, "b": [truth["b"][0], exchanged]}
    flags = [*write_files(tmp_path / "gt", truth), *write_files(tmp_path / "pred", predicted)]
    files = [word for pair in zip(("--gt-json", "--gt-dir", "--pred-json", "--pred-dir"), flags) for word in pair]
    output = tmp_path / "scores.json"
    assert main(["evaluate", *files, "--video", "--windows", "1", "2", "--output", str(output)]) == 0
    videos = [overlaps(truth[name], predicted[name]) for name in truth]
    expected = score_videos(videos, (1, 2))
    assert expected.table() in capsys.readouterr().out and expected.stq.tracks == 4
    assert json.loads(output.read_text()) == json.loads(json.dumps(expected.to_dict((10, 11, 12))))
    for flag, message in (
        (["--video"], "a window of 5 frames: must be from 1 to 3"),
        (["--windows", "2"], "give --video"),
    ):
        assert main(["evaluate", *files, *flag]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", "--video"]) == 2 and "together" in capsys.readouterr().err
