"""One optimizer step and one evaluation step, as plain functions of pytrees.

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
from moe_vision.common.streams import SeedStream, StepStream
from moe_vision.config import registry
from moe_vision.config.schema import Config
from moe_vision.layers import Step, platform
from moe_vision.layers.moe import make_router

Array = jax.Array
Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on."""

    step: Array  # int32 scalar: optimizer steps done
    seed_key: Array  # key data of the run's seed; every key derives from it and the step
    params: Tree
    batch_stats: Tree
    router_state: Tree
    opt_state: Tree
    ema: Tree  # like params, or {} without ema_decay

    def variables(self, averaged: bool = False) -> dict[str, Tree]:
        """What `apply` takes; with `averaged` the moving average of the weights, if kept."""
        params = self.ema if averaged and jax.tree.leaves(self.ema) else self.params
        return {'params': params, 'batch_stats': self.batch_stats,
                'router_state': self.router_state}


def init_variables_fn(model: nn.Module, image_shape: tuple[int, int, int],
                      batch: int) -> Callable[[Array], Tree]:
    """`init(key)`: a network's variables before the first step. Traced once, however often it is
    called. Initial values derive from (seed's key, parameter path)."""
    images = jnp.zeros((batch, *image_shape), jnp.float32)
    return jax.jit(lambda key: model.init(
        jax.random.fold_in(key, SeedStream.INITIAL_VALUES), images, Step()))


def init_state(variables: Tree, key: Array, tx: optax.GradientTransformation,
               ema: bool) -> TrainState:
    """The state before the first step."""
    params = variables['params']
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed_key=jax.random.key_data(jax.random.fold_in(key, SeedStream.STEPS)),
        params=params, batch_stats=variables.get('batch_stats', {}),
        router_state=variables.get('router_state', {}), opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else {})


def jit_once(fn: Callable, **options: Any) -> Callable:
    """`jax.jit` of a function that draws initial values and is called a few times at most.

    On a CPU, optimizing the code of random numbers takes many seconds; here that is left out.
    """
    unoptimized = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    return jax.jit(fn, compiler_options=unoptimized, **options)


def normalize_images(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """uint8 [B, H, W, C] to float32 of zero mean and unit variance per channel."""
    scaled = images.astype(jnp.float32) / 255.0
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def train_step_fn(model: nn.Module, config: Config, tx: optax.GradientTransformation,
                  learning_rate: optax.Schedule, total_steps: int, num_classes: int,
                  images_per_group: int, mean, std) -> Callable:
    """`step(state, batch) -> (state, metrics)`; batch arrays are [A, B, ...].

    The loss is the mean over all valid images of the A micro-batches. Gradients, losses and
    telemetry are summed over micro-batches; router state moves once, from the sums.
    """
    train, moe = config.train, config.model.moe
    routed = moe.placement != 'none' and config.model.twin == 'none'
    taught = bool(moe.losses.get('supervised'))

    def loss_fn(params, batch_stats, router_state, micro, key, start, fraction, total_valid, parts):
        valid, labels = micro['valid'], micro['label']
        images = normalize_images(micro['image'], mean, std)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), train.label_smoothing)
        if train.mixup or train.cutmix:
            size = mixing_group(images_per_group, len(images))
            groups = start // size + jnp.arange(len(images) // size)
            images, targets = mix.mix(
                jax.random.fold_in(key, StepStream.MIXING), images, targets, valid, group_size=size,
                mixup=train.mixup, cutmix=train.cutmix, group_ids=groups)
        # Taught routers learn what an image is for the larger part.
        step = Step(valid=valid, key=jax.random.fold_in(key, StepStream.NETWORK),
                    fraction=fraction, start=start,
                    labels=jnp.argmax(targets, -1) if taught else None, train=True)
        (logits, infos), updates = model.apply(
            {'params': params, 'batch_stats': batch_stats, 'router_state': router_state},
            images, step, mutable=['batch_stats'])
        each = optax.softmax_cross_entropy(logits, targets)
        task = jnp.sum(jnp.where(valid, each, 0.0)) / total_valid
        aux = {name: sum(i['losses'][name] for i in infos.values()) / parts
               for name in sorted({n for i in infos.values() for n in i['losses']})}
        right = jnp.sum(valid & (jnp.argmax(logits, -1) == labels)) / total_valid
        sums = {'task_loss': task, 'accuracy': right, 'losses': aux,
                'layers': {layer: i['telemetry'] for layer, i in infos.items()}}
        return task + sum(aux.values()), (sums, updates.get('batch_stats', {}))

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Any]]:
        parts, rows = batch['label'].shape
        key = jax.random.fold_in(jax.random.wrap_key_data(state.seed_key), state.step)
        fraction = state.step / total_steps
        total_valid = jnp.maximum(batch['valid'].sum(), 1).astype(jnp.float32)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)

        def one(batch_stats, micro, part):
            (loss, (sums, stats)), grads = gradient(
                state.params, batch_stats, state.router_state, micro, key, part * rows, fraction,
                total_valid, parts)
            return stats, (grads, {'loss': loss, **sums})

        first = jax.tree.map(lambda x: x[0], batch)
        stats, total = one(state.batch_stats, first, 0)
        if parts > 1:
            def more(carry, xs):
                stats, total = carry
                stats, added = one(stats, *xs)
                return (stats, jax.tree.map(jnp.add, total, added)), None
            rest = jax.tree.map(lambda x: x[1:], batch)
            # On a CPU, gradients of convolutions inside a loop are many times slower.
            (stats, total), _ = jax.lax.scan(more, (stats, total), (rest, jnp.arange(1, parts)),
                                             unroll=platform.target() == 'cpu')
        grads, metrics = total

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        router_state = state.router_state
        if routed and router_state:
            router_state = update_router_state(moe, router_state, metrics['layers'])
        ema = state.ema
        if train.ema_decay:
            ema = optax.incremental_update(params, ema, 1 - train.ema_decay)
        metrics |= {'grad_norm': optax.tree.norm(grads),
                    'learning_rate': learning_rate(state.step),
                    'bad_images': jnp.sum(~batch['valid'])}
        new = dataclasses.replace(
            state, step=state.step + 1, params=params, batch_stats=stats,
            router_state=router_state, opt_state=opt_state, ema=ema)
        if train.skip_nonfinite:
            finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
            new = dataclasses.replace(
                jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state), step=new.step)
        return new, metrics

    return step


