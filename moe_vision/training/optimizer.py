"""Builds a config's optimizer from optax: warm-up, cosine, weight decay, frozen parameters."""

import re
from collections.abc import Callable

import jax
import optax

from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config import registry
from moe_vision.config.schema import Train

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
    pattern = re.compile(train.trainable)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: 'trained' if pattern.search(path_name(path)) else 'kept', params
    )
    used = set(jax.tree.leaves(labels))
    if 'trained' not in used:
        names = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise UserError(
            f"train.trainable '{train.trainable}' matches no parameter; "
            f'there are {", ".join(names[:6])}, ...'
        )
    if used == {'trained'}:
        return core
    return optax.partition({'trained': core, 'kept': optax.set_to_zero()}, labels)


def decays(params: optax.Params) -> optax.Params:
    """True for each parameter that weight decay shrinks: matrices and filters outside routers."""

    def decays_one(path, leaf):
        name = path_name(path)
        # a bank's leading axis numbers its experts
        dims = leaf.ndim - bool(re.search('(^|/)(experts|branches)/', name))
        exempt = name.endswith(('bias', 'position', 'class_token')) or '/router/' in f'/{name}'
        return dims >= 2 and not exempt

    return jax.tree_util.tree_map_with_path(decays_one, params)
