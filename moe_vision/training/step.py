"""Defines one optimizer step and one evaluation step as pure functions of pytrees.

Axes: A micro-batches, B images of a micro-batch, L classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from input_pipeline import mix
from moe_vision.common import platform
from moe_vision.common.streams import SeedStream, StepStream
from moe_vision.config import registry
from moe_vision.config.placement import HEADS
from moe_vision.config.places import reads_labels
from moe_vision.config.schema import Config
from moe_vision.layers import Step
from moe_vision.models.parts import extras_of, forward_fn, normalize_images
from moe_vision.training import draws, optimizer
from moe_vision.training.frozen import Frozen
from moe_vision.training.router_state import (
    still_where_settled,
    updated_router_state,
    where_settled,
)
from moe_vision.transforms.chain import Transforms

Array = jax.Array
Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a run needs to continue."""

    step: Array  # int32 scalar: optimizer steps done
    seed_key: Array  # key data of the run's seed; each key of a step derives from it and the step
    params: Tree
    batch_stats: Tree
    router_state: Tree
    opt_state: Tree
    ema: Tree  # the average that is scored, as `optimizer.average` makes it; {} without ema_decay

    def variables(self, averaged: bool = False) -> dict[str, Tree]:
        """The variables for `apply`; `averaged` takes the moving average of the weights, if any."""
        params = self.ema if averaged and jax.tree.leaves(self.ema) else self.params
        return {
            'params': params,
            'batch_stats': self.batch_stats,
            'router_state': self.router_state,
        }


def init_variables_fn(
    model: nn.Module, image_shape: tuple[int, int, int], batch: int
) -> Callable[[Array], Tree]:
    """`init(key)`: a network's variables before the first step, derived from the seed's key and
    each parameter's path. The network is traced here, once."""

    def init(key: Array) -> Tree:
        images = jnp.zeros((batch, *image_shape), jnp.float32)  # here it takes no memory
        key = jax.random.fold_in(key, SeedStream.INITIAL_VALUES)
        return model.init(key, images, Step.example(batch))

    return jax.jit(draws.in_loops(init))


def init_state(
    variables: Tree, key: Array, tx: optax.GradientTransformation, ema: bool
) -> TrainState:
    """The state before the first step."""
    params = variables['params']
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed_key=jax.random.key_data(jax.random.fold_in(key, SeedStream.STEPS)),
        params=params,
        batch_stats=variables.get('batch_stats', {}),
        router_state=variables.get('router_state', {}),
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
    )


