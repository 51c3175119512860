"""Scores a trained state exactly: every image once, in a fixed order and in fixed routing groups.

Routing group g holds images [gS, (g+1)S) of that order, S to a group. So neither the batch size nor
the number of processes changes which images compete for capacity. The host averages the losses of
the images in that order, in float64.

Axes: B images of a batch, L classes, E experts.
"""

import base64
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

import input_pipeline
from input_pipeline import DatasetInfo
from moe_vision import leverage, models
from moe_vision.common import compile_cache
from moe_vision.common.streams import RunStream
from moe_vision.config.places import (
    can_drop,
    has_capacity,
    moe_at,
    routed_layers,
    with_eval_capacity,
)
from moe_vision.config.schema import Config
from moe_vision.layers.route import slots_of
from moe_vision.routing import telemetry
from moe_vision.routing.capacity import effective_factor
from moe_vision.routing.interventions import Intervention
from moe_vision.training import mesh as mesh_lib
from moe_vision.training import pictures
from moe_vision.training.step import TrainState, eval_step_fn, images_per_group

_PROBE = 256  # tokens whose first choices each validation records
Outputs = Iterator[Callable[..., dict[str, Any]]]  # for each batch of a split, what scores it
STREAM = RunStream.EVALUATION  # what evaluation draws is derived from the run's key and this


