"""Exact evaluation: every image once, in a fixed order and fixed groups, whatever the batch size.

Group g is images [gS, (g+1)S) of the order, so neither batch size nor process count changes what
shares capacity with what. Per-image losses are summed on the host in that order in float64.

Axes: B images of a batch, L classes, E experts.
"""

import base64
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import leverage, models
from moe_vision.common.streams import RunStream
from moe_vision.config.schema import Config
from moe_vision.routing import telemetry
from moe_vision.routing.capacity import capacity
from moe_vision.routing.interventions import Intervention
from moe_vision.training import mesh as mesh_lib
from moe_vision.training.step import TrainState, eval_step_fn, images_per_group

_SAMPLES = 24  # images shown in the report
_PROBE = 256  # tokens whose first choices are kept at each validation
STREAM = RunStream.EVALUATION  # of the run's key


class Evaluator:
    """Scores states on a split; compiled once per capacity factor, for every seed.

    Args:
      config, info, mesh: of the run.
      tokens_per_image: patches of an image, 1 for image routing.
    """

    def __init__(self, config: Config, info: DatasetInfo, mesh: jax.sharding.Mesh,
                 tokens_per_image: int):
        self.config, self.info, self.mesh = config, info, mesh
        group = images_per_group(config, tokens_per_image)
        unit = group * mesh.size
        if unit > config.eval.batch_size:  # a device needs not hold a whole group
            unit = math.lcm(group * mesh.shape['data'], mesh.size)
        self._tokens, self._unit = tokens_per_image, unit
        self.batch = math.ceil(config.eval.batch_size / unit) * unit
        self._rows = mesh_lib.rows_of_process(self.batch, mesh)
        self._steps: dict[bool, Callable] = {}
        self._kept: dict[str, list[tuple[dict[str, np.ndarray], dict[str, jax.Array]]]] = {}
        model = config.model
        routed = model.moe.placement != 'none' and model.twin in ('none', 'same_drops')
        self._limited = routed and not leverage.soft(model)  # a choice can be dropped
        self._bounded = self._limited and math.isfinite(model.moe.eval_capacity_factor)

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

    def score(self, state: TrainState, split: str, fraction: float,
              details: bool = False) -> dict[str, Any]:
        """Metrics of a split: 'loss', 'accuracy', 'accuracy_unbounded', 'images', 'layers'.

        With `details` also 'correct' (bits of the images in order, packed, base64) and what the
        report shows: 'confusion' [L, L], 'samples', and per layer 'expert_by_class' [E, L].
        Without it 'probe': per layer the first choices of the first 256 tokens, in order.
        """
        return self._pass(state, split, fraction, self._bounded, details)

    def accuracy(self, state: TrainState, split: str, fraction: float) -> float:
        """The accuracy of `score` alone."""
        return self._pass(state, split, fraction, False, False)['accuracy']

    def sweep(self, state: TrainState, split: str, fraction: float) -> list[dict[str, Any]]:
        """Scores at each of `eval.capacity_factors`; [] where no choice can be dropped.

        Each has 'capacity_factor', 'effective_factor' (C E / (k T)), 'accuracy', 'loss', and by
        routed layer 'drop_rate'.
        """
        rows = []
        for factor in self.config.eval.capacity_factors if self._limited else ():
            model = self.config.model
            moe = dataclasses.replace(model.moe, eval_capacity_factor=factor)
            slots = capacity(factor, moe.k, moe.group_size, moe.num_experts, moe.capacity_multiple)
            found = self._with(model=dataclasses.replace(model, moe=moe))._pass(
                state, split, fraction, False, False)
            rows.append({
                'capacity_factor': factor,
                'effective_factor': slots * moe.num_experts / (moe.k * moe.group_size),
                'accuracy': found['accuracy'], 'loss': found['loss'],
                'drop_rate': {n: x['drop_rate'] for n, x in found['layers'].items()}})
        return rows

    def at_another_batch_size(self, state: TrainState, split: str, fraction: float,
                              scores: dict[str, Any]) -> dict[str, Any]:
        """Whether a split is scored alike with half as many images in a batch (or, where that is
        one group, twice as many).

        Args:
          scores: what `score` said with details.

        Returns:
          'batch_size', 'equal' (every prediction), 'images_that_differ' (right with one of the two
          batch sizes only), 'loss_difference'.
        """
        size = self.batch // 2 if self.batch > self._unit else 2 * self.batch
        other = self._with(eval=dataclasses.replace(self.config.eval, batch_size=size))
        found = other._pass(state, split, fraction, False, True)
        bits = [np.unpackbits(np.frombuffer(base64.b64decode(s['correct']), np.uint8))
                for s in (scores, found)]
        return {'batch_size': other.batch, 'equal': found['confusion'] == scores['confusion']
                and found['correct'] == scores['correct'],
                'images_that_differ': int((bits[0] != bits[1]).sum()),
                'loss_difference': abs(found['loss'] - scores['loss'])}

    def _with(self, **changes: Any) -> 'Evaluator':
        config = dataclasses.replace(self.config, **changes)
        return Evaluator(config, self.info, self.mesh, self._tokens)

    def _pass(self, state: TrainState, split: str, fraction: float, unbounded: bool,
              details: bool) -> dict[str, Any]:
        """`score`; with `unbounded` batches in which a choice was dropped are run again with room
        for all. In the others that changes nothing."""
        losses, predictions, free, labels, samples = [], [], [], [], []
        sums: dict[str, Any] = {}
        probe: dict[str, list[int]] = {}
        soft = leverage.soft(self.config.model)
        for number, (batch, run) in enumerate(self.outputs(state, split, fraction)):
            out = jax.device_get(run())
            real = out['valid']
            losses.append(out['loss'][real].astype(np.float64))
            predictions.append(out['prediction'][real])
            dropped = unbounded and any(x['dropped'].any() for x in out['layers'].values())
            free.append(jax.device_get(run(unbounded=True)['prediction'])[real] if dropped
                        else predictions[-1])
            labels.append(out['label'][real])
            sums = _add(sums, out['layers'])
            for name, choice in out['choices'].items():
                first = choice['gate'].argmax(-1) if soft else choice['expert'][:, 0]
                first = first.reshape(len(real), -1)[real].ravel()  # an image has many tokens
                probe[name] = (probe.get(name, []) + first[:_PROBE].tolist())[:_PROBE]
            if details and number == 0:
                samples = _samples(self._first_images(split, batch['image']), out)
        truth, predicted = np.concatenate(labels), np.concatenate(predictions)
        experts = self.config.model.moe.num_experts
        layers = {n: telemetry.summarize(s, experts) for n, s in sums.items()}
        result = {'loss': float(np.concatenate(losses).mean()),
                  'accuracy': float((truth == predicted).mean()),
                  'accuracy_unbounded': float((truth == np.concatenate(free)).mean()),
                  'images': int(truth.size), 'layers': layers}
        if details:
            for name, s in sums.items():
                layers[name]['expert_by_class'] = s['by_class'][:experts].tolist()
            confusion = np.zeros((self.info.num_classes,) * 2, np.int64)
            np.add.at(confusion, (truth, predicted), 1)
            correct = base64.b64encode(np.packbits(truth == predicted).tobytes()).decode()
            result |= {'correct': correct, 'confusion': confusion.tolist(), 'samples': samples}
        else:
            result['probe'] = probe
        return result

    def _first_images(self, split: str, own: np.ndarray) -> np.ndarray:
        """The first images of a split, uint8 [<= 24, H, W, C]; read again where other processes
        have them.

        Args:
          own: what this process has of the first batch.
        """
        if len(self._rows) == self.batch:
            return own[:_SAMPLES]
        with input_pipeline.evaluation_batches(
                self.config.dataset, split=split, batch_size=self.batch,
                rows=range(min(_SAMPLES, self.batch))) as batches:
            return next(batches)['image']

    def outputs(self, state: TrainState, split: str, fraction: float
                ) -> Iterator[tuple[dict[str, np.ndarray], Callable[..., dict[str, Any]]]]:
        """Each batch of a split, and `run(intervention=None, unbounded=False)`: what
        `eval_step_fn` says of it, on the device."""
        variables = state.variables(averaged=True)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.seed_key), STREAM)
        for number, (batch, arrays) in enumerate(self.batches(split)):
            def run(intervention: Intervention | None = None, unbounded: bool = False,
                    arrays=arrays, start=number * self.batch) -> dict[str, Any]:
                return self._step(unbounded)(variables, arrays, key, start, fraction, intervention)

            yield batch, run

    def batches(self, split: str) -> Iterator[tuple[dict[str, np.ndarray], dict[str, jax.Array]]]:
        """Each batch of a split, in the fixed order: its rows, and its arrays [1, B, ...].

        With `dataset.resident` they stay on the devices.
        """
        if self.config.dataset.resident and split not in (*self._kept, 'train'):
            self._kept[split] = list(self._read(split))
        yield from self._kept[split] if split in self._kept else self._read(split)

    def _read(self, split: str) -> Iterator[tuple[dict[str, np.ndarray], dict[str, jax.Array]]]:
        with input_pipeline.evaluation_batches(self.config.dataset, split=split,
                                               batch_size=self.batch, rows=self._rows) as batches:
            for batch in batches:
                arrays = {n: batch[n] for n in ('image', 'label', 'valid')}
                yield batch, mesh_lib.to_devices(arrays, self.mesh, 1)


def _add(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    more = jax.tree.map(lambda x: x.astype(np.float64), more)
    return jax.tree.map(np.add, total, more) if total else more


def _samples(images: np.ndarray, out: dict[str, Any]) -> list[dict[str, Any]]:
    """The first images with their predictions and the experts they went to."""
    import cv2

    samples = []
    for i, image in enumerate(images[:int(out['valid'].sum())]):
        image = image[..., ::-1] if image.shape[-1] == 3 else image
        png = base64.b64encode(cv2.imencode('.png', image)[1].tobytes()).decode()
        layers = {}
        for name, choice in out['choices'].items():
            tokens = len(choice['expert']) // len(out['label'])
            mine = slice(i * tokens, (i + 1) * tokens)
            side = math.isqrt(tokens)
            layers[name] = {
                'grid': None if tokens == 1 else [side, side] if side * side == tokens else None,
                'experts': choice['expert'][mine].tolist(),
                'gates': choice['gate'][mine].astype(float).round(4).tolist(),
                'kept': choice['kept'][mine].tolist()}
        samples.append({'image_png': png, 'label': int(out['label'][i]),
                        'prediction': int(out['prediction'][i]), 'layers': layers})
    return samples
