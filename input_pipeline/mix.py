"""Applies Mixup and CutMix on the device, with partners from the same routing group.

Sources: Zhang et al., mixup (arXiv 1710.09412); Yun et al., CutMix (arXiv 1905.04899).

Axes: B images, G groups, S images of a group (B = G * S), H height, W width, C channels,
N classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _own_weight(
    key: jax.Array, group_id: jax.Array, height: int, width: int, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Draws the mixture of one group.

    Returns:
        float32 [H, W], the weight of an image's own pixel (the partner gets the rest), and
        int32 [], a random number that sets the rotation of the group.
    """
    keys = jax.random.split(jax.random.fold_in(key, group_id), 6)
    rotation = jax.random.randint(keys[0], (), 0, jnp.iinfo(jnp.int32).max)
    ones = jnp.ones((height, width), jnp.float32)
    blended = pasted = ones
    if mixup:
        blended = ones * jax.random.beta(keys[1], mixup, mixup, dtype=jnp.float32)
    if cutmix:
        side = jnp.sqrt(1 - jax.random.beta(keys[2], cutmix, cutmix, dtype=jnp.float32))
        inside = []
        for size, axis_key in ((height, keys[3]), (width, keys[4])):
            cut = jnp.floor(size * side).astype(jnp.int32)
            first = jax.random.randint(axis_key, (), 0, size) - cut // 2
            pixel = jnp.arange(size)
            inside.append((pixel >= first) & (pixel < first + cut))
        pasted = 1.0 - (inside[0][:, None] & inside[1][None, :]).astype(jnp.float32)
    if mixup and cutmix:
        return jnp.where(jax.random.bernoulli(keys[5]), blended, pasted), rotation
    return (blended if mixup else pasted), rotation


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
    *,
    group_size: int,
    mixup: float,
    cutmix: float,
    group_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image with another image of its group.

    Each group draws its mixture from `key` folded with its id, so the result does not depend
    on how groups are spread over batches or devices. With both kinds on, it also draws one of
    the two. Rotating the group pairs the images, so no image is its own partner. A row does
    not change if it or its partner is invalid. Targets are mixed in the ratio of the pixels
    that are really kept: the box of CutMix is clipped at the border.

    Args:
        key: random key of the step.
        images: float [B, H, W, C].
        targets: float [B, N], one-hot or smoothed.
        valid: bool [B].
        group_size: S; each S consecutive images form a group.
        mixup: alpha of Mixup's Beta(alpha, alpha); 0 switches it off.
        cutmix: alpha of CutMix's Beta(alpha, alpha); 0 switches it off.
        group_ids: int32 [B // S], global ids of the groups.

    Returns:
        Mixed (images [B, H, W, C], targets [B, N]), in the dtypes of the inputs.

    Raises:
        ValueError: group_size does not divide B, or group_ids has another length.
    """
    batch, height, width = images.shape[:3]
    if group_size < 1 or batch % group_size or group_ids.shape != (batch // group_size,):
        raise ValueError(
            f'{batch} images cannot form groups of {group_size} with ids of shape '
            f'{group_ids.shape}; group_size must divide the batch, with one id per group.'
        )
    if not (mixup or cutmix) or group_size == 1:
        return images, targets

    own, rotation = jax.vmap(lambda group: _own_weight(key, group, height, width, mixup, cutmix))(
        group_ids
    )  # [G, H, W], [G]
    shift = 1 + rotation % (group_size - 1)
    own_index = jnp.arange(group_size)
    partner = (own_index + shift[:, None]) % group_size  # [G, S]

    def grouped(x: jax.Array) -> jax.Array:
        return x.reshape(-1, group_size, *x.shape[1:])

    def pick(x: jax.Array, index: jax.Array) -> jax.Array:
        return jax.vmap(lambda rows, i: rows[i])(x, index)

    both_valid = grouped(valid) & pick(grouped(valid), partner)  # [G, S]
    partner = jnp.where(both_valid, partner, own_index)
    weight = jnp.where(both_valid[..., None, None], own[:, None], 1.0)  # [G, S, H, W]
    share = weight.mean((2, 3))

    def blend(x: jax.Array, weight: jax.Array) -> jax.Array:
        rows = grouped(x)
        other = pick(rows, partner)
        return (rows * weight + other * (1 - weight)).astype(x.dtype).reshape(x.shape)

    return blend(images, weight[..., None]), blend(targets, share[..., None])
