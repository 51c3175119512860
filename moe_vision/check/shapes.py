"""Checks by shape of what a network and a router's state must be; nothing runs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_vision import models
from moe_vision.common.errors import UserError
from moe_vision.config import own_code
from moe_vision.config.schema import Model
from moe_vision.layers import DenseBlock, MoE, Step
from moe_vision.layers.experts import Expert
from moe_vision.routing.router import Router
from moe_vision.routing.types import as_state, expect

Own = dict[str, str]  # where a method is named, such as a key of the config -> 'module:Class'
Experts = list[tuple[Expert, tuple[int, ...], Any]]  # experts, shape and type of their tokens


def network(model: Model, image_shape: tuple[int, ...], num_classes: int, images: int) -> Experts:
    """Traces a training and an evaluation step, forward, and checks what the network returns.

    Returns:
      Its experts, those of a twin's dense blocks too.
    """
    found: Experts = []

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name == '__call__' and isinstance(module, MoE | DenseBlock):
            x: Any = args[0] if args else kwargs['x']
            made = module.expert if isinstance(module, DenseBlock) else None
            made = made or module.make_experts(x.shape[-1])
            token = x.shape[1:] if x.ndim == 4 else x.shape[-1:]
            found.extend((kind, token, x.dtype) for kind, _ in made.parts(1))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        _network(model, image_shape, num_classes, images)
    return found


def _network(model: Model, image_shape: tuple[int, ...], num_classes: int, images: int) -> None:
    net = models.build(model, num_classes)
    x = jax.ShapeDtypeStruct((images, *image_shape), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: net.init(key, x, Step.example(images)), x)
    labels, valid = jnp.zeros(images, jnp.int32), jnp.ones(images, bool)
    for train in (True, False):
        known = {'valid': valid, 'key': key, 'labels': labels, 'num_classes': num_classes}
        step = Step.example(images, train=train, **known)
        out = jax.eval_shape(
            lambda v, x, step=step: net.apply(v, x, step, mutable=['batch_stats'])[0], variables, x
        )
        what = f"backbone '{model.name}'"
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
            given = f'{len(out)} values' if isinstance(out, tuple) else f'a {type(out).__name__}'
            raise UserError(
                f'{what} returned {given}; expected (logits, reports of routed layers by path).'
            )
        expect(f'{what}: logits', out[0], (images, num_classes), 'float32', '[B, classes]')
        if model.moe.placement != 'none' and model.twin == 'none' and not out[1]:
            raise UserError(
                f'{what} reports no routed layer, but model.moe.placement is '
                f"'{model.moe.placement}'; return (logits, infos.by_layer)."
            )


def state(made: Router, observed: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Checks that `update_state` keeps the names, shapes and types of `init_state`, and the same
    for what routers share.

    Args:
      observed: what the router observes in a step.

    Raises:
      UserError: the first array that it changes.
    """
    sums = {
        **observed,
        'chosen': jax.ShapeDtypeStruct((made.num_ids,), jnp.float32),
        'tokens': jax.ShapeDtypeStruct((), jnp.float32),
    }
    _kept(made, 'init_state', 'update_state', sums)
    _kept(made, 'init_shared_state', 'update_shared_state', [sums])


def _kept(made: Router, initial: str, update: str, sums: Any) -> None:
    name = type(made).__name__
    what, before = f'{name}.{update}', as_state(f'{name}.{initial}', getattr(made, initial)())
    before = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, before))
    after = jax.eval_shape(getattr(made, update), before, sums)
    if not isinstance(after, dict) or set(after) != set(before):
        given = sorted(after) if isinstance(after, dict) else f'a {type(after).__name__}'
        raise UserError(f'{what} returned {given}; expected {sorted(before)}, as in {initial}.')
    for key, array in before.items():
        expect(f"{what}: '{key}'", after[key], array.shape, array.dtype, f'as in {initial}')


@contextlib.contextmanager
def named(own: Own) -> Iterator[None]:
    """Turns what the user's own code raises in this context into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        blamed = own_code.blamed(e, own.values())
        if not blamed:
            raise
        who = ' or '.join(
            key if path in key else f"{key} '{path}'" for key, path in own.items() if path in blamed
        )
        path = blamed[0]
        line = own_code.told(e, path.partition(':')[0]).rstrip('.')
        raise UserError(f'{who}: {line}{own_code.due(e, path)}.') from e
