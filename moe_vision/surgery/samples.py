"""Runs the network that surgery begins with on images of its data, and adds up what is seen there.

The images are the first of training (without augmentation) or of validation in the order of
evaluation, never those of test. Every image is a routing group of its own with room for all its
choices, as in `predict`, so what is seen of an image does not depend on the others.

Axes: B images of a batch, N tokens of them, G groups, T tokens of a group.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import input_pipeline
from moe_vision import leverage, models
from moe_vision.common.errors import UserError
from moe_vision.config.places import compares_images, of_one_image
from moe_vision.config.schema import Config
from moe_vision.layers import DenseBlock, Step
from moe_vision.layers.experts import Expert
from moe_vision.models.parts import extras_of, forward_fn
from moe_vision.routing.types import Context, Routing, SoftRouting
from moe_vision.surgery.state import COLLECTIONS, State, leaves

Array = jax.Array
Batch = dict[str, Any]  # of `input_pipeline.evaluation_batches`
Sums = dict[str, dict[str, np.ndarray]]  # by the path of a block or layer
OfBlock = Callable[[Expert, dict[str, Array], Array, Array], dict[str, Array]]
OfRouting = Callable[[Routing | SoftRouting, Context], dict[str, Array]]
_BATCH = 32  # images at a time


def of_blocks(
    source: State, config: Config, args: Any, blocks: Collection[str], look: OfBlock
) -> Sums:
    """What `look` makes of what dense blocks read, summed over the images.

    Args:
      source, config: of the network.
      args: `samples`, how many images, and `samples_of`, 'train' or 'validation'.
      blocks: their paths.
      look: (expert, its parameters, x [N, *, D], counted [N] bool) -> arrays.

    Raises:
      UserError: the network has no such dense block, its data is not what it was, or its experts
        choose among images.
    """
    network = _Network(source, config)

    def on_batch(variables: Any, batch: Batch, start: Array | int) -> dict[str, Any]:
        found = {}

        def intercept(call, given, options, context):
            module, path = context.module, '/'.join(context.module.path)
            if path in blocks and isinstance(module, DenseBlock) and module.branches == 1:
                x, images = given[0], len(batch['valid'])
                counted = batch['valid'][np.repeat(np.arange(images), len(x) // images)]
                found[path] = look(module.expert, module.variables['params'], x, counted)
            return call(*given, **options)

        with nn.intercept_methods(intercept):
            network.apply(variables, batch, start)
        if missing := [b for b in blocks if b not in found]:
            raise UserError(f"the network there has no dense block '{missing[0]}' to look into.")
        return found

    return _summed(network, config, args, on_batch)


def of_routes(source: State, config: Config, args: Any, look: OfRouting) -> Sums:
    """What `look` makes of each routed layer's routing, summed over the images.

    Args:
      source, config, args: as in `of_blocks`.
      look: (routing, context) -> arrays; `context.valid` says which tokens count.
    """
    network = _Network(source, config)

    def on_batch(variables: Any, batch: Batch, start: Array | int) -> dict[str, Any]:
        shown = _Look(look, {})
        _, infos = network.apply(variables, batch, start, shown)
        return {path: shown.found[layer] for layer, path in enumerate(infos)}

    return _summed(network, config, args, on_batch)


def gradients(source: State, config: Config, args: Any) -> Iterator[dict[str, np.ndarray]]:
    """The gradient of the mean cross-entropy of each batch of the images, by path of a parameter.

    Args:
      source, config, args: as in `of_blocks`.
    """
    network = _Network(source, config)

    @jax.jit
    def on_batch(variables: Any, batch: Batch, start: Array | int) -> Any:
        def loss(params: Any) -> Array:
            logits, _ = network.apply({**variables, 'params': params}, batch, start)
            each = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch['label'][:, None], 1)
            counted = batch['valid']
            return jnp.sum(jnp.where(counted, each[:, 0], 0.0)) / jnp.maximum(counted.sum(), 1)

        return jax.grad(loss)(variables['params'])

    for number, batch in enumerate(_batches(config, args)):
        yield leaves(jax.device_get(on_batch(network.variables, batch, number * _BATCH)))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _Look:
    """An intervention that changes nothing and keeps what it is shown, by layer."""

    look: OfRouting
    found: dict[int, Any]

    def __call__(self, routing: Any, context: Context, layer: int, num_experts: int) -> Any:
        del num_experts
        self.found[layer] = self.look(routing, context)
        return routing


class _Network:
    """A network as a function of batches of images.

    Attributes:
      variables: the first argument of `apply`.
    """

    def __init__(self, source: State, config: Config):
        info = input_pipeline.info(config.dataset)
        if source.class_names and len(source.class_names) != info.num_classes:
            raise UserError(
                f"the network there tells {len(source.class_names)} classes, but '{info.name}' has "
                f'{info.num_classes} by now.'
            )
        tokens = leverage.tokens_per_image(config, info)
        if compares_images(config.model, tokens):
            raise UserError(
                f"experts of router '{config.model.moe.router}' there choose among the images of a "
                'group, so samples tell nothing one by one; run none: split with --by=weights '
                'and --router=drawn, merge with --by=weights, compress with --importance=magnitude.'
            )
        model = of_one_image(config.model, tokens)
        moe = dataclasses.replace(model.moe, losses={})  # which nobody reads here
        model = dataclasses.replace(model, moe=moe, remat=False)
        network = models.build(model, info.num_classes)
        self._forward = forward_fn(network, *input_pipeline.mean_std(config.dataset))
        self.variables = {
            c: traverse_util.unflatten_dict(dict(getattr(source, c)), sep='/') for c in COLLECTIONS
        }

    def apply(
        self, variables: Any, batch: Batch, start: Array | int, intervention: Any = None
    ) -> Any:
        """Logits [B, classes] and reports of routed layers, to be traced.

        Args:
          start: place of the first image among all.
        """
        step = Step(
            valid=batch['valid'],
            key=jax.random.key(0),
            fraction=1.0,
            extras=extras_of(batch),
            start=start,
            intervention=intervention,
        )
        return self._forward(variables, batch['image'], step)


def _summed(
    network: _Network, config: Config, args: Any, on_batch: Callable[..., dict[str, Any]]
) -> Sums:
    total: Sums = {}
    on_batch = jax.jit(on_batch)
    for number, batch in enumerate(_batches(config, args)):
        found = jax.device_get(on_batch(network.variables, batch, number * _BATCH))
        for path, arrays in found.items():
            sums = total.setdefault(path, {})
            for name, x in arrays.items():
                sums[name] = sums.get(name, 0.0) + np.asarray(x, np.float64)
    return total


def _batches(config: Config, args: Any) -> Iterator[Batch]:
    """The images, in batches of one size; `valid` is False for what is not to be counted."""
    info, split = input_pipeline.info(config.dataset), args.samples_of
    if split not in info.split_sizes:
        raise UserError(f"samples_of is '{split}', but {info.name} has no such images.")
    with input_pipeline.evaluation_batches(
        config.dataset, split=split, batch_size=_BATCH, rows=range(_BATCH), strict=False
    ) as batches:
        for number, batch in enumerate(batches):
            left = args.samples - number * _BATCH
            if left <= 0:
                return
            yield batch | {'valid': batch['valid'] & (np.arange(_BATCH) < left)}
