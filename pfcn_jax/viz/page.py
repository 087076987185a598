"""Pages of HTML that need nothing but themselves: pictures and style are inside, no script, nothing is fetched."""

from __future__ import annotations

import base64
import functools
import io
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

if TYPE_CHECKING:
    import jinja2


def render(template: str, **values: Any) -> str:
    """A page of `templates/`. Values are escaped: names of classes and files cannot break the page.

    Raises:
      jinja2.UndefinedError: the template uses a value that was not given.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2  # here: only those who write pages need it

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).with_name("templates"), encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(encoded: bytes) -> str:
    """A WebP picture as the `src` of an `<img>`."""
    return "data:image/webp;base64," + base64.b64encode(encoded).decode("ascii")


def encode_picture(image: UInt8[np.ndarray, "h w 3"], *, quality: int = 88) -> bytes:
    """RGB as WebP, which every browser shows: an eighth of a PNG at no visible loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
