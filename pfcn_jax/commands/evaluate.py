"""`evaluate`: PQ, AP and mIoU of a checkpoint over a data set, or PQ of anybody's panoptic predictions."""

from __future__ import annotations

import argparse
import json
import pathlib

import jax

from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.data.inputs import open_evaluation
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.evaluate import EvaluationResult, evaluate_model
from pfcn_jax.evaluation.html_report import ReportCollector
from pfcn_jax.evaluation.tables import format_table
from pfcn_jax.metrics.panoptic_files import pq_of_files
from pfcn_jax.parallel import distributed
from pfcn_jax.parallel.sharding import data_mesh
from pfcn_jax.utils.atomic import write_json


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="a checkpoint or a working directory of `train` or `convert`")
    parser.add_argument("--split", help="the split to score (default: data.eval_split of the config)")
    parser.add_argument("--output", help="write the result as JSON to this file")
    parser.add_argument(
        "--report", metavar="DIR", help="write report.html (classes, sizes, confusions, worst pictures)"
    )
    distributed.add_flags(parser)
    files = parser.add_argument_group("scoring of files: COCO-panoptic JSON and folder of PNGs")
    for flag in ("--gt-json", "--gt-dir", "--pred-json", "--pred-dir"):
        files.add_argument(flag)


def main(args: argparse.Namespace) -> int:
    given = [args.gt_json, args.gt_dir, args.pred_json, args.pred_dir]
    if any(given):
        if not all(given):
            raise UserError("scoring of files needs --gt-json, --gt-dir, --pred-json and --pred-dir together")
        keys = [word for word in args.config_argv if word.startswith("--config.")]
        ignored = [f"--{name}" for name in ("checkpoint", "split") if getattr(args, name)] + keys
        if ignored:
            raise UserError(f"{ignored[0]}: scoring of files reads no model and no config; leave it out")
        if args.report:
            raise UserError("--report draws pictures, which scoring of files does not read; it needs --checkpoint")
        result, categories = pq_of_files(*given)
        print(format_table(result, categories.names))
        if args.output:
            write_json(args.output, result.to_dict(categories.ids))
        return 0
    if not args.checkpoint:
        raise UserError("nothing to evaluate: give --checkpoint, or the four flags of files (see --help)")
    distributed.join(args)
    loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
    config = loaded.config
    source = open_evaluation(config.data, config.data.eval_examples, split=args.split or "", classes=loaded.classes)
    mesh = data_mesh()
    if args.report and jax.process_count() > 1:
        raise UserError("--report sees the pictures of its own process only: run it in a single process")
    collector = ReportCollector(loaded.classes) if args.report else None
    evaluation = evaluate_model(loaded.variables, loaded.model, source, config, mesh, on_picture=collector)
    if jax.process_index() != 0:
        return 0
    print(format_table(evaluation.pq, loaded.classes.names), *_detail_lines(evaluation), sep="\n")
    if collector:
        page = collector.write(
            pathlib.Path(args.report),
            evaluation.pq,
            title=f"{config.name}: panoptic quality",
            subtitle=f"{'/'.join(loaded.path.parts[-3:])} on {config.data.source}, {len(source)} pictures",
            others=_detail_figures(evaluation),
        )
        print(f"report: {page}")
    if args.output:
        write_json(args.output, evaluation.to_dict(loaded.classes))
    return 0


def _detail_figures(evaluation: EvaluationResult) -> dict[str, float | None]:
    """AP and mIoU, for the report."""
    figures: dict[str, float | None] = {}
    if evaluation.ap is not None:
        figures |= {key: value for key, value in evaluation.ap.to_dict().items() if key in ("AP", "AP50")}
    if evaluation.semantic is not None:
        figures["mIoU"] = evaluation.semantic.mIoU
    return figures


def _detail_lines(evaluation: EvaluationResult) -> list[str]:
    lines = []
    if evaluation.ap is not None:
        lines.append("AP: " + json.dumps({key: round(value, 2) for key, value in evaluation.ap.to_dict().items()}))
    if evaluation.semantic is not None:
        lines.append(f"mIoU: {evaluation.semantic.mIoU:.2f}")
    return lines