class Evaluator:
    """Scores states on a split. Compiles once for each capacity factor; seeds share the programs.

    Args:
      config, info, mesh: the run's.
      tokens_per_image: patches of an image; 1 where whole images are routed.
    """

    def __init__(
        self, config: Config, info: DatasetInfo, mesh: jax.sharding.Mesh, tokens_per_image: int
    ):
        self.config, self.info, self.mesh = config, info, mesh
        group = images_per_group(config, tokens_per_image)
        unit = group * mesh.size
        if unit > config.eval.batch_size:  # then groups may span the devices of an expert axis
            unit = math.lcm(group * mesh.shape['data'], mesh.size)
        self._tokens, self._unit = tokens_per_image, unit
        self.batch = math.ceil(config.eval.batch_size / unit) * unit
        self._rows = mesh_lib.rows_of_process(self.batch, mesh)
        self._compiling = compile_cache.FirstCalls(config.model.name)
        self._steps: dict[float | None, Callable] = {}
        self._resident: dict[str, list[dict[str, jax.Array]]] = {}
        # whether unbounded capacity may change an accuracy
        self.can_drop = can_drop(config.model)

    def _step(self, factor: float | None) -> Callable:
        """The compiled evaluation of a batch at a capacity factor; None takes the config's."""
        if factor not in self._steps:
            model = self.config.model
            if factor is not None:
                model = with_eval_capacity(model, factor)
            net = models.build(model, self.info.num_classes, self.mesh)
            step = eval_step_fn(
                net, self.info.num_classes, *input_pipeline.mean_std(self.config.dataset)
            )
            self._steps[factor] = jax.jit(step, out_shardings=mesh_lib.replicated(self.mesh))
        return self._steps[factor]

    def score(
        self, state: TrainState, split: str, fraction: float, details: bool = False
    ) -> dict[str, Any]:
        """Scores a split: 'loss', 'accuracy', 'accuracy_unbounded', 'images', 'layers'.

        With `details` there are also 'correct' (one bit per image in order, packed, base64) and
        what the report shows: 'confusion' [L, L], 'samples', 'mistakes' (the images with the
        highest probability of a wrong class), and in each layer 'expert_by_class' [E, L]. Without
        it there is 'probe': each layer's first choices for the first 256 tokens.

        Args:
          fraction: of the training that is done, 0 to 1; routers with a schedule read it.
        """
        return self._pass(self.outputs(state, split, fraction), split, self.can_drop, details)

    def accuracy(self, state: TrainState, split: str, fraction: float) -> float:
        """The 'accuracy' that `score` returns, without the pass for unbounded capacity."""
        return self._pass(self.outputs(state, split, fraction), split)['accuracy']

    def asked(self, state: TrainState, split: str) -> dict[str, Any]:
        """What else the config wants to know of a trained state; {} unless it asks.

        'train_accuracy': on `eval.train_images` training images without augmentation, so that the
        difference to validation says whether the network underfits. They are those that
        `dataset.train_images` of the same number draws, the same for every arm and seed. Images
        that cannot be decoded are left out; None if none can.
        'accuracy_at_capacity': {'1.25': accuracy on `split`, ...} for `eval.capacity_factors`,
        unless no choice can be dropped.
        """
        out: dict[str, Any] = {}
        if images := self.config.eval.train_images:
            counted = right = 0
            for found, _ in _one_ahead(self.outputs(state, 'train', 1.0, images=images)):
                scored = jax.device_get({n: found[n] for n in ('prediction', 'label', 'valid')})
                counted += int(scored['valid'].sum())
                right += int((scored['valid'] & (scored['prediction'] == scored['label'])).sum())
            if counted < images:
                logging.warning(
                    'train_accuracy counts %d of %d images: the others cannot be decoded',
                    counted,
                    images,
                )
            out['train_accuracy'] = right / counted if counted else None
        if rows := list(self.sweep(state, split, 1.0)):
            out['accuracy_at_capacity'] = {str(r['capacity_factor']): r['accuracy'] for r in rows}
        return out

    def sweep(self, state: TrainState, split: str, fraction: float) -> Iterator[dict[str, Any]]:
        """Scores a split at each of `eval.capacity_factors`, if choices can be dropped.

        Each row has 'capacity_factor', 'effective_factor' (C E / (k T), the smallest of the
        layers), 'accuracy', 'loss' and 'drop_rate' by routed layer.
        """
        for factor in self.config.eval.capacity_factors if has_capacity(self.config.model) else ():
            model = with_eval_capacity(self.config.model, factor)
            effective = [
                effective_factor(slots_of(moe, train=False), moe.k, moe.group_size, moe.num_experts)
                for moe in (moe_at(model, n) for n in range(routed_layers(model)))
            ]
            scores = self._pass(self.outputs(state, split, fraction, factor), split)
            yield {
                'capacity_factor': factor,
                'effective_factor': min(effective),
                'accuracy': scores['accuracy'],
                'loss': scores['loss'],
                'drop_rate': {n: x['drop_rate'] for n, x in scores['layers'].items()},
            }

    def at_another_batch_size(
        self, state: TrainState, split: str, fraction: float, scores: dict[str, Any]
    ) -> dict[str, Any]:
        """Scores a split again with half the batch size, or twice the smallest, and compares.

        Args:
          scores: what `score` returned with details.

        Returns:
          'batch_size' of the second pass, 'equal' (whether all predictions are), the number of
          'images_that_differ' (right in one of the two passes only), 'loss_difference'.
        """
        size = self.batch // 2 if self.batch > self._unit else 2 * self.batch
        config = dataclasses.replace(
            self.config, eval=dataclasses.replace(self.config.eval, batch_size=size)
        )
        other = Evaluator(config, self.info, self.mesh, self._tokens)
        again = other._pass(other.outputs(state, split, fraction), split, details=True)
        ours, theirs = (
            np.unpackbits(np.frombuffer(base64.b64decode(s['correct']), np.uint8))
            for s in (scores, again)
        )
        return {
            'batch_size': other.batch,
            'equal': all(again[n] == scores[n] for n in ('confusion', 'correct')),
            'images_that_differ': int((ours != theirs).sum()),
            'loss_difference': abs(again['loss'] - scores['loss']),
        }

    def _pass(
        self, outputs: Outputs, split: str, unbounded: bool = False, details: bool = False
    ) -> dict[str, Any]:
        """`score`. With `unbounded`, batches with dropped choices run again at unbounded capacity,
        which changes nothing in other batches."""
        losses, predictions, predictions_unbounded, labels, probabilities = [], [], [], [], []
        samples: list[dict[str, Any]] = []
        sums: dict[str, Any] = {}
        probe: dict[str, list[int]] = {}
        soft = leverage.soft(self.config.model)
        for number, (out, run) in enumerate(_one_ahead(outputs)):
            # what chose each token is most of what a batch reports
            wanted = number == 0 or not details and any(len(p) < _PROBE for p in probe.values())
            out = jax.device_get(out if wanted else out | {'choices': {}})
            valid = out['valid']
            losses.append(out['loss'][valid].astype(np.float64))
            predictions.append(out['prediction'][valid])
            dropped = unbounded and any(x['dropped'].any() for x in out['layers'].values())
            predictions_unbounded.append(
                jax.device_get(run(factor=math.inf)['prediction'])[valid]
                if dropped
                else predictions[-1]
            )
            labels.append(out['label'][valid])
            probabilities.append(out['probability'][valid])
            sums = _add(sums, out['layers'])
            for name, choice in out['choices'].items():
                first = choice['gate'].argmax(-1) if soft else choice['expert'][:, 0]
                first = first.reshape(len(valid), -1)[valid].ravel()  # an image has many tokens
                probe[name] = (probe.get(name, []) + first[:_PROBE].tolist())[:_PROBE]
            if details and number == 0:
                samples = pictures.samples(self.config.dataset, split, out)
        truth, predicted, predicted_unbounded = map(
            np.concatenate, (labels, predictions, predictions_unbounded)
        )
        layers = {n: telemetry.summarize(s) for n, s in sums.items()}
        result = {
            'loss': float(np.concatenate(losses).mean()),
            'accuracy': float((truth == predicted).mean()),
            'accuracy_unbounded': float((truth == predicted_unbounded).mean()),
            'images': int(truth.size),
            'layers': layers,
        }
        if details:
            for name, s in sums.items():
                layers[name]['expert_by_class'] = s['by_class'][: len(s['kept'])].tolist()
            confusion = np.zeros((self.info.num_classes,) * 2, np.int64)
            np.add.at(confusion, (truth, predicted), 1)
            correct = base64.b64encode(np.packbits(truth == predicted).tobytes()).decode()
            result |= {
                'correct': correct,
                'confusion': confusion.tolist(),
                'samples': samples,
                'mistakes': pictures.mistakes(
                    self.config.dataset, split, truth, predicted, np.concatenate(probabilities)
                ),
            }
        else:
            result['probe'] = probe
        return result

    def outputs(
        self,
        state: TrainState,
        split: str,
        fraction: float,
        factor: float | None = None,
        images: int = 0,
    ) -> Outputs:
        """For each batch of a split a function `run(intervention=None, factor=factor)`.

        It returns what `eval_step_fn` computes for the batch, still on the device.

        Args:
          factor: the capacity factor; None takes the config's.
          images: as `batches` takes it.
        """
        variables = state.variables(averaged=True)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.seed_key), STREAM)
        for number, arrays in enumerate(self.batches(split, not images, images)):

            def run(
                intervention: Intervention | None = None,
                factor: float | None = factor,
                arrays=arrays,
                start=number * self.batch,
            ) -> dict[str, Any]:
                what = 'the evaluation'
                what += '' if factor is None else f' at capacity factor {factor:g}'
                with self._compiling(what + (' with changed routes' if intervention else '')):
                    return self._step(factor)(variables, arrays, key, start, fraction, intervention)

            yield run

    def batches(
        self, split: str, strict: bool = True, images: int = 0
    ) -> Iterator[dict[str, jax.Array]]:
        """Each batch of a split in the fixed order, as global arrays [1, B, ...].

        With `dataset.resident` the arrays stay on the devices for the next pass.

        Args:
          strict: whether an image that cannot be decoded is an error; otherwise it is masked.
          images: of split 'train', take this many, as `dataset.train_images` does; 0 takes all.
        """
        if self.config.dataset.resident and split not in (*self._resident, 'train'):
            self._resident[split] = list(self._read(split, strict))
        kept = self._resident.get(split)
        yield from self._read(split, strict, images) if kept is None else kept

    def _read(self, split: str, strict: bool, images: int = 0) -> Iterator[dict[str, jax.Array]]:
        data = self.config.dataset
        with input_pipeline.evaluation_batches(
            dataclasses.replace(data, train_images=images) if images else data,
            split=split,
            batch_size=self.batch,
            rows=self._rows,
            strict=strict,
        ) as batches:
            for batch in batches:
                arrays = {n: x for n, x in batch.items() if n != 'index'}
                yield mesh_lib.to_devices(arrays, self.mesh, 1)


def _one_ahead(outputs: Outputs) -> Iterator[tuple[dict[str, Any], Callable[..., dict[str, Any]]]]:
    """What each batch's function returns, and the function. The device has the next batch before
    the host waits for this one, so it does not wait for the host; more would take more memory."""
    before = None
    for run in outputs:
        now = run(), run
        if before:
            yield before
        before = now
    if before:
        yield before


def _add(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The sum in float64; an empty `total` counts as 0."""
    more = jax.tree.map(lambda x: x.astype(np.float64), more)
    return jax.tree.map(np.add, total, more) if total else more
