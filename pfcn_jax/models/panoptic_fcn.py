"""The network of Panoptic FCN: image -> DenseOutputs, and the embedding of picked kernels."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from pfcn_jax.models.backbones.registry import find_backbone
from pfcn_jax.models.fpn import FPN, LEVEL_STRIDES, SemanticFPN, summed_pyramid
from pfcn_jax.models.heads import FeatureEncoder, KernelHead, PositionHead
from pfcn_jax.models.layers import INITIALIZERS
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.types import LEVELS, SIZE_DIVISOR, DenseOutputs, RegionChannels


class PanopticFCN(nn.Module):
    """Panoptic FCN (paper section 3), as `options` describe it.

    Parameters are float32; `options.dtype` is the compute type, except for norms, statistics, sampling positions,
    position logits and embeddings, which are always float32.
    """

    num_things: int = 80
    num_stuff: int = 53
    options: ModelOptions = ModelOptions()

    @property
    def regions(self) -> RegionChannels:
        """The channels of the region head."""
        return self.options.regions(self.num_things, self.num_stuff)

    def setup(self) -> None:
        options = self.options
        common: dict[str, Any] = {"dtype": jnp.dtype(options.dtype), "remat": options.remat}
        self.backbone = find_backbone(options.backbone).build(options)
        self.fpn = FPN(options.fpn_channels, dtype=common["dtype"])
        if options.encoder_input == "semantic_fpn":
            self.semantic_fpn = SemanticFPN(options.fpn_channels, **common)
        self.position_head = PositionHead(
            channels=options.head_channels,
            convs=options.position_convs,
            deformable=options.position_deformable,
            coords=options.position_coords,
            regions=self.regions,
            **common,
        )
        self.kernel_head = KernelHead(
            channels=options.head_channels,
            convs=options.kernel_convs,
            deformable=options.kernel_deformable,
            coords=options.kernel_coords,
            out_channels=options.kernel_channels,
            **common,
        )
        self.feature_encoder = FeatureEncoder(
            channels=options.encoder_channels,
            convs=options.encoder_convs,
            deformable=options.encoder_deformable,
            coords=options.encoder_coords,
            **common,
        )
        embedding = {"features": options.encoder_channels, "kernel_init": INITIALIZERS["output"], "dtype": jnp.float32}
        self.thing_embedding = nn.Dense(**embedding)
        self.stuff_embedding = nn.Dense(**embedding)

    def __call__(
        self, image: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"], extent: Int[Array, "B 2"] | None
    ) -> DenseOutputs:
        """Dense outputs of a batch.

        Args:
          image: RGB, top-left in a canvas whose sides are multiples of 32.
          size: (height, width) of the image in the canvas; beyond, the input is zero *after* normalization.
          extent: (height, width) that is in use: `size` rounded up to multiples of 32. Nothing beyond has influence.
            None: the whole canvas (the same numbers as with the canvas' own size, and no masks are computed).
        """
        pyramid = self.pyramid(self.features(image, size, extent), extent)
        if self.is_initializing():  # the embeddings are called on picked kernels, outside of this function
            kernel = jnp.zeros((1, self.options.kernel_channels), jnp.float32)
            self.embed_things(kernel), self.embed_stuff(kernel)
        return self.heads(pyramid, extent)

    def features(
        self, image: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"], extent: Int[Array, "B 2"] | None
    ) -> dict[str, Array]:
        """Backbone features `res2`..`res5` at strides 4, 8, 16, 32."""
        if image.shape[1] % SIZE_DIVISOR or image.shape[2] % SIZE_DIVISOR:
            raise ValueError(f"canvas {image.shape[1:3]}: both sides must be multiples of {SIZE_DIVISOR}")
        return self.backbone(self.normalize(image, size), extent)

    def pyramid(self, features: dict[str, Array], extent: Int[Array, "B 2"] | None) -> dict[str, Array]:
        """`p2`..`p7` at strides 4..128, `fpn_channels` each."""
        return self.fpn(features, extent)

    def heads(self, pyramid: dict[str, Array], extent: Int[Array, "B 2"] | None) -> DenseOutputs:
        """The shared heads on p3..p7 and the encoded feature of stride 4."""
        positions = [self.position_head(pyramid[level], extent, LEVEL_STRIDES[level]) for level in LEVELS]
        kernel_map = tuple(self.kernel_head(pyramid[level], extent, LEVEL_STRIDES[level]) for level in LEVELS)
        if self.options.encoder_input == "semantic_fpn":
            merged = self.semantic_fpn(pyramid, extent)
        else:
            merged = pyramid["p2"] if self.options.encoder_input == "p2" else summed_pyramid(pyramid, extent)
        return DenseOutputs(
            center_logits=tuple(centers for centers, _ in positions),
            region_logits=tuple(regions for _, regions in positions),
            kernel_map=kernel_map,
            feature=self.feature_encoder(merged, extent),
        )

    def normalize(self, image: UInt8[Array, "B H W 3"], size: Int[Array, "B 2"]) -> Float[Array, "B H W 3"]:
        """(pixel - mean) / std in the backbone's channel order, then zero beyond the image."""
        if self.options.pixel_order == "bgr":
            image = image[..., ::-1]
        mean = jnp.asarray(self.options.pixel_mean, jnp.float32)[None, None, None, :]
        std = jnp.asarray(self.options.pixel_std, jnp.float32)[None, None, None, :]
        inside = jnp.arange(image.shape[1])[None, :, None] < size[:, 0, None, None]
        inside &= jnp.arange(image.shape[2])[None, None, :] < size[:, 1, None, None]
        return jnp.where(inside[..., None], (image.astype(jnp.float32) - mean) / std, 0.0)

    def embed_things(self, kernels: Float[Array, "*M K"]) -> Float[Array, "*M E"]:
        """Kernels of things as they are applied to the feature (a 1x1 convolution of the kernel map)."""
        return self.thing_embedding(kernels.astype(jnp.float32))

    def embed_stuff(self, kernels: Float[Array, "*M K"]) -> Float[Array, "*M E"]:
        """Kernels of stuff, after pooling over their region: the bias does not commute with the pooling."""
        return self.stuff_embedding(kernels.astype(jnp.float32))

    @nn.nowrap
    def frozen_paths(self) -> tuple[str, ...]:
        """Prefixes of parameter paths that get no gradient and must get no weight decay either."""
        backbone = find_backbone(self.options.backbone).build(self.options)
        return tuple(f"backbone/{name}" for name in backbone.frozen_modules(self.options.freeze_at))


def init_variables(model: PanopticFCN, key: Array) -> dict[str, Any]:
    """Fresh variables: collections `params` and, with a frozen batch norm, `batch_stats`."""
    image = jnp.zeros((1, SIZE_DIVISOR, SIZE_DIVISOR, 3), jnp.uint8)
    size = jnp.full((1, 2), SIZE_DIVISOR, jnp.int32)
    return jax.jit(model.init)(key, image, size, size)
