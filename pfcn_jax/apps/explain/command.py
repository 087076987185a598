"""`explain`: the intermediate results for single images: one page of HTML each, and its panels as PNG.

Object centers and stuff regions of every level, every kernel's mask before and after fusion, which kernels merged with
what similarity, which were removed and why, and the segments that are left.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image

from pfcn_jax.apps.explain.fates import Cluster, tell_fates
from pfcn_jax.apps.explain.insides import Insides, Panel, Row, segment_table
from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.errors import UserError
from pfcn_jax.inference.input_files import find_inputs, read_ahead
from pfcn_jax.inference.two_stage import TwoStagePredictor
from pfcn_jax.types import LEVELS
from pfcn_jax.utils.atomic import write_text
from pfcn_jax.viz import contact_sheet, data_uri, encode_webp, overlay, render
from pfcn_jax.viz.preview import draw_prediction

_SIDE = 640  # long side of the two large images
_CELL = (192, 256)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint or a working directory of `train`")
    parser.add_argument("--output", required=True, help="folder for NAME.html and NAME/*.png")
    parser.add_argument("--kernels", type=int, default=40, help="clusters of kernels shown, the best first")
    parser.add_argument("pictures", nargs="+", metavar="IMAGES", help="files and folders of images")


def main(args: argparse.Namespace) -> int:
    if args.kernels < 1:
        raise UserError(f"--kernels {args.kernels}: must be at least 1")
    output = pathlib.Path(args.output)
    inputs = find_inputs(args.pictures, exclude=output)
    images = [entry for entry in inputs if not entry.is_video]
    broken = [f"{entry.path}: a video; explain takes images" for entry in inputs if entry.is_video]
    predictor = TwoStagePredictor(load_with_config(pathlib.Path(args.checkpoint), args.config_argv))
    for entry, image in read_ahead(images, broken, upright=True):
        print(explain_image(predictor, image, entry.name, output, kernels=args.kernels))
    for message in broken:
        print(f"skipped: {message}", file=sys.stderr)
    return 1 if broken else 0


def explain_image(
    predictor: TwoStagePredictor, image: np.ndarray, name: str, output: pathlib.Path, *, kernels: int = 40
) -> pathlib.Path:
    """Writes `output/name.html` and its panels as `output/name/*.png`; returns the page.

    Args:
      image: RGB, uint8 [h, w, 3].
      kernels: clusters that are shown, the best first.
    """
    config, classes = predictor.config.inference, predictor.loaded.classes
    encoded = predictor.encode(image)
    trace = predictor.trace(encoded)
    clusters, dropped = tell_fates(trace, merge_score=config.merge_score)
    insides = Insides(encoded, trace, classes)
    scale = _SIDE / max(image.shape[:2])
    blank = np.zeros(image.shape[:2], np.int32)
    sheets = {
        "image": [Panel(overlay(image, blank, classes, [], scale=scale), "image")],
        "panoptic": [Panel(draw_prediction(image, trace.prediction.panoptic, classes, scale=scale), "segments")],
        "centers": insides.centers([fate for c in clusters for fate in c.members] + dropped),
        "regions": insides.regions(),
        "similarities": [insides.similarities(clusters)],
        "dropped": [insides.dropped(fate) for fate in dropped[:kernels]],
    }
    rows = {"kernels": [insides.cluster(cluster) for cluster in clusters[:kernels]], "stuff": insides.stuff()}
    _write_sheets(output / name, sheets, rows)
    page = render(
        "explain.html",
        title=name,
        subtitle=f"{image.shape[0]} x {image.shape[1]} pixels, {predictor.loaded.config.name}",
        counts=_count_line(clusters, len(dropped), len(LEVELS)),
        image=_values(sheets["image"][0]),
        drawing=_values(sheets["panoptic"][0]),
        segments=segment_table(trace, classes),
        centers=[_values(panel) for panel in sheets["centers"]],
        regions=[_values(panel) for panel in sheets["regions"]],
        fusion_threshold=f"{config.fusion_threshold:g}",
        clusters=[_row_values(row) for row in rows["kernels"]],
        clusters_left_out=max(0, len(clusters) - kernels),
        similarities=_values(sheets["similarities"][0]),
        dropped=[_values(panel) for panel in sheets["dropped"]],
        stuff=[_row_values(row) for row in rows["stuff"]],
    )
    write_text(output / f"{name}.html", page)
    return output / f"{name}.html"


def _count_line(clusters: list[Cluster], dropped: int, levels: int) -> str:
    picked = sum(len(cluster.members) for cluster in clusters) + dropped
    rescored = sum(cluster.score is not None for cluster in clusters)
    placed = sum(cluster.segment is not None for cluster in clusters)
    return (
        f"{picked} kernels of things from {levels} levels, {len(clusters)} after fusion, {rescored} after rescoring, "
        f"{placed} on the canvas."
    )


def _write_sheets(folder: pathlib.Path, sheets: dict[str, list[Panel]], rows: dict[str, list[Row]]) -> None:
    """One PNG for each kind of panel; kernels are a grid with a cluster a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, panels in sheets.items():
        if len(panels) == 1:
            Image.fromarray(panels[0].image).save(folder / f"{name}.png")
        elif panels:
            _sheet(panels, columns=len(LEVELS)).save(folder / f"{name}.png")
    for name, lines in rows.items():
        columns = max((len(line.panels) for line in lines), default=0)
        cells = []
        for line in lines:
            first = Panel(line.panels[0].image, line.title)
            blank = Panel(np.full_like(first.image, 255), "")
            cells += [first, *line.panels[1:], *[blank] * (columns - len(line.panels))]
        if cells:
            _sheet(cells, columns=columns).save(folder / f"{name}.png")


def _sheet(panels: list[Panel], *, columns: int) -> Image.Image:
    titles = [panel.title for panel in panels]
    return Image.fromarray(contact_sheet([panel.image for panel in panels], titles, columns=columns, cell=_CELL))


def _values(panel: Panel) -> dict[str, Any]:
    return {"src": data_uri(encode_webp(panel.image, quality=82)), "title": panel.title}


def _row_values(row: Row) -> dict[str, Any]:
    panels = [_values(panel) for panel in row.panels]
    return {"title": row.title, "note": row.note, "removed": row.removed, "panels": panels}
