"""A trained run as a function of images.

    >>> import moe_vision
    >>> model = moe_vision.load('runs/digits_k2')
    >>> found = model(images)  # uint8 [B, H, W, C]; found.probabilities is [B, L]

Every image is a routing group of its own with room for all its choices, on one device: what is
said of an image depends on no other one, and nothing is dropped. (Soft MoE over the batch mixes the
images of a group, so here it does not do what it was trained to do; routers that draw at random
draw by the image's place.)

Axes: B images, L classes, T tokens of an image (patches; 1 where images are routed), K choices,
H and W height and width, C channels.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import leverage, models
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config.schema import Config
from moe_vision.layers import Step
from moe_vision.run_folder import checkpoints
from moe_vision.training.evaluate import STREAM
from moe_vision.training.schedule import durations
from moe_vision.training.step import normalize_images


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of B images.

    Attributes:
      probabilities: float32 [B, L].
      layers: routed layer -> {'expert': int32, 'gate': float32, 'kept': bool}, each [B, T, K].
        With Soft MoE K is the number of experts.
    """

    probabilities: np.ndarray
    layers: dict[str, dict[str, np.ndarray]]


def load(workdir: str, best: bool = False, trust: Iterable[str] = ()) -> 'Model':
    """The network of a run with the weights it ended with; their moving average, if it kept one.

    Args:
      workdir: folder of the run; the data set need not be there.
      best: the weights that were best on validation instead.
      trust: modules of your own that the run's config names, such as ('my_project.routers',). A
        run's folder is data: without this, nothing that its config names is imported.

    Raises:
      UserError: no run there, no checkpoint that can be read, or the config names code that is not
        trusted.
    """
    config = config_lib.load(workdir, trust)
    told = json.loads((epath.Path(workdir) / 'config.json').read_text())['dataset']
    told |= {n: tuple(told[n]) for n in ('image_shape', 'class_names')}
    state = checkpoints.load_raw(workdir, 'best' if best else 'latest')
    return Model(config, DatasetInfo(**told), state)


class Model:
    """A function of images; see the module.

    Attributes:
      config, info: of the run; `info.class_names` are the L classes.
      network: the Linen module.
      variables: what `network.apply` takes first: 'params', 'batch_stats', 'router_state'.
      step: optimizer steps that made them.
    """

    def __init__(self, config: Config, info: DatasetInfo, state: dict[str, Any]):
        self.config, self.info, self.step = config, info, int(state['step'])
        tokens = leverage.tokens_per_image(config, info)
        moe = dataclasses.replace(
            config.model.moe, eval_capacity_factor=math.inf,
            group_size=1 if config.model.moe.placement == 'head' else tokens)
        self.network = models.build(dataclasses.replace(config.model, moe=moe), info.num_classes)
        self.variables = {
            'params': jax.device_put(state.get('ema') or state['params']),
            'batch_stats': jax.device_put(state.get('batch_stats') or {}),
            'router_state': jax.device_put(state.get('router_state') or {})}
        self._fraction = self.step / durations(config, info.split_sizes['train']).total
        self._key = jax.random.fold_in(
            jax.random.wrap_key_data(jnp.asarray(state['seed_key'])), STREAM)

    def image(self, encoded: bytes) -> np.ndarray | None:
        """Pixels of an image file as an evaluation of the run would see them, uint8 [H, W, C];
        None where it cannot be decoded."""
        return input_pipeline.evaluation_image(
            self.config.dataset, self.info.image_shape, encoded)

    def __call__(self, images: np.ndarray, start: int = 0) -> Prediction:
        """What the network says of uint8 images [B, H, W, C]; compiled once for each B.

        Args:
          start: place of the first image in all that are predicted, read by random routers.

        Raises:
          UserError: the images are not of the run's type and shape.
        """
        shape = self.info.image_shape
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(f'images are {images.dtype} {list(images.shape)}; this network takes '
                            f'uint8 {["B", *shape]}: `Model.image` makes them from a file.')
        out, layers = jax.device_get(self._forward(self.variables, images, start))
        count = len(images)
        return Prediction(out, {name: {n: x.reshape(count, -1, x.shape[-1]) for n, x in of.items()}
                                for name, of in layers.items()})

    @functools.cached_property
    def _forward(self):
        mean_std = input_pipeline.mean_std(self.config.dataset)

        def forward(variables, images, start):
            step = Step(key=self._key, fraction=self._fraction, start=start)
            logits, infos = self.network.apply(
                variables, normalize_images(images, *mean_std), step)
            return (jax.nn.softmax(logits.astype(jnp.float32)),
                    {name: i['choices'] for name, i in infos.items()})

        return jax.jit(forward)
