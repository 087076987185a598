"""Options of the network, as one frozen dataclass."""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

from pfcn_jax.errors import ConfigError
from pfcn_jax.types import RegionChannels
from pfcn_jax.utils.settings import setting


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The network (paper section 3). The defaults are the base model; the enhanced one (Panoptic FCN*) has
    `encoder_deformable=True, encoder_channels=256`."""

    backbone: str = "resnet50"  # a name of models/backbones, or "module:name" for one outside of the package
    # "frozen_bn" (pretrained) or "group_norm" (from scratch); backbones made with layer norm have no choice
    backbone_norm: Literal["frozen_bn", "group_norm"] = "frozen_bn"
    backbone_width: int = setting(64, at_least=1)  # 64: as published; others scale all channels in proportion
    stride_in_1x1: bool = True  # True: MSRA weights; False: torchvision weights
    deformable_stages: tuple[int, ...] = ()  # (3, 4, 5) = "DCN"
    # probability that training drops the backbone's last residual branch; earlier ones are dropped more rarely
    drop_path: float = setting(0.0, at_least=0, below=1)
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
    encoder_input: Literal["semantic_fpn", "p2", "sum"] = "semantic_fpn"
    encoder_convs: int = setting(3, at_least=0)
    encoder_deformable: bool = False  # True: the enhanced (*) model, with encoder_channels = 256
    encoder_coords: bool = True
    encoder_channels: int = setting(64, at_least=1)
    pixel_order: Literal["rgb", "bgr"] = "bgr"  # of the pretrained weights; images are read as RGB
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # in pixel_order, as the original applies it
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: Literal["float32", "bfloat16"] = setting("float32", affects="precision")  # parameters stay float32
    remat: bool = setting(False, affects="speed")  # recompute blocks in the backward pass: less memory, more time

    def regions(self, num_things: int, num_stuff: int) -> RegionChannels:
        """The channels of the region head for so many classes."""
        return RegionChannels(num_things, num_stuff, num_things if self.region_classes == "all" else 1)

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            known = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
            if known and getattr(self, name) not in known:
                raise ConfigError(
                    f"config.model.{name}: must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
