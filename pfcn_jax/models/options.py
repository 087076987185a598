"""Options of the network."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pfcn_jax.utils.settings import setting


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The network (paper section 3). Every key is a keyword of `PanopticFCN`."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    backbone_norm: Literal["frozen_bn", "group_norm"] = (
        "frozen_bn"  # "frozen_bn" (pretrained) or "group_norm" (from scratch)
    )
    backbone_width: int = setting(64, at_least=1)  # channels of the stem; 64 is the ResNet of the papers
    stride_in_1x1: bool = True  # True: MSRA weights; False: torchvision weights
    deformable_stages: tuple[int, ...] = ()  # (3, 4, 5) = "DCN"
    freeze_at: int = setting(2, at_least=0, at_most=5)  # 0: nothing, 1: stem, 2: stem and res2
    fpn_channels: int = setting(256, at_least=1)
    head_channels: int = setting(256, at_least=1)
    kernel_channels: int = setting(256, at_least=1)  # of the kernel map, before embedding
    position_convs: int = setting(3, at_least=0)
    position_deformable: bool = True
    position_coords: bool = False
    region_classes: Literal["stuff", "all"] = "stuff"  # "stuff": any thing and stuff; "all": things, too (Cityscapes)
    kernel_convs: int = setting(3, at_least=0)
    kernel_deformable: bool = False
    kernel_coords: bool = True
    encoder_input: Literal["semantic_fpn", "p2", "sum"] = "semantic_fpn"  # "semantic_fpn", "p2", "sum"
    encoder_convs: int = setting(3, at_least=0)
    encoder_deformable: bool = False  # True: the enhanced (*) model, with encoder_channels = 256
    encoder_coords: bool = True
    encoder_channels: int = setting(64, at_least=1)
    pixel_order: Literal["rgb", "bgr"] = "bgr"  # of the pretrained weights; images are read as RGB
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # in pixel_order, as the original applies it
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: Literal["float32", "bfloat16"] = setting("float32", affects="precision")  # parameters stay float32
    remat: bool = setting(False, affects="speed")  # recompute blocks in the backward pass: less memory, more time
