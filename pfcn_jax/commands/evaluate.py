"""`evaluate`: PQ, AP and mIoU of a checkpoint over a data set, or PQ of anybody's panoptic predictions.

With --video, VPQ and STQ of predictions for the frames of videos.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import jax

from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.data.inputs import evaluation_split, open_evaluation
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.evaluate import evaluate_model
from pfcn_jax.evaluation.html_report import ReportCollector
from pfcn_jax.evaluation.panoptic_files import PanopticFiles, confusion_hint
from pfcn_jax.evaluation.provenance import provenance
from pfcn_jax.evaluation.video_scores import WINDOWS, read_videos, score_videos
from pfcn_jax.metrics.pq import format_table
from pfcn_jax.parallel import distributed
from pfcn_jax.parallel.sharding import data_mesh
from pfcn_jax.utils.atomic import write_json


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="a checkpoint or a working directory of `train` or `convert`")
    parser.add_argument("--split", help="the split to score (default: data.eval_split of the config)")
    parser.add_argument("--output", help="write the result as JSON to this file")
    parser.add_argument("--report", metavar="DIR", help="write report.html (classes, sizes, confusions, worst images)")
    distributed.add_flags(parser)
    files = parser.add_argument_group("scoring of files: COCO-panoptic JSON and folder of PNGs")
    for flag in ("--gt-json", "--gt-dir", "--pred-json", "--pred-dir"):
        files.add_argument(flag)
    files.add_argument(
        "--video",
        action="store_true",
        help="score videos by VPQ and STQ: the PNGs of a folder of --gt-dir are the frames of one video",
    )
    files.add_argument(
        "--windows", nargs="+", type=int, metavar="FRAMES", help=f"of VPQ (default: {' '.join(map(str, WINDOWS))})"
    )


def main(args: argparse.Namespace) -> int:
    if args.windows and not args.video:
        raise UserError("--windows: of the scores of videos; give --video, too")
    if args.video or any((args.gt_json, args.gt_dir, args.pred_json, args.pred_dir)):
        return _score_files(args)
    if not args.checkpoint:
        raise UserError("nothing to evaluate: give --checkpoint, or the four flags of files (see --help)")
    return _score_checkpoint(args)


def _score_files(args: argparse.Namespace) -> int:
    given = [args.gt_json, args.gt_dir, args.pred_json, args.pred_dir]
    if not all(given):
        raise UserError("scoring of files needs --gt-json, --gt-dir, --pred-json and --pred-dir together")
    keys = [word for word in args.config_argv if word.startswith("--config.")]
    ignored = [f"--{name}" for name in ("checkpoint", "split") if getattr(args, name)] + keys
    if ignored:
        raise UserError(f"{ignored[0]}: scoring of files reads no model and no config; leave it out")
    if args.report:
        raise UserError("--report draws images, which scoring of files does not read; it needs --checkpoint")
    files = PanopticFiles(*given)
    if args.video:
        scores = score_videos(read_videos(files), args.windows or WINDOWS)
        print(scores.table())
        if args.output:
            write_json(args.output, scores.to_dict(files.classes.category_ids))
        return 0
    result = files.score()
    print(format_table(result, files.classes.names))
    if hint := confusion_hint(files, result):
        print(hint, file=sys.stderr)
    if args.output:
        write_json(args.output, result.to_dict(files.classes.category_ids))
    return 0


def _score_checkpoint(args: argparse.Namespace) -> int:
    distributed.join(args)
    loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
    config = loaded.config
    split = evaluation_split(config.data, args.split or "")
    source = open_evaluation(config.data, config.data.eval_examples, split=split, classes=loaded.classes)
    if args.report and jax.process_count() > 1:
        raise UserError("--report draws the images of its own process only: run it in a single process")
    collector = ReportCollector(loaded.classes) if args.report else None
    evaluation = evaluate_model(loaded.variables, loaded.model, source, config, data_mesh(), on_image=collector)
    if jax.process_index() != 0:
        return 0
    print(*evaluation.lines(), sep="\n")
    if collector:
        page = collector.write(
            pathlib.Path(args.report),
            evaluation.pq,
            title=f"{config.name}: panoptic quality",
            subtitle=f"{'/'.join(loaded.path.parts[-3:])} on {config.data.source}, {len(source)} images",
            others=evaluation.other_figures(),
        )
        print(f"report: {page}")
    if args.output:
        facts = {"step": loaded.step, "evaluated": provenance(config, split)}
        write_json(args.output, facts | evaluation.to_dict())
    return 0
