"""Counts the FLOPs of a whole training step, and the share of them that runs in experts.

What is traced is the gradient of the loss by all parameters, as training takes it: with the losses
of routing, and with what `model.remat` computes twice. Matrix products and convolutions count, 2
FLOPs per multiply-accumulate, padded buffers in full. What nothing needs is left out, as a compiler
does. The optimizer, clipping and moving averages have no products, so they count zero; what they
cost is the time to move parameters, gradients and optimizer state through memory. A transform may
have products; they run once in a step, whatever its images.

The gradient of a product is two products of its size: one for the weights and one for the input,
which the first layer of a network does not need. So a step is a little less than three forward
passes. A routed layer adds the gradient of its gates, 2 D FLOPs for each slot. What a loss of a
layer takes does not grow with the images, so it is shared among those of a micro-batch.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.interpreters import partial_eval as pe

from input_pipeline import DatasetInfo
from moe_vision import models
from moe_vision.check import transforms
from moe_vision.common import flops, platform
from moe_vision.config.rules import total_steps
from moe_vision.config.schema import Config
from moe_vision.layers import Step
from moe_vision.layers.moe import LAYER_LOSSES
from moe_vision.leverage import trace
from moe_vision.leverage.types import Leverage, TrainingStep


def measure_step(config: Config, info: DatasetInfo, forward: Leverage) -> TrainingStep:
    """Traces a training step of a config on as few images as fill its routing groups.

    Args:
      forward: what `measure` returned for the config.

    Raises:
      UserError: the program has a loop of unknown length.
    """
    images = trace.trace_images(config, trace.tokens_per_image(config, info))
    net, key = models.build(config.model, info.num_classes), jax.random.key(0)
    labels = jnp.zeros(images, jnp.int32)
    step = Step.example(images, train=True, key=key, labels=labels)
    x = jax.ShapeDtypeStruct((images, *info.image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: net.init(key, x, step), x)

    def loss(params, others, x, compared):
        with nn.intercept_methods(trace.mark):
            (logits, infos), statistics = net.apply(
                {**others, 'params': params},
                x,
                dataclasses.replace(step, compared=compared),
                mutable=['batch_stats'],
            )
        task = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        losses = sum(sum(info['losses'].values()) for info in infos.values())
        kept = ('telemetry', 'observed', 'changed')  # what training reads besides the losses
        counted = [[info[name] for name in kept] for info in infos.values()]
        return task + losses, (statistics, counted)

    params = variables['params']
    others = {name: v for name, v in variables.items() if name != 'params'}
    made = transforms.of_config(
        config,
        params,
        total_steps(config, info.split_sizes['train']),
        lambda: transforms.loads_of(net, variables, x),
    )
    state, number = jax.eval_shape(made.init, params), jnp.int32(0)
    compared = jax.eval_shape(lambda s: made.compared(step=number, state=s), state)
    with platform.plain():
        program = jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(
            params, others, x, compared
        ).jaxpr
    needed, _ = pe.dce_jaxpr(program, [True] * len(program.outvars))
    counts = flops.of_program(needed)

    def transformed(params, step, state):
        told = {'step': step, 'state': state}
        return made.moves(params, **told), made.update(params, params, **told)

    of_transforms = flops.total(flops.count(transformed, params, number, state))
    layers = {b.name: None for b in forward.blocks if b.routed}
    by_block = trace.by_block(counts, layers)
    once = sum(n for scope, n in counts.items() if LAYER_LOSSES in scope)
    micro_batch = config.train.batch_size // config.train.micro_batches
    return TrainingStep(
        flops=round(
            (flops.total(counts) - once) / images
            + once / micro_batch
            + of_transforms / config.train.batch_size
        ),
        flops_experts=round(sum(kinds['experts'] for kinds in by_block.values()) / images),
    )
