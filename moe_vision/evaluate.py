"""Exact evaluation: every image once, in a fixed order and fixed groups, whatever the batch size.

Group g is images [gS, (g+1)S) of the order, so neither batch size nor process count changes what
shares capacity with what. Per-image losses are summed on the host in that order in float64.

Axes: B images of a batch, L classes, E experts.
"""

import base64
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import leverage, models
from moe_vision import mesh as mesh_lib
from moe_vision.routing import telemetry
from moe_vision.settings import Config
from moe_vision.step import eval_step_fn, images_per_group

_SAMPLES = 24  # images shown in the report


class Evaluator:
    """Scores variables on a split; compiled once per capacity factor.

    Args:
      config, info, mesh: of the run.
      tokens_per_image: patches of an image, 1 for image routing.
    """

    def __init__(self, config: Config, info: DatasetInfo, mesh: jax.sharding.Mesh,
                 tokens_per_image: int):
        self.config, self.info, self.mesh = config, info, mesh
        unit = images_per_group(config, tokens_per_image) * mesh.size
        self.batch = math.ceil(config.eval.batch_size / unit) * unit
        self._rows = mesh_lib.rows_of_process(self.batch, mesh)
        self._steps: dict[bool, Callable] = {}
        model = config.model
        routed = model.moe.placement != 'none' and model.twin == 'none'
        self._bounded = (routed and not leverage.soft(model)
                         and math.isfinite(model.moe.eval_capacity_factor))

    def _step(self, unbounded: bool) -> Callable:
        if unbounded not in self._steps:
            model = self.config.model
            if unbounded:
                moe = dataclasses.replace(model.moe, eval_capacity_factor=math.inf)
                model = dataclasses.replace(model, moe=moe)
            net = models.build(model, self.info.num_classes, self.mesh)
            step = eval_step_fn(net, self.info.num_classes,
                                *input_pipeline.mean_std(self.config.dataset))
            self._steps[unbounded] = jax.jit(step, out_shardings=mesh_lib.replicated(self.mesh))
        return self._steps[unbounded]

    def score(self, variables: Any, split: str, fraction: float,
              details: bool = False) -> dict[str, Any]:
        """Metrics of a split: 'loss', 'accuracy', 'accuracy_unbounded', 'images', 'layers'.

        With `details` also what the report shows: 'confusion' [L, L], 'samples', and per layer
        'expert_by_class' [E, L].
        """
        out = self._pass(variables, split, fraction, False, details)
        out['accuracy_unbounded'] = self._pass(
            variables, split, fraction, True, False)['accuracy'] if self._bounded \
            else out['accuracy']
        return out

    def _pass(self, variables: Any, split: str, fraction: float, unbounded: bool,
              details: bool) -> dict[str, Any]:
        step = self._step(unbounded)
        key = jax.random.fold_in(jax.random.key(self.config.seed), 2)
        losses, predictions, labels, samples = [], [], [], []
        sums: dict[str, Any] = {}
        with input_pipeline.evaluation_batches(self.config.dataset, split=split,
                                               batch_size=self.batch, rows=self._rows) as batches:
            for number, batch in enumerate(batches):
                arrays = {n: batch[n] for n in ('image', 'label', 'valid')}
                out = jax.device_get(step(variables, mesh_lib.to_devices(arrays, self.mesh, 1), key,
                                          number * self.batch, fraction))
                real = out['valid']
                losses.append(out['loss'][real].astype(np.float64))
                predictions.append(out['prediction'][real])
                labels.append(out['label'][real])
                sums = _add(sums, out['layers'])
                if details and number == 0 and len(self._rows) == self.batch:
                    samples = _samples(batch, out, self.info)
        truth, predicted = np.concatenate(labels), np.concatenate(predictions)
        experts = self.config.model.moe.num_experts
        layers = {n: telemetry.summarize(s, experts) for n, s in sums.items()}
        result = {'loss': float(np.concatenate(losses).mean()),
                  'accuracy': float((truth == predicted).mean()),
                  'images': int(truth.size), 'layers': layers}
        if details:
            for name, s in sums.items():
                layers[name]['expert_by_class'] = s['by_class'][:experts].tolist()
            confusion = np.zeros((self.info.num_classes,) * 2, np.int64)
            np.add.at(confusion, (truth, predicted), 1)
            result |= {'confusion': confusion.tolist(), 'samples': samples}
        return result


def _add(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    more = jax.tree.map(lambda x: x.astype(np.float64), more)
    return jax.tree.map(np.add, total, more) if total else more


def _samples(batch: dict[str, np.ndarray], out: dict[str, Any],
             info: DatasetInfo) -> list[dict[str, Any]]:
    """The first images with their predictions and the experts they went to."""
    import cv2

    samples = []
    for i in range(min(_SAMPLES, int(batch['valid'].sum()))):
        image = batch['image'][i]
        image = image[..., ::-1] if image.shape[-1] == 3 else image
        png = base64.b64encode(cv2.imencode('.png', image)[1].tobytes()).decode()
        layers = {}
        for name, choice in out['choices'].items():
            tokens = len(choice['expert']) // len(batch['label'])
            mine = slice(i * tokens, (i + 1) * tokens)
            side = math.isqrt(tokens)
            layers[name] = {
                'grid': None if tokens == 1 else [side, side] if side * side == tokens else None,
                'experts': choice['expert'][mine].tolist(),
                'gates': choice['gate'][mine].astype(float).round(4).tolist(),
                'kept': choice['kept'][mine].tolist()}
        samples.append({'image_png': png, 'label': int(batch['label'][i]),
                        'prediction': int(out['prediction'][i]), 'layers': layers})
    return samples
