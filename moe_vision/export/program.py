"""Programs of a trained network: StableHLO in `jax.export`'s own form, with the weights inside.

A program is a function of uint8 images [B, H, W, C] and bool valid [B] that returns the logits,
float32 [B, L]. B may be any whole number of routing groups; images that only fill the last group
have valid = False: they take no slots, and their logits mean nothing. It computes what the run's
evaluation computes of the same groups, with no kernel of a library.

Axes: B images, H and W height and width, C channels, L classes.
"""

import dataclasses
import math

import flatbuffers  # noqa: F401  # jax needs it to write programs, and does not bring it
import jax
import jax.numpy as jnp
from jax import export

import input_pipeline
from moe_vision import models
from moe_vision.common import platform
from moe_vision.common.errors import UserError
from moe_vision.config.places import with_eval_capacity
from moe_vision.export.options import PLATFORMS, UNBOUNDED
from moe_vision.models.parts import forward_fn
from moe_vision.training.trained import Trained

_MOST = 2**31 - 2**20  # bytes of a file of `jax.export`


def check_size(trained: Trained) -> None:
    """Raises UserError if the weights do not fit into a program."""
    size = sum(x.nbytes for x in jax.tree.leaves(trained.variables))
    if size > _MOST:
        raise UserError(
            f'the weights take {size:,} bytes, and a program holds at most {_MOST:,}; give '
            '--platforms=none to export them without programs.'
        )


def make(trained: Trained, on: str, capacity: str) -> export.Exported:
    """The program of a network for a platform, under a rule of capacity.

    Raises:
      UserError: the network cannot be traced, because of a method that is not of this package.
    """
    config, info = trained.config, trained.info
    model = dataclasses.replace(  # losses are for training alone
        config.model, moe=dataclasses.replace(config.model.moe, losses={})
    )
    if capacity == UNBOUNDED:
        model = with_eval_capacity(model, math.inf)
    network = models.build(model, info.num_classes)
    forward = forward_fn(network, *input_pipeline.mean_std(config.dataset))
    variables = jax.device_get(trained.variables)

    def logits(images: jax.Array, valid: jax.Array) -> jax.Array:
        return forward(variables, images, trained.told(valid=valid))[0]

    (b,) = export.symbolic_shape(batch(trained))
    images = jax.ShapeDtypeStruct((b, *info.image_shape), jnp.uint8)
    valid = jax.ShapeDtypeStruct((b,), jnp.bool_)
    try:
        with platform.plain(PLATFORMS[on]):
            return export.export(jax.jit(logits), platforms=[on])(images, valid)
    except Exception as e:  # of jax, of many types
        why = ' '.join(str(e).split())[:160]
        raise UserError(
            f'the network cannot be traced for any number of images ({why}); a method of your own '
            'must take sizes from x.shape, and not from len(x) or int().'
        ) from e


def batch(trained: Trained) -> str:
    """B in words: '16*g' where 16 images make a routing group, 'b' where there are no groups."""
    return 'b' if trained.unit == 1 else f'{trained.unit}*g'
