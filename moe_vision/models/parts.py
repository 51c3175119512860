"""What the backbones share: norms, classifier, stochastic depth, rematerialised blocks, and how a
batch of images goes into them.

Axes: B images, H W space, N patches, D channels, L classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_vision.common.streams import NetworkStream
from moe_vision.config.placement import HEADS
from moe_vision.layers import Step, convolution
from moe_vision.models.branch import Infos, run_place

Array = jax.Array

Conv = functools.partial(nn.Conv, conv_general_dilated=convolution.in_flax)
BATCH_NORM_MOMENTUM = 0.9  # of the running averages that evaluation uses
HE = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


class Norm(nn.Module):
    """Batch norm over the valid images of the global batch, or group norm per image.

    Where no image is valid, batch norm takes all of them: a mean over none would be NaN, and so
    would be the gradient of `scale`, although no output counts.

    In evaluation, batch norm uses running averages over training batches. After n updates they hold
    0.9^n of their initial values, mean 0 and variance 1, and they lag behind weights that still
    move fast. So a run of a few dozen steps scores far less than on its training batches, all the
    more with k = 1: the router sees features in another frame and sends them all to one expert.
    """

    kind: str
    dtype: str
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x, step: Step):
        if self.kind == 'group':
            return nn.GroupNorm(
                num_groups=8, dtype=self.dtype, scale_init=self.scale_init, name='norm'
            )(x)
        mask = None
        if step.train and step.valid is not None:
            counted = step.valid | ~step.valid.any()
            mask = counted.reshape(-1, *(1,) * (x.ndim - 1))
        norm = nn.BatchNorm(
            use_running_average=not step.train,
            momentum=BATCH_NORM_MOMENTUM,
            dtype=self.dtype,
            scale_init=self.scale_init,
            name='norm',
        )
        return norm(x, mask=mask)


def layer_norm(args: Any, dtype: str) -> Callable[..., nn.Module]:
    """`nn.LayerNorm` as the arguments of a backbone say."""
    return functools.partial(
        nn.LayerNorm,
        dtype=dtype,
        epsilon=args.norm_epsilon,
        use_fast_variance=not args.exact_variance,
    )


def padding(args: Any, taps: int, stride: int) -> str | tuple[tuple[int, int], ...]:
    """The padding of a convolution or a pooling with a stride, as the arguments of a backbone say.

    torch has no SAME: its networks pad both sides by (taps - stride + 1) // 2, such as by 3 for 7
    taps, by 1 for 3, by 0 for 1 and wherever patches do not overlap.
    """
    if args.padding == 'same':
        return 'SAME'
    zeros = max(taps - stride + 1, 0) // 2
    return ((zeros, zeros),) * 2


def run_block(net: nn.Module, block: Callable, x: Array, infos: Infos) -> Array:
    """Runs `block(net, x, infos)`. With `model.remat` the backward pass recomputes it from x."""

    def run(net, x, carry, shared):
        own = Infos(carry, shared)
        return block(net, x, own), own.by_layer, own.carry

    recompute = net.model.remat and not net.is_initializing()
    x, by_layer, infos.carry = (nn.remat(run) if recompute else run)(
        net, x, infos.carry, infos.shared
    )
    infos.by_layer |= by_layer
    return x


def drop_path(y: Array, step: Step, rate: float, block: int, blocks: int, branch: int = 0) -> Array:
    """Stochastic depth (Huang et al. 2016): in training, sets the branch of some images to zero.

    Block i of n leaves out an image with probability p = rate * i / (n - 1), and divides the
    branches of the other images by 1 - p. Keys derive from the step's key, the block, the branch
    and the image's place in the step. In a routed block this happens after the outputs of experts
    are combined. So routing, capacity, losses and telemetry see every image, and an image that is
    left out still holds its slots.

    Args:
      y: the branch of each image, [B, ...].
      rate: p of the last block.
      block: i, from 0.
      blocks: n.
      branch: which branch of the block, in blocks that have several.

    Raises:
      ValueError: an image may be left out and `step` has no key.
    """
    p = rate * block / (blocks - 1) if blocks > 1 else rate
    if not (step.train and p):
        return y
    if step.key is None:
        raise ValueError('stochastic depth draws at random: give the step a key')
    key = jax.random.fold_in(step.key, NetworkStream.DROP_PATH)
    key = jax.random.fold_in(jax.random.fold_in(key, block), branch)
    images = step.start + jnp.arange(y.shape[0])
    kept = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - p))(images)
    return jnp.where(kept.reshape(-1, *(1,) * (y.ndim - 1)), y / (1 - p), jnp.zeros((), y.dtype))


def classify(net: nn.Module, x: Array, step: Step, infos: Infos, hidden: int) -> Array:
    """Logits [B, classes], float32, of pooled vectors x [B, D].

    With placement 'head' a routed residual block of this hidden width comes before the classifier;
    with 'pure_head' it has no shortcut, so what is dropped reaches the classifier as zeros.
    """
    if net.model.moe.placement in HEADS:
        y = run_place(net, 'head', 0, x, step, infos, hidden=hidden)
        x = x + y if net.model.moe.placement == 'head' else y
    logits = nn.Dense(net.num_classes, dtype=net.model.dtype, name='classifier')(x)
    return jnp.asarray(logits, jnp.float32)


def normalize_images(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """Turns uint8 [B, H, W, C] into float32: scales to [0, 1], then subtracts `mean` and divides by
    `std`, [C] each."""
    scaled = images.astype(jnp.float32) / 255.0
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def forward_fn(model: nn.Module, mean, std) -> Callable:
    """`forward(variables, images, step)`: logits [B, L] in float32, and what routed layers report,
    of uint8 images [B, H, W, C], as they are scored, predicted and exported."""

    def forward(variables: Any, images: Array, step: Step) -> tuple[Array, dict[str, Any]]:
        logits, infos = model.apply(variables, normalize_images(images, mean, std), step)
        return jnp.asarray(logits), dict(infos)

    return forward


def extras_of(batch: dict[str, Array]) -> dict[str, Array]:
    """What a batch tells routers about its images, [B] each: their domain, if the set has any."""
    return {name: batch[name] for name in ('domain',) if name in batch}
