"""`card`: a checkpoint's model card in Markdown: what it is, what it was trained on, how it scores, what it cannot do.

Everything comes from the checkpoint itself and from the evaluation that lies beside it; it opens with the YAML that the
Hugging Face Hub reads. The same checkpoint gives the same card, byte by byte: no date, no path of the machine.
"""

from __future__ import annotations

import argparse
import pathlib

from pfcn_jax.checkpoints.format import find_checkpoint, load_meta
from pfcn_jax.checkpoints.named import resolve
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.card import find_scores, make_card
from pfcn_jax.evaluation.hub import HubFields
from pfcn_jax.interop import zoo
from pfcn_jax.utils.atomic import write_text
from pfcn_jax.utils.stderr import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint or a working directory of `train`")
    parser.add_argument("--output", required=True, help="the Markdown file to write")
    parser.add_argument(
        "--scores", help="JSON of `evaluate --output` (default: evaluation.json beside the last checkpoint of a run)"
    )
    parser.add_argument("--license", help="of the weights, as the Hugging Face Hub names it: apache-2.0, other")
    parser.add_argument(
        "--dataset", action="append", metavar="ID", help="the training data on the Hub, as OWNER/NAME (may be repeated)"
    )


def main(args: argparse.Namespace) -> int:
    if args.config_argv:
        raise UserError(f"{args.config_argv[0]}: a card describes a checkpoint as it is; it takes no config")
    hub = _hub_fields(args)
    checkpoint = find_checkpoint(resolve(pathlib.Path(args.checkpoint)), best=True)
    meta = load_meta(checkpoint)
    scores, note = find_scores(checkpoint, meta, args.scores)
    write_text(args.output, make_card(meta, scores, note, hub))
    if scores and "evaluated" not in scores:
        print_lines(f"{args.scores}: does not say which data it scores; the front matter gets no scores")
    print(f"{args.output}: the card of {checkpoint}")
    return 0


def _hub_fields(args: argparse.Namespace) -> HubFields:
    """The flags; for published weights that were given by name their license and COCO, which they were trained on."""
    given = HubFields(args.license or "", tuple(args.dataset or ()))
    if pathlib.Path(args.checkpoint).exists() or args.checkpoint not in zoo.TABLE:
        return given
    entry = zoo.find(args.checkpoint)
    return HubFields(given.license or entry.license_id.lower(), given.datasets or ("coco",))
