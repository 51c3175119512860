"""Loads a trained run as a function of images.

    >>> import moe_vision
    >>> model = moe_vision.load('runs/digits_k2')
    >>> prediction = model(images)  # uint8 [B, H, W, C]; prediction.probabilities is [B, L]

Every image is a routing group of its own, with room for all its choices, on one device. So the
prediction for an image does not depend on the others, and nothing is dropped. Some routers are
special: Soft MoE over the batch mixes the images of a group, `shuffled` deals routes out to other
images, and quantiles compare images, so none of these can work here as it was trained to; a router
whose routes follow from capacity keeps the capacity factor of training, and is refused if it
compares whole images; and a router that draws at random draws by the image's place.

Axes: B images, L classes, T tokens of an image (patches; 1 where images are routed), K choices,
H and W height and width, C channels.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import leverage, models
from moe_vision.common.errors import UserError
from moe_vision.common.paths import expanded, in_order
from moe_vision.config.places import compares_images, of_one_image
from moe_vision.config.schema import Config
from moe_vision.leverage import table
from moe_vision.models.parts import forward_fn
from moe_vision.run_folder import checkpoints
from moe_vision.training import trained


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network predicts for B images.

    Attributes:
      probabilities: float32 [B, L].
      layers: routed layer -> {'expert': int32, 'gate': float32, 'kept': bool}, each [B, T, K]. For
        Soft MoE, K is the number of experts.
    """

    probabilities: np.ndarray
    layers: dict[str, dict[str, np.ndarray]]

    def __repr__(self) -> str:
        routed = ', '.join(self.layers) or 'nothing'
        return (
            f'<Prediction of {len(self.probabilities)} images: classes '
            f'{self.probabilities.argmax(-1).tolist()}; routed: {routed}>'
        )


def load(workdir: str, best: bool = False, trust: Iterable[str] = ()) -> 'Model':
    """The network of a run with its last weights, or their moving average if the run kept one.

    Args:
      workdir: folder of the run, or one that `python -m moe_vision.export` wrote. The data set need
        not be on this machine.
      best: take the weights that were best on validation instead.
      trust: modules of your own that the run's config may import, such as
        ('my_project.routers',). A run's folder is data, so nothing else of yours is imported.

    Raises:
      UserError: there is no run, no checkpoint can be read, the config does not fit it, or names
        code that is not trusted.
    """
    workdir = expanded(workdir)
    config, info = trained.described(workdir, trust)
    _refuse(config, info)
    state = checkpoints.load_raw(workdir, 'best' if best else 'latest')
    with trained.fitting(workdir):
        return Model(config, info, state)


class Model:
    """A trained network as a function of images, as the module describes.

    Attributes:
      config, info: the run's config and data set; `info.class_names` are the L classes.
      network: the Linen module.
      variables: the first argument of `network.apply`: 'params', 'batch_stats', 'router_state'.
      step: how many optimizer steps they were trained for.
    """

    def __init__(self, config: Config, info: DatasetInfo, state: dict[str, Any]):
        self._trained = trained.Trained(config, info, state)
        self.config, self.info, self.step = config, info, self._trained.step
        self.variables = self._trained.variables
        model = of_one_image(config.model, leverage.tokens_per_image(config, info))
        self.network = models.build(model, info.num_classes)
        self._scored = forward_fn(self.network, *input_pipeline.mean_std(config.dataset))

    def __repr__(self) -> str:
        shape = ', '.join(map(str, ['B', *self.info.image_shape]))
        return (
            f"<Model {self.config.model.name} of '{self.info.name}', step {self.step}: "
            f'{table.network(self.config)}; call it with uint8 [{shape}], it tells '
            f'{self.info.num_classes} classes>'
        )

    def image(self, encoded: bytes) -> np.ndarray | None:
        """The pixels of an image file, uint8 [H, W, C], transformed as in the run's evaluation.

        None if it cannot be decoded.
        """
        return input_pipeline.evaluation_image(self.config.dataset, self.info.image_shape, encoded)

    def __call__(self, images: np.ndarray, start: int = 0) -> Prediction:
        """Predicts uint8 images [B, H, W, C]. Compiles once for each B.

        Args:
          start: place of the first image among all that are predicted; random routers read it.

        Raises:
          UserError: the images do not have the run's type and shape.
        """
        shape = self.info.image_shape
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(
                f'images are {images.dtype} {list(images.shape)}; this network takes '
                f'uint8 {["B", *shape]}: `Model.image` makes them from a file.'
            )
        probabilities, layers = jax.device_get(self._forward(self.variables, images, start))
        return Prediction(
            probabilities,
            {
                name: {n: x.reshape(len(images), -1, x.shape[-1]) for n, x in layers[name].items()}
                for name in in_order(layers)
            },
        )

    def apply(
        self, variables: Any, images: Any, start: Any = 0, intervention: Any = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Logits [B, L] and reports of routed layers of uint8 images [B, H, W, C], to be traced.

        Args:
          variables: as the attribute.
          start: as in a call of the model.
          intervention: what changes the routes, of `routing.interventions`.
        """
        step = self._trained.told(start=start, intervention=intervention)
        return self._scored(variables, images, step)

    @functools.cached_property
    def _forward(self):
        def forward(variables, images, start):
            logits, infos = self.apply(variables, images, start)
            return (
                jax.nn.softmax(logits.astype(jnp.float32)),
                {name: i['choices'] for name, i in infos.items()},
            )

        return jax.jit(forward)


def _refuse(config: Config, info: DatasetInfo) -> None:
    """Raises UserError for a run that cannot tell anything about an image by itself."""
    if compares_images(config.model, leverage.tokens_per_image(config, info)):
        raise UserError(
            f"experts of router '{config.model.moe.router}' choose among the images of a group, so "
            'this run tells nothing about an image by itself; score it with main.py --mode=eval.'
        )
