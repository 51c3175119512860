"""How much of each loss reaches the routers of a network, as a pure function of pytrees."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from moe_vision.common.paths import path_name
from moe_vision.layers import Step
from moe_vision.models.parts import extras_of, normalize_images
from moe_vision.training.step import TrainState


def router_norms_fn(
    network: nn.Module, layers: Sequence[str], label_smoothing: float, num_classes: int, mean, std
) -> Callable:
    """`norms(state, batch, fraction)` -> {'task', 'balance'} -> layer -> norm of the gradient.

    The batch has arrays [1, B, ...].

    Args:
      layers: names of the routed layers.
      mean, std: of the data set's channels, [C] each.
    """

    def is_router(path) -> bool:
        return any(path_name(path).startswith(f'{layer}/router/') for layer in layers)

    def norms(state: TrainState, batch: dict[str, jax.Array], fraction: jax.Array):
        images, labels, valid = (batch[n][0] for n in ('image', 'label', 'valid'))
        images = normalize_images(images, mean, std)
        scored = state.variables(averaged=True)
        leaves = jax.tree_util.tree_leaves_with_path(scored['params'])
        routers = {path_name(path): leaf for path, leaf in leaves if is_router(path)}

        def losses(routers):
            params = jax.tree_util.tree_map_with_path(
                lambda path, leaf: routers.get(path_name(path), leaf), scored['params']
            )
            step = Step(
                valid=valid,
                key=jax.random.key(0),
                fraction=fraction,
                labels=labels,
                extras=extras_of({n: x[0] for n, x in batch.items()}),
                train=True,
            )
            (logits, infos), _ = network.apply(
                {**scored, 'params': params}, images, step, mutable=['batch_stats']
            )
            targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)
            task = jnp.where(valid, optax.softmax_cross_entropy(logits, targets), 0.0).sum()
            balance = sum(
                (jnp.sum(v) for i in infos.values() for v in i['losses'].values()),
                start=jnp.float32(0),
            )
            return {'task': task / jnp.maximum(valid.sum(), 1), 'balance': balance}

        values, pull = jax.vjp(losses, routers)
        out = {}
        for kind in values:
            (gradient,) = pull({name: jnp.float32(name == kind) for name in values})
            out[kind] = {
                layer: optax.tree.norm(
                    [g for name, g in gradient.items() if name.startswith(f'{layer}/router/')]
                )
                for layer in layers
            }
        return out

    return norms
