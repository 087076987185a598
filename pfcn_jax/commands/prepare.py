"""`prepare FORMAT`: converts data into a layout that trains; `data/importers/` has one file a format.

Instance or semantic labels become a COCO-panoptic folder, COCO becomes ArrayRecord.
"""

from __future__ import annotations

import argparse
import sys

from pfcn_jax.data.importers.registry import importers
from pfcn_jax.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known = importers()
    formats = parser.add_subparsers(dest="format", required=True, metavar=f"{{{','.join(known)}}}")
    for importer in known.values():
        text = sys.modules[importer.run.__module__].__doc__
        importer.add_flags(formats.add_parser(importer.name, help=importer.help, description=text, allow_abbrev=False))


def main(args: argparse.Namespace) -> int:
    if args.config_argv:
        raise UserError("prepare takes no config; see `prepare --help`")
    for line in importers()[args.format].run(args):
        print(line)
    return 0