def train_step_fn(
    model: nn.Module,
    config: Config,
    tx: optax.GradientTransformationExtraArgs,
    transforms: Transforms,
    learning_rate: optax.Schedule,
    total_steps: int,
    num_classes: int,
    images_per_group: int,
    mean,
    std,
) -> Callable:
    """`step(state, batch) -> (state, metrics)`; batch arrays are [A, B, ...].

    The loss is the mean over all valid images of the A micro-batches. Gradients, losses and
    telemetry are summed over the micro-batches; router state is updated once, from the sums.

    Args:
      tx: the optimizer, as `optimizer.transformed` returns it for these transforms.
      images_per_group: images that share capacity, as the function of this name returns it.
      mean, std: of the data set's channels, [C] each.
    """
    train, moe = config.train, config.model.moe
    routed = moe.placement != 'none' and config.model.twin == 'none'
    taught = routed and reads_labels(moe)

    def loss_fn(params, batch_stats, router_state, micro, key, start, known, total_valid, parts):
        valid, labels = micro['valid'], micro['label']
        images = normalize_images(micro['image'], mean, std)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), train.label_smoothing)
        if train.mixup or train.cutmix:
            size = mixing_group(images_per_group, len(images))
            groups = start // size + jnp.arange(len(images) // size)
            images, targets = mix.mix(
                jax.random.fold_in(key, StepStream.MIXING),
                images,
                targets,
                valid,
                group_size=size,
                mixup=train.mixup,
                cutmix=train.cutmix,
                group_ids=groups,
            )
        # A supervised router learns the class that has the larger part in a mixed image.
        step = Step(
            valid=valid,
            key=jax.random.fold_in(key, StepStream.NETWORK),
            start=start,
            labels=jnp.argmax(targets, -1) if taught else None,
            extras=extras_of(micro),
            train=True,
            **known,
        )
        (logits, infos), updates = model.apply(
            {'params': params, 'batch_stats': batch_stats, 'router_state': router_state},
            images,
            step,
            mutable=['batch_stats'],
        )
        each = optax.softmax_cross_entropy(logits, targets)
        task = jnp.sum(jnp.where(valid, each, 0.0)) / total_valid
        aux = {
            name: sum(
                where_settled(step.settled_at(layer), jnp.zeros(()), i['losses'][name])
                for layer, i in infos.items()
            )
            / parts
            for name in sorted({n for i in infos.values() for n in i['losses']})
        }
        accuracy = jnp.sum(valid & (jnp.argmax(logits, -1) == labels)) / total_valid
        sums = {
            'task_loss': task,
            'accuracy': accuracy,
            'losses': aux,
            'layers': {layer: i['telemetry'] for layer, i in infos.items()},
            'observed': {layer: (i['observed'], i['place']) for layer, i in infos.items()},
            'changed': {layer: i['changed'] for layer, i in infos.items()},
        }
        return task + sum(aux.values()), (sums, updates.get('batch_stats', {}))

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Any]]:
        parts, rows = batch['label'].shape
        key = jax.random.fold_in(jax.random.wrap_key_data(state.seed_key), state.step)
        fraction = state.step / total_steps
        told = state.opt_state['transforms'] if transforms else {}
        settled = transforms.settled(step=state.step, state=told)
        compared = transforms.compared(step=state.step, state=told)
        known = {'fraction': fraction, 'settled': settled, 'compared': compared}
        total_valid = jnp.maximum(batch['valid'].sum(), 1).astype(jnp.float32)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        frozen = Frozen(state.params, train.trainable)

        def one_part(batch_stats, micro, part):
            with frozen.norms():
                (loss, (sums, stats)), grads = gradient(
                    state.params,
                    batch_stats,
                    state.router_state,
                    micro,
                    key,
                    part * rows,
                    known,
                    total_valid,
                    parts,
                )
            return frozen.keep(stats, batch_stats), (grads, {'loss': loss, **sums})

        first = jax.tree.map(lambda x: x[0], batch)
        stats, total = one_part(state.batch_stats, first, 0)
        if parts > 1:

            def next_part(carry, xs):
                stats, total = carry
                stats, added = one_part(stats, *xs)
                return (stats, jax.tree.map(jnp.add, total, added)), None

            rest = jax.tree.map(lambda x: x[1:], batch)
            # Unrolled on a CPU, where gradients of convolutions in a loop are many times slower.
            (stats, total), _ = jax.lax.scan(
                next_part,
                (stats, total),
                (rest, jnp.arange(1, parts)),
                unroll=platform.target() == 'cpu',
            )
        # Statistics of masked images are not kept. A `where` would change the rounding of others.
        stats = jax.lax.cond(
            batch['valid'].any(1).all(),
            lambda new, old: new,
            lambda new, old: old,
            stats,
            state.batch_stats,
        )
        grads, metrics = total
        observed, changed = metrics.pop('observed'), metrics.pop('changed')

        updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
        if transforms:
            opt_state = opt_state | {
                'transforms': transforms.observe(
                    metrics['layers'],
                    changed,
                    state.params,
                    step=state.step,
                    state=opt_state['transforms'],
                )
            }
        params = optax.apply_updates(state.params, updates)
        router_state = state.router_state
        if routed and router_state:
            router_state = updated_router_state(moe, router_state, metrics['layers'], observed)
            router_state = frozen.keep(router_state, state.router_state)
            router_state = still_where_settled(settled, state.router_state, router_state)
        ema = state.ema
        if train.ema_decay:
            ema = optimizer.average(ema, params, state.step + 1, train.ema_decay)
        metrics |= {
            'grad_norm': optax.tree.norm(grads),
            'learning_rate': learning_rate(state.step),
            'bad_images': jnp.sum(~batch['valid']),
        }
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=stats,
            router_state=router_state,
            opt_state=opt_state,
            ema=ema,
        )
        if train.skip_nonfinite:
            finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
            new = dataclasses.replace(
                jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state), step=new.step
            )
        return new, metrics

    return step


def mixing_group(images_per_group: int, images: int) -> int:
    """How many neighbouring images mixup and CutMix mix among each other.

    They must lie in one routing group, and at most four of them so that they also lie on one device
    when a group spans several (a batch of 1,024 leaves each of 256 devices four images). So this is
    the largest divisor up to 4 of the group, or of all images where nothing is routed.

    Args:
      images: of a micro-batch.
    """
    whole = images_per_group if images_per_group > 1 else images
    return max((n for n in range(2, 5) if whole % n == 0), default=whole)


def eval_step_fn(model: nn.Module, num_classes: int, mean, std) -> Callable:
    """`step(variables, batch, key, start, fraction)`: results [B] and telemetry of a batch.

    Batch arrays are [1, B, ...]; `start` is the place of the first image in the split. Losses are
    without label smoothing, and 0 for padding. An `intervention` changes the routes of the layers.
    """
    forward = forward_fn(model, mean, std)

    def step(variables, batch, key, start, fraction, intervention=None):
        batch = jax.tree.map(lambda x: x[0], batch)
        valid, labels = batch['valid'], batch['label']
        info = Step(
            valid=valid,
            key=key,
            fraction=fraction,
            labels=labels,
            extras=extras_of(batch),
            start=start,
            num_classes=num_classes,
            intervention=intervention,
        )
        logits, infos = forward(variables, batch['image'], info)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            'loss': jnp.where(valid, loss, 0.0),
            'prediction': jnp.argmax(logits, -1),
            'probability': jnp.exp(logits.max(-1) - jax.nn.logsumexp(logits, -1)),
            'label': labels,
            'valid': valid,
            'layers': {layer: i['telemetry'] for layer, i in infos.items()},
            'choices': {layer: i['choices'] for layer, i in infos.items()},
        }

    return step


def images_per_group(config: Config, tokens_per_image: int) -> int:
    """The smallest number of images that makes a whole number of routing groups."""
    moe = config.model.moe
    if moe.placement == 'none':
        return 1
    unit = registry.entry('backbone', registry.BACKBONES, config.model.name).unit
    if unit == 'image' or moe.placement in HEADS:
        return moe.group_size
    return max(moe.group_size // tokens_per_image, 1)
