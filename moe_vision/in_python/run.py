"""A run in Python: its result, history and pictures, and its network as a function of images."""

import functools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

import input_pipeline
from moe_vision import report
from moe_vision.common.errors import UserError, nearest
from moe_vision.common.paths import expanded
from moe_vision.config import check as config_lib
from moe_vision.config.schema import Config
from moe_vision.in_python.table import Table, flat
from moe_vision.report import read

if TYPE_CHECKING:
    from moe_vision.in_python.pictures import Picture
    from moe_vision.predict.model import Model, Prediction


class Run:
    """What is in the folder of a run. Everything is read when it is asked for.

    >>> run = moe_vision.train(moe_vision.config('digits_k2'), 'runs/first')
    >>> run = moe_vision.Run('runs/first')  # the same, later
    >>> run.result['test_accuracy'], run.history['loss'], run.plot()

    Args:
      workdir: the folder.
      trust: modules of your own that the run's config may import, as for `moe_vision.load`.

    Raises:
      UserError: there is no run.
    """

    def __init__(self, workdir: str | os.PathLike[str], trust: Iterable[str] = ()):
        self.workdir, self._trust = expanded(os.fspath(workdir)), tuple(trust)
        read.load(self.workdir)

    def __repr__(self) -> str:
        run = read.load(self.workdir)
        steps = max((row['step'] for row in run.rows), default=0)
        told = f'stopped at step {steps}'
        if 'test_accuracy' in run.result:
            told = (
                f'{run.scored} accuracy {run.result["test_accuracy"]:.2%} after '
                f'{run.result.get("steps")} steps, rho_place {run.result.get("rho_place", 0):.4f}'
            )
        return f"<Run '{self.workdir}' of {run.section('dataset').get('name')}: {told}>"

    @property
    def config(self) -> Config:
        """The config with which the run was started."""
        return config_lib.load(self.workdir, self._trust)

    @property
    def result(self) -> dict[str, Any]:
        """What result.json holds; {} before the run is over. docs/run_folder.md has the fields."""
        return read.load(self.workdir).result

    @property
    def evaluation(self) -> dict[str, Any]:
        """What evaluation.json holds: the test split in detail, 'layers' and 'confusion' too."""
        return read.load(self.workdir).evaluation

    @property
    def history(self) -> Table:
        """The rows of metrics: means over the steps before each of split 'train', and one of split
        'validation' for each validation. 'layers.block_1.load' is the load of each expert."""
        return Table(map(flat, read.load(self.workdir).rows))

    @functools.cached_property
    def model(self) -> 'Model':
        """The network with its last weights; read once."""
        from moe_vision.predict.model import load

        return load(self.workdir, trust=self._trust)

    def predict(self, images: np.ndarray) -> 'Prediction':
        """What the network says of images, uint8 [B, H, W, C], as in the run's evaluation."""
        return self.model(images)

    def images(self, count: int = 8, split: str = '') -> tuple[np.ndarray, np.ndarray]:
        """The first images of a split in the order of evaluation, and their labels.

        Args:
          split: 'train', 'validation' or 'test'; '' is the split on which the run was scored.

        Returns:
          uint8 [B, H, W, C] and int [B].
        """
        data = self.config.dataset
        split = split or read.load(self.workdir).scored
        with input_pipeline.evaluation_batches(
            data, split=split, batch_size=count, rows=range(count)
        ) as batches:
            batch = next(iter(batches))
        valid = batch['valid']
        return batch['image'][valid], batch['label'][valid]

    def plot(self) -> 'Picture':
        """Loss, accuracy and the loads of experts over the steps."""
        from moe_vision.in_python import pictures

        return pictures.history(self.history, read.load(self.workdir).name)

    def routes(self, images: np.ndarray | None = None, layer: str = '') -> 'Picture':
        """Draws the expert that each patch of images chose first.

        Args:
          images: uint8 [B, H, W, C]; None takes the first eight of the scored split.
          layer: the name of a routed layer; '' is the last.

        Raises:
          UserError: the network routes nothing, or has no such layer.
        """
        from moe_vision.in_python import pictures

        images = self.images()[0] if images is None else images
        prediction = self.predict(images)
        layers = list(prediction.layers)
        if not layers:
            raise UserError(f"the network of '{self.workdir}' routes nothing: it is dense.")
        if layer and layer not in layers:
            raise UserError(
                f"no routed layer '{layer}'.{nearest(layer, layers)} Allowed: {', '.join(layers)}."
            )
        return pictures.routes(images, prediction, layer or layers[-1], self.model.info.class_names)

    def report(self) -> str:
        """Writes report.html anew; returns its path."""
        return str(report.write(self.workdir))
