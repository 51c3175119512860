"""A run that was trained, as prediction and export begin with it: its network, and what it knows.

Axes: B images, H and W height and width, C channels.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import DatasetInfo
from moe_vision import leverage, models
from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config import check as config_lib
from moe_vision.config.places import forms_groups
from moe_vision.config.schema import Config
from moe_vision.layers import Step
from moe_vision.run_folder import checkpoints, record
from moe_vision.training.evaluate import STREAM
from moe_vision.training.schedule import durations
from moe_vision.training.step import images_per_group, init_variables_fn


class Trained:
    """The weights that a run was scored with, and what its evaluation tells the network.

    Attributes:
      config, info: the run's config and data set; `info.class_names` are the L classes.
      step: how many optimizer steps it was trained for.
      variables: the first argument of `network.apply`: 'params', 'batch_stats', 'router_state'.
      seed_key: key data of the run's seed.
      unit: images of a routing group, or the fewest that make whole ones; 1 if there are none.

    Raises:
      UserError: the arrays do not have the names, shapes and types of the network's own.
    """

    def __init__(self, config: Config, info: DatasetInfo, state: dict[str, Any]):
        self.config, self.info, self.step = config, info, int(state['step'])
        self.seed_key = jnp.asarray(state['seed_key'])
        self._key = jax.random.fold_in(jax.random.wrap_key_data(self.seed_key), STREAM)
        self.variables = {
            'params': jax.device_put(checkpoints.scored(state)),
            'batch_stats': jax.device_put(state.get('batch_stats') or {}),
            'router_state': jax.device_put(state.get('router_state') or {}),
        }
        tokens = leverage.tokens_per_image(config, info)
        self.unit = images_per_group(config, tokens) if forms_groups(config.model) else 1
        network = models.build(config.model, info.num_classes)
        _check_fit(network, info, leverage.trace_images(config, tokens), self.variables)
        self._fraction = self.step / durations(config, info.split_sizes['train']).total

    def told(self, **known: Any) -> Step:
        """What evaluation tells the network at this point of the training, and what else is known
        of the images."""
        return Step(key=self._key, fraction=self._fraction, **known)


def described(workdir: str, trust: Iterable[str] = ()) -> tuple[Config, DatasetInfo]:
    """The config and the data set of a run, or of an exported folder, whose network can be given
    other images.

    Args:
      trust: modules of your own that the config may import.

    Raises:
      UserError: there is no run, it names code that is not trusted, or its images are marked.
    """
    config, info = config_lib.load(workdir, trust), record.dataset_info(workdir)
    if domains := config.dataset.domains:
        raise UserError(
            f'this run was trained with dataset.domains={domains}: its images carry marks that '
            'yours lack, so it cannot name them.'
        )
    return config, info


@contextlib.contextmanager
def fitting(workdir: str) -> Iterator[None]:
    """Turns whatever happens while a network is made of a config and a checkpoint into one line.

    Raises:
      UserError: they do not fit each other.
    """
    try:
        yield
    except Exception as e:  # a config of impossible numbers makes jax raise errors of many types
        why = ' '.join(str(e).split())[:160]
        raise UserError(
            f"'{config_lib.record_of(workdir)}' does not fit the weights beside it ({why}); "
            'restore that file.'
        ) from e


def _check_fit(
    network: nn.Module, info: DatasetInfo, images: int, variables: dict[str, Any]
) -> None:
    """Raises UserError unless the arrays have the names, shapes and types of the network's own."""
    init = init_variables_fn(network, info.image_shape, images)
    own = jax.eval_shape(init, jax.random.key(0))
    for kind, arrays in variables.items():
        ours, theirs = (
            {
                path_name(p): (x.shape, str(x.dtype))
                for p, x in jax.tree_util.tree_leaves_with_path(tree)
            }
            for tree in (own.get(kind, {}), arrays)
        )
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f'{kind}/{name}: {theirs.get(name, "nothing")} there, '
                    f'{ours.get(name, "nothing")} in the network of the config'
                )
