"""Builds what training and scoring need of a config, once for all its seeds."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import leverage, models
from moe_vision.check import own, transforms
from moe_vision.common import compile_cache, platform, quick
from moe_vision.config.schema import Config
from moe_vision.layers import Step
from moe_vision.run_folder import checkpoints
from moe_vision.surgery.init_from import init_from
from moe_vision.training import mesh, optimizer
from moe_vision.training.evaluate import Evaluator
from moe_vision.training.feed import Gather
from moe_vision.training.router_gradients import router_norms_fn
from moe_vision.training.schedule import durations
from moe_vision.training.step import (
    TrainState,
    images_per_group,
    init_state,
    init_variables_fn,
    train_step_fn,
)


class Setup:
    """Data set, mesh, network, optimizer, layout of the state and compiled programs of a config.

    The runs of an arm share one setup and compile once: only the default of `fresh_state` depends
    on the seed.

    Args:
      config: checked, also against its data set (`rules.check_data`).
      for_training: False skips the check that the devices hold whole routing groups.
      devices: devices of another machine to compile for. Then nothing can run and no data is read.

    Attributes:
      step: the jitted training step, `step(state, batch) -> (state, metrics)`. It donates the
        state: the arrays passed in cannot be used afterwards.
      cost: FLOPs, parameters and leverages.
      compiling: `with compiling('the training step'):` says so in the log before the first call.
    """

    def __init__(
        self, config: Config, for_training: bool = True, devices: Sequence[jax.Device] | None = None
    ):
        self.config = config
        self.compiling = compile_cache.FirstCalls(config.model.name)
        self.info: DatasetInfo = input_pipeline.info(config.dataset)
        self.mesh = mesh.make(config.mesh.expert, devices)
        own.check(config.model, self.info.image_shape, self.info.num_classes)
        tokens = leverage.tokens_per_image(config, self.info)
        self.images_per_group = images_per_group(config, tokens)
        if for_training:
            rows = config.train.batch_size // config.train.micro_batches
            mesh.check_groups(
                rows,
                self.images_per_group,
                self.mesh,
                'train.batch_size' + (' / micro_batches' if config.train.micro_batches > 1 else ''),
            )
        if devices is None:
            input_pipeline.require(config.dataset)
            self.info = input_pipeline.info(config.dataset)  # now with its digest
        self.times = durations(config, self.info.split_sizes['train'])
        self.network = models.build(config.model, self.info.num_classes, self.mesh)
        self.learning_rate = optimizer.schedule(config.train, self.times.total, self.times.warmup)

        images = leverage.trace_images(config, tokens) * self.mesh.size
        init = init_variables_fn(self.network, self.info.image_shape, images)
        key = jax.random.key(0)
        variables = jax.eval_shape(init, key)
        params, net = variables['params'], self.network
        x = jax.ShapeDtypeStruct((images, *self.info.image_shape), jnp.float32)
        self.transforms = transforms.of_config(
            config, params, self.times.total, lambda: transforms.loads_of(net, variables, x)
        )
        self.tx = optimizer.transformed(
            optimizer.make(config.train, self.learning_rate, params), self.transforms
        )

        tx = self.tx  # not `self`, which would then live until garbage is looked for

        def fresh(key: jax.Array) -> TrainState:
            return init_state(init(key), key, tx, bool(config.train.ema_decay))

        self.shapes = jax.eval_shape(fresh, key)
        self.shardings = mesh.state_shardings(self.mesh, self.shapes, config.mesh.shard_optimizer)
        self.abstract = checkpoints.abstract(self.shapes, self.shardings)
        self._fresh = quick.jit(fresh, out_shardings=self.shardings)
        self.gather = Gather(config, mesh.batch_sharding(self.mesh))
        self.step = jax.jit(
            self.step_of(self.network),
            donate_argnums=0,
            out_shardings=(self.shardings, mesh.replicated(self.mesh)),
        )
        self.evaluator = Evaluator(config, self.info, self.mesh, tokens)

    def step_of(self, network: nn.Module) -> Callable:
        """The training step for a network built from this config, not jitted."""
        step = train_step_fn(
            network,
            self.config,
            self.tx,
            self.transforms,
            self.learning_rate,
            self.times.total,
            self.info.num_classes,
            self.images_per_group,
            *input_pipeline.mean_std(self.config.dataset),
        )
        return platform.made_for(self.mesh)(step)

    @functools.cached_property
    def cost(self) -> leverage.Leverage:
        return leverage.measure(self.config, self.info)

    @functools.cached_property
    def routed_layers(self) -> tuple[str, ...]:
        """Names of the routed layers in the order in which the network runs them."""
        names: list[str] = []

        def forward(variables, images, key):
            step = Step.example(len(images), key=key)
            names.extend(self.network.apply(variables, images, step)[1])

        images = jax.ShapeDtypeStruct((self.evaluator.batch, *self.info.image_shape), jnp.float32)
        jax.eval_shape(forward, self.shapes.variables(), images, jax.random.key(0))
        return tuple(names)

    @functools.cached_property
    def router_norms(self) -> Callable:
        """The compiled function that `router_norms_fn` returns."""
        norms = router_norms_fn(
            self.network,
            self.routed_layers,
            self.config.train.label_smoothing,
            self.info.num_classes,
            *input_pipeline.mean_std(self.config.dataset),
        )
        return jax.jit(norms, out_shardings=mesh.replicated(self.mesh))

    def fits(self, config: Config) -> bool:
        """Whether `config` equals this setup's except for the seed."""
        return dataclasses.replace(config, seed=self.config.seed) == self.config

    def fresh_state(self, seed: int | None = None) -> TrainState:
        """The state before the first step, with the weights of `init_from` if that is set.

        Args:
          seed: the run's; None takes the config's.
        """
        with self.compiling('the initial values'):
            seed = self.config.seed if seed is None else seed
            state = jax.block_until_ready(self._fresh(jax.random.key(seed)))
        if self.config.init_from:
            state = init_from(
                state, self.config.init_from, self.info.class_names, self.shardings, self.config
            )
        return state
