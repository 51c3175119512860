"""Builds a config's optimizer from optax: warm-up, cosine, weight decay, transforms."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config import registry
from moe_vision.config.schema import Train
from moe_vision.training.frozen import Frozen
from moe_vision.transforms.chain import Transforms, held
from moe_vision.transforms.types import of_router

Mask = Callable[[optax.Params], optax.Params]


def adamw(
    args: registry.AdamwArgs, learning_rate: optax.Schedule, weight_decay: float, mask: Mask
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019), with weight decay where `mask` is True."""
    return optax.adamw(
        learning_rate, b1=args.b1, b2=args.b2, eps=args.eps, weight_decay=weight_decay, mask=mask
    )


def sgd(
    args: registry.SgdArgs, learning_rate: optax.Schedule, weight_decay: float, mask: Mask
) -> optax.GradientTransformation:
    """SGD with momentum and L2 regularisation: the decay term passes through the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum=args.momentum or None, nesterov=args.nesterov),
    )


def schedule(train: Train, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `train.learning_rate`, then a cosine to 0 at the last step."""
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else train.learning_rate,
        train.learning_rate,
        warmup_steps,
        max(total_steps, warmup_steps + 1),
    )


def make(
    train: Train, learning_rate: optax.Schedule, params: optax.Params
) -> optax.GradientTransformation:
    """The optimizer of a config for these parameters, of which only the structure is read.

    Raises:
      UserError: `train.trainable` matches no parameter.
    """
    entry = registry.entry('optimizer', registry.OPTIMIZERS, train.optimizer)
    build = registry.load(entry.path)
    core = build(train.optimizer_args, learning_rate, train.weight_decay, decays)
    if train.clip_norm:
        core = optax.chain(optax.clip_by_global_norm(train.clip_norm), core)
    frozen = Frozen(params, train.trainable)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: 'trained' if frozen.moves(path_name(path)) else 'kept', params
    )
    if 'trained' not in jax.tree.leaves(labels):
        names = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise UserError(
            f"train.trainable '{train.trainable}' matches no parameter; "
            f'there are {", ".join(names[:6])}, ...'
        )
    if frozen.nothing:
        return core
    return optax.partition({'trained': core, 'kept': optax.set_to_zero()}, labels)


def transformed(
    core: optax.GradientTransformation, transforms: Transforms
) -> optax.GradientTransformationExtraArgs:
    """The optimizer `core`, and the transforms behind it.

    Its `update` also takes `step`, the number of steps done before this one. Its state is that of
    `core` if there are no transforms, else {'optimizer': ..., 'transforms': ...}.
    """
    if not transforms:
        return optax.with_extra_args_support(core)

    def init(params: optax.Params) -> Any:
        return {'optimizer': core.init(params), 'transforms': transforms.init(params)}

    def update(grads: Any, state: Any, params: Any = None, **given: Any) -> tuple[Any, Any]:
        told = {'step': given['step'], 'state': state['transforms']}
        moves = transforms.moves(params, **told)
        updates, inner = core.update(held(grads, moves), state['optimizer'], params)
        updates, states = transforms.update(updates, params, **told)
        return held(updates, moves), {'optimizer': inner, 'transforms': states}

    return optax.GradientTransformationExtraArgs(init, update)


def decays(params: optax.Params) -> optax.Params:
    """True for each parameter that weight decay shrinks: matrices and filters outside routers."""

    def decays_one(path, leaf):
        name = path_name(path)
        # a bank's leading axis numbers its experts
        dims = leaf.ndim - bool(re.search('(^|/)(experts|branches)/', name))
        exempt = name.endswith(('bias', 'position', 'class_token')) or of_router(name)
        return dims >= 2 and not exempt

    return jax.tree_util.tree_map_with_path(decays_one, params)


def average(before: Any, params: optax.Params, step: jax.Array, decay: float) -> Any:
    """The moving average of the weights after `step` steps, from that of the step before.

    It is `params + d (before - params)`, where d = min(decay, (step - 1) / (step + 8)). So the
    initial values have no share in it, and a short run averages over about the last tenth of its
    steps; from step (8 decay + 1) / (1 - decay) on it is the plain moving average. Source:
    polynomial-decay averaging (Shamir and Zhang, 2013) with eta = 8. Weights that stand still keep
    their bits.

    Args:
      step: counts from 1.
    """
    d = jnp.minimum(decay, (step - 1) / (step + 8))
    return jax.tree.map(lambda e, p: p + d * (e - p), before, params)