def mixing_group(images_per_group: int, images: int) -> int:
    """How many neighbours find partners for mixup and CutMix among each other.

    They lie in one routing group, and few enough on one device, even where the group spans many:
    the largest divisor up to 4 of the group, or of all images where nothing is routed (256 devices
    have four each of a batch of 1,024).
    """
    whole = images_per_group if images_per_group > 1 else images
    return max((n for n in range(2, 5) if whole % n == 0), default=whole)


def update_router_state(moe, state: Tree, layers: dict[str, dict[str, Array]]) -> Tree:
    """Each routed layer's state after a step, from that step's telemetry."""
    router = make_router(moe.router, moe.router_args, moe.num_experts, moe.k)

    def at(tree, path, counts):
        if not path:
            return {**tree, 'router': router.update_state(tree['router'], counts)}
        return {**tree, path[0]: at(tree[path[0]], path[1:], counts)}

    for layer, sums in layers.items():
        state = at(state, layer.split('/'), sums['chosen'])
    return state


def eval_step_fn(model: nn.Module, num_classes: int, mean, std) -> Callable:
    """`step(variables, batch, key, start, fraction)`: per-image results and telemetry of a batch.

    Batch arrays are [1, B, ...]. Losses are without label smoothing; padding has loss 0. With an
    `intervention` routed layers change their routes by it.
    """
    def step(variables, batch, key, start, fraction, intervention=None):
        batch = jax.tree.map(lambda x: x[0], batch)
        valid, labels = batch['valid'], batch['label']
        info = Step(valid=valid, key=key, fraction=fraction, labels=labels, start=start,
                    num_classes=num_classes, intervention=intervention)
        logits, infos = model.apply(variables, normalize_images(batch['image'], mean, std), info)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            'loss': jnp.where(valid, loss, 0.0), 'prediction': jnp.argmax(logits, -1),
            'label': labels, 'valid': valid,
            'layers': {layer: i['telemetry'] for layer, i in infos.items()},
            'choices': {layer: i['choices'] for layer, i in infos.items()},
        }

    return step


def images_per_group(config: Config, tokens_per_image: int) -> int:
    """Images of a whole number of routing groups: the least that can be evaluated alone."""
    moe = config.model.moe
    if moe.placement == 'none':
        return 1
    unit = registry.entry('backbone', registry.BACKBONES, config.model.name).unit
    if unit == 'image' or moe.placement == 'head':
        return moe.group_size
    return max(moe.group_size // tokens_per_image, 1)
