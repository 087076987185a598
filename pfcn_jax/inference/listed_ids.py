"""The ids that a panoptic JSON gives to input images, so that predictions can be scored against it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from pfcn_jax.data.image_files import compose
from pfcn_jax.data.panoptic_json import PanopticIndex, read_index
from pfcn_jax.errors import UserError
from pfcn_jax.inference.input_files import Input

_Listed = dict[tuple[str, ...], list[int | str]]


def listed_ids(labels: str, inputs: Sequence[Input]) -> dict[str, int | str]:
    """Listed ids by the inputs' `image_id`. An image has the id of the longest listed name that its path ends with.

    Raises:
      UserError: no such JSON, an image that it does not list, a name listed under several ids, or two images of one id.
    """
    listed = _by_parts(read_index(labels))
    images = [entry for entry in inputs if not entry.is_video]
    found = {entry.image_id: _longest_end(entry.path, listed) for entry in images}
    strangers = [entry.path for entry in images if not found[entry.image_id]]
    if strangers:
        raise UserError(
            f"{strangers[0]}: not in {labels} ({len(strangers)} of {len(images)} images are not)", code="images-differ"
        )
    taken: dict[int | str, pathlib.Path] = {}
    for entry in images:
        ids = found[entry.image_id]
        if len(ids) > 1:
            raise UserError(
                f"{entry.path}: {labels} lists this name under {len(ids)} ids ({ids[0]!r}, {ids[1]!r})",
                code="images-differ",
            )
        if ids[0] in taken:
            raise UserError(
                f"{entry.path} and {taken[ids[0]]}: by name both are image {ids[0]!r} of {labels}", code="images-differ"
            )
        taken[ids[0]] = entry.path
    return {image_id: ids[0] for image_id, ids in found.items()}


def _by_parts(index: PanopticIndex) -> _Listed:
    """Image ids by the parts of their file names, the last first: `a/b.jpg` -> (b.jpg, a)."""
    table: _Listed = {}
    for name, image_id in zip(index.file_names, index.image_ids):
        parts = pathlib.PurePosixPath(compose(name).replace("\\", "/")).parts[::-1]
        table.setdefault(parts, []).append(image_id)
    return table


def _longest_end(path: pathlib.Path, listed: Mapping[tuple[str, ...], list[int | str]]) -> list[int | str]:
    parts = tuple(compose(part) for part in path.resolve().parts[::-1])
    ends = (parts[:count] for count in range(len(parts), 0, -1))
    return next((listed[end] for end in ends if end in listed), [])
