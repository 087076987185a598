"""The network of Panoptic FCN: a picture -> what is where (DenseOutputs), and the embedding of picked kernels."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from pfcn_jax.models.backbones.resnet import BACKBONES, ResNet, frozen_modules
from pfcn_jax.models.fpn import ENCODER_INPUTS, FPN, LEVEL_STRIDES, SemanticFPN, summed_pyramid
from pfcn_jax.models.heads import FeatureEncoder, KernelHead, PositionHead
from pfcn_jax.models.layers import INITIALIZERS
from pfcn_jax.types import LEVELS, SIZE_DIVISOR, DenseOutputs

# The original writes these means in RGB order and applies them to BGR pictures; its weights expect that.
CAFFE_MEAN, CAFFE_STD = (123.675, 116.28, 103.53), (1.0, 1.0, 1.0)


class PanopticFCN(nn.Module):
    """Panoptic FCN (paper section 3). The defaults are the base model; the enhanced one (Panoptic FCN*) has
    `encoder_deformable=True, encoder_channels=256`. Parameters are float32; `dtype` is what is computed with, except
    norms, statistics, sampling positions, position logits and embeddings, which are always float32.
    """

    num_things: int = 80
    num_stuff: int = 53
    backbone: str = "resnet50"
    backbone_norm: str = "frozen_bn"
    stride_in_1x1: bool = True
    deformable_stages: tuple[int, ...] = ()
    backbone_width: int = 64
    freeze_at: int = 2
    fpn_channels: int = 256
    head_channels: int = 256
    kernel_channels: int = 256
    position_convs: int = 3
    position_deformable: bool = True
    position_coords: bool = False
    region_classes: str = "stuff"  # the region head knows "any thing" and stuff, or "all" classes
    kernel_convs: int = 3
    kernel_deformable: bool = False
    kernel_coords: bool = True
    encoder_convs: int = 3
    encoder_deformable: bool = False
    encoder_coords: bool = True
    encoder_channels: int = 64
    encoder_input: str = "semantic_fpn"  # or "p2", "sum"
    pixel_mean: tuple[float, ...] = CAFFE_MEAN  # in `pixel_order`
    pixel_std: tuple[float, ...] = CAFFE_STD
    pixel_order: str = "bgr"
    dtype: Any = jnp.float32
    remat: bool = False  # recompute blocks in the backward pass: less memory on a GPU, a quarter more work

    @property
    def thing_regions(self) -> int:
        """Region channels of things: 1 ("any thing") or one for each thing class; the stuff classes follow."""
        return self.num_things if self.region_classes == "all" else 1

    def setup(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone {self.backbone!r}; known: {sorted(BACKBONES)}")
        if self.encoder_input not in ENCODER_INPUTS:
            raise ValueError(f"encoder_input {self.encoder_input!r}; known: {ENCODER_INPUTS}")
        if self.pixel_order not in ("rgb", "bgr"):
            raise ValueError(f"pixel_order {self.pixel_order!r}; known: 'rgb', 'bgr'")
        if self.region_classes not in ("stuff", "all"):
            raise ValueError(f"region_classes {self.region_classes!r}; known: 'stuff', 'all'")
        common: dict[str, Any] = {"dtype": self.dtype, "remat": self.remat}
        self.resnet = ResNet(
            depth=BACKBONES[self.backbone],
            norm=self.backbone_norm,
            stride_in_1x1=self.stride_in_1x1,
            deformable_stages=tuple(self.deformable_stages),
            width=self.backbone_width,
            freeze_at=self.freeze_at,
            name="backbone",
            **common,
        )
        self.fpn = FPN(self.fpn_channels, dtype=self.dtype)
        if self.encoder_input == "semantic_fpn":
            self.semantic_fpn = SemanticFPN(self.fpn_channels, **common)
        self.position_head = PositionHead(
            channels=self.head_channels,
            convs=self.position_convs,
            deformable=self.position_deformable,
            coords=self.position_coords,
            num_things=self.num_things,
            num_stuff=self.num_stuff,
            thing_regions=self.thing_regions,
            **common,
        )
        self.kernel_head = KernelHead(
            channels=self.head_channels,
            convs=self.kernel_convs,
            deformable=self.kernel_deformable,
            coords=self.kernel_coords,
            out_channels=self.kernel_channels,
            **common,
        )
        self.feature_encoder = FeatureEncoder(
            channels=self.encoder_channels,
            convs=self.encoder_convs,
            deformable=self.encoder_deformable,
            coords=self.encoder_coords,
            **common,
        )
        embedding = {"features": self.encoder_channels, "kernel_init": INITIALIZERS["output"], "dtype": jnp.float32}
        self.thing_embedding = nn.Dense(**embedding)
        self.stuff_embedding = nn.Dense(**embedding)

    def __call__(
        self, image: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"], extent: Int[Array, "B 2"] | None
    ) -> DenseOutputs:
        """Everything that the network says about a batch.

        Args:
          image: RGB, top-left in a canvas whose sides are multiples of 32.
          size: (height, width) of the picture in the canvas; beyond, the input is zero *after* normalisation.
          extent: (height, width) that is in use: `size` rounded up to multiples of 32. Nothing beyond has influence.
            None: the whole canvas (the same numbers as with the canvas' own size, and no masks are computed).
        """
        pyramid = self.pyramid(self.features(image, size, extent), extent)
        if self.is_initializing():  # the embeddings are called on picked kernels, outside of this function
            kernel = jnp.zeros((1, self.kernel_channels), jnp.float32)
            self.embed_things(kernel), self.embed_stuff(kernel)
        return self.heads(pyramid, extent)

    def features(
        self, image: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"], extent: Int[Array, "B 2"] | None
    ) -> dict[str, Array]:
        """Backbone features `stem`, `res2`..`res5` at strides 4, 4, 8, 16, 32."""
        if image.shape[1] % SIZE_DIVISOR or image.shape[2] % SIZE_DIVISOR:
            raise ValueError(f"canvas {image.shape[1:3]}: both sides must be multiples of {SIZE_DIVISOR}")
        return self.resnet(self.normalize(image, size), extent)

    def pyramid(self, features: dict[str, Array], extent: Int[Array, "B 2"] | None) -> dict[str, Array]:
        """`p2`..`p7` at strides 4..128, `fpn_channels` each."""
        return self.fpn(features, extent)

    def heads(self, pyramid: dict[str, Array], extent: Int[Array, "B 2"] | None) -> DenseOutputs:
        """The shared heads on p3..p7 and the encoded feature of stride 4."""
        positions = [self.position_head(pyramid[level], extent, LEVEL_STRIDES[level]) for level in LEVELS]
        kernel_map = tuple(self.kernel_head(pyramid[level], extent, LEVEL_STRIDES[level]) for level in LEVELS)
        if self.encoder_input == "semantic_fpn":
            merged = self.semantic_fpn(pyramid, extent)
        else:
            merged = pyramid["p2"] if self.encoder_input == "p2" else summed_pyramid(pyramid, extent)
        return DenseOutputs(
            center_logits=tuple(centers for centers, _ in positions),
            region_logits=tuple(regions for _, regions in positions),
            kernel_map=kernel_map,
            feature=self.feature_encoder(merged, extent),
        )

    def normalize(self, image: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"]) -> Float[Array, "B H W 3"]:
        """(pixel - mean) / std in the backbone's channel order, then zero beyond the picture."""
        if self.pixel_order == "bgr":
            image = image[..., ::-1]
        mean = jnp.asarray(self.pixel_mean, jnp.float32)[None, None, None, :]
        std = jnp.asarray(self.pixel_std, jnp.float32)[None, None, None, :]
        inside = jnp.arange(image.shape[1])[None, :, None] < size[:, 0, None, None]
        inside &= jnp.arange(image.shape[2])[None, None, :] < size[:, 1, None, None]
        return jnp.where(inside[..., None], (image.astype(jnp.float32) - mean) / std, 0.0)

    def embed_things(self, kernels: Float[Array, "*M K"]) -> Float[Array, "*M E"]:
        """Kernels of things as they are applied to the feature (a 1x1 convolution of the kernel map)."""
        return self.thing_embedding(kernels.astype(jnp.float32))

    def embed_stuff(self, kernels: Float[Array, "*M K"]) -> Float[Array, "*M E"]:
        """Kernels of stuff, after pooling over their region: the bias does not commute with the pooling."""
        return self.stuff_embedding(kernels.astype(jnp.float32))

    def frozen_paths(self) -> tuple[str, ...]:
        """Prefixes of parameter paths that get no gradient and must get no weight decay either."""
        return tuple(f"backbone/{name}" for name in frozen_modules(BACKBONES[self.backbone], self.freeze_at))


def init_variables(model: PanopticFCN, key: Array) -> dict[str, Any]:
    """Fresh variables: collections `params` and, with a frozen batch norm, `batch_stats`."""
    image = jnp.zeros((1, SIZE_DIVISOR, SIZE_DIVISOR, 3), jnp.uint8)
    size = jnp.full((1, 2), SIZE_DIVISOR, jnp.int32)
    return jax.jit(model.init)(key, image, size, size)
