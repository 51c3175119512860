"""Sequences of tokens, such as the patches of images, as the routed layer takes them.

It routes the B N tokens of x [B, N, D] in this order. `valid` and `labels` of a step may be [B, N],
and 'choices' come back as [B, N, K].

Axes: B sequences, N tokens of a sequence, D width, K choices.
"""

import dataclasses
from typing import Any

import jax

from moe_vision.common.place import Place
from moe_vision.layers.route import Step


def flat(x: jax.Array, step: Step, place: Place) -> tuple[jax.Array, Step, Place]:
    """x [B, N, D] as tokens [B N, D], and the step and the place for these.

    Raises:
      ValueError: the place has another number of tokens per image.
    """
    n = x.shape[1]
    if place.tokens_per_image not in (1, n):
        raise ValueError(f'tokens_per_image is {place.tokens_per_image}, but x has {n} in a row')
    of_tokens = {
        name: value.reshape(-1)
        for name in ('valid', 'labels')
        if (value := getattr(step, name)) is not None
    }
    place = dataclasses.replace(place, tokens_per_image=n)
    return x.reshape(-1, x.shape[-1]), dataclasses.replace(step, **of_tokens), place


def whole(y: jax.Array, info: dict[str, Any], given: tuple[int, ...]) -> Any:
    """(y, info) of a layer in the form of x, whose shape was `given`; 'choices' are [B, N, K]."""
    if len(given) == y.ndim:
        return y, info
    choices = {n: c.reshape(*given[:2], -1) for n, c in info['choices'].items()}
    return y.reshape(given), info | {'choices': choices}
