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

import input_pipeline
from input_pipeline import DatasetInfo
from input_pipeline.reader import Item
from moe_vision import leverage, models
from moe_vision.common import compile_cache
from moe_vision.common.streams import RunStream
from moe_vision.config.schema import DROPPING, Config
from moe_vision.routing import telemetry
from moe_vision.routing.capacity import capacity
from moe_vision.routing.interventions import Intervention
from moe_vision.training import mesh as mesh_lib
from moe_vision.training.step import TrainState, eval_step_fn, images_per_group

_SAMPLES = 24  # images that the report shows with their experts
_MISTAKES = 24  # images that it shows because they were mistaken most confidently
_THUMBNAIL = 96  # longest side of a mistake's picture
_PROBE = 256  # tokens whose first choices each validation records
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
        self._steps: dict[bool, Callable] = {}
        self._resident: dict[str, list[tuple[dict[str, np.ndarray], dict[str, jax.Array]]]] = {}
        model = config.model
        routed = model.moe.placement != 'none' and model.twin in ('none', *DROPPING)
        self._has_capacity = routed and not leverage.soft(model)  # soft routing drops no choice
        # whether a choice can find no slot, so that unbounded capacity may change an accuracy
        self.can_drop = self._has_capacity and math.isfinite(model.moe.eval_capacity_factor)

    def _step(self, unbounded: bool) -> Callable:
        if unbounded not in self._steps:
            model = self.config.model
            if unbounded:
                moe = dataclasses.replace(model.moe, eval_capacity_factor=math.inf)
                model = dataclasses.replace(model, moe=moe)
            net = models.build(model, self.info.num_classes, self.mesh)
            step = eval_step_fn(
                net, self.info.num_classes, *input_pipeline.mean_std(self.config.dataset)
            )
            self._steps[unbounded] = jax.jit(step, out_shardings=mesh_lib.replicated(self.mesh))
        return self._steps[unbounded]

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
        return self._pass(state, split, fraction, self.can_drop, details)

    def accuracy(self, state: TrainState, split: str, fraction: float) -> float:
        """The 'accuracy' that `score` returns, without the pass for unbounded capacity."""
        return self._pass(state, split, fraction, False, False)['accuracy']

    def sweep(self, state: TrainState, split: str, fraction: float) -> list[dict[str, Any]]:
        """Scores a split at each of `eval.capacity_factors`; [] where no choice can be dropped.

        Each row has 'capacity_factor', 'effective_factor' (C E / (k T)), 'accuracy', 'loss' and
        'drop_rate' by routed layer.
        """
        rows = []
        for factor in self.config.eval.capacity_factors if self._has_capacity else ():
            model = self.config.model
            moe = dataclasses.replace(model.moe, eval_capacity_factor=factor)
            slots = capacity(factor, moe.k, moe.group_size, moe.num_experts, moe.capacity_multiple)
            scores = self._with(model=dataclasses.replace(model, moe=moe))._pass(
                state, split, fraction, False, False
            )
            rows.append(
                {
                    'capacity_factor': factor,
                    'effective_factor': slots * moe.num_experts / (moe.k * moe.group_size),
                    'accuracy': scores['accuracy'],
                    'loss': scores['loss'],
                    'drop_rate': {n: x['drop_rate'] for n, x in scores['layers'].items()},
                }
            )
        return rows

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
        other = self._with(eval=dataclasses.replace(self.config.eval, batch_size=size))
        again = other._pass(state, split, fraction, False, True)
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

    def _with(self, **changes: Any) -> 'Evaluator':
        config = dataclasses.replace(self.config, **changes)
        return Evaluator(config, self.info, self.mesh, self._tokens)

    def _pass(
        self, state: TrainState, split: str, fraction: float, unbounded: bool, details: bool
    ) -> dict[str, Any]:
        """`score`. With `unbounded`, batches with dropped choices run again at unbounded capacity,
        which changes nothing in other batches."""
        losses, predictions, predictions_unbounded, labels, probabilities = [], [], [], [], []
        samples: list[dict[str, Any]] = []
        sums: dict[str, Any] = {}
        probe: dict[str, list[int]] = {}
        soft = leverage.soft(self.config.model)
        for number, (_, run) in enumerate(self.outputs(state, split, fraction)):
            out = jax.device_get(run())
            valid = out['valid']
            losses.append(out['loss'][valid].astype(np.float64))
            predictions.append(out['prediction'][valid])
            dropped = unbounded and any(x['dropped'].any() for x in out['layers'].values())
            predictions_unbounded.append(
                jax.device_get(run(unbounded=True)['prediction'])[valid]
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
                samples = self._samples(split, out)
        truth, predicted, predicted_unbounded = map(
            np.concatenate, (labels, predictions, predictions_unbounded)
        )
        experts = self.config.model.moe.num_experts
        layers = {n: telemetry.summarize(s, experts) for n, s in sums.items()}
        result = {
            'loss': float(np.concatenate(losses).mean()),
            'accuracy': float((truth == predicted).mean()),
            'accuracy_unbounded': float((truth == predicted_unbounded).mean()),
            'images': int(truth.size),
            'layers': layers,
        }
        if details:
            for name, s in sums.items():
                layers[name]['expert_by_class'] = s['by_class'][:experts].tolist()
            confusion = np.zeros((self.info.num_classes,) * 2, np.int64)
            np.add.at(confusion, (truth, predicted), 1)
            correct = base64.b64encode(np.packbits(truth == predicted).tobytes()).decode()
            result |= {
                'correct': correct,
                'confusion': confusion.tolist(),
                'samples': samples,
                'mistakes': self._mistakes(split, truth, predicted, np.concatenate(probabilities)),
            }
        else:
            result['probe'] = probe
        return result

    def _samples(self, split: str, out: dict[str, Any]) -> list[dict[str, Any]]:
        """The first images of a split, with what was computed for the first batch."""
        count = min(_SAMPLES, int(out['valid'].sum()))
        return [
            {**_shown(index, item, int(out['prediction'][i])), 'layers': _routes(out, i)}
            for i, (index, item) in enumerate(
                input_pipeline.evaluation_items(self.config.dataset, split, range(count))
            )
        ]

    def _mistakes(
        self, split: str, truth: np.ndarray, predicted: np.ndarray, probability: np.ndarray
    ) -> list[dict[str, Any]]:
        """The images that were mistaken with the highest probability of the wrong class, in order.

        Args:
          truth, predicted, probability: of all images in the order of evaluation.
        """
        wrong = np.flatnonzero(truth != predicted)
        places = wrong[np.argsort(-probability[wrong], kind='stable')][:_MISTAKES]
        items = input_pipeline.evaluation_items(self.config.dataset, split, places.tolist())
        return [
            _shown(index, item, int(predicted[place]), _THUMBNAIL)
            | {'probability': float(probability[place])}
            for place, (index, item) in zip(places.tolist(), items, strict=True)
        ]

    def outputs(
        self, state: TrainState, split: str, fraction: float
    ) -> Iterator[tuple[dict[str, np.ndarray], Callable[..., dict[str, Any]]]]:
        """Each batch of a split with a function `run(intervention=None, unbounded=False)`, which
        returns what `eval_step_fn` computes for it, still on the device."""
        variables = state.variables(averaged=True)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.seed_key), STREAM)
        for number, (batch, arrays) in enumerate(self.batches(split)):

            def run(
                intervention: Intervention | None = None,
                unbounded: bool = False,
                arrays=arrays,
                start=number * self.batch,
            ) -> dict[str, Any]:
                what = 'the evaluation' + (' with unbounded capacity' if unbounded else '')
                with self._compiling(what + (' with changed routes' if intervention else '')):
                    return self._step(unbounded)(
                        variables, arrays, key, start, fraction, intervention
                    )

            yield batch, run

    def batches(
        self, split: str, strict: bool = True
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, jax.Array]]]:
        """Each batch of a split in the fixed order: this process's rows, and global arrays
        [1, B, ...].

        With `dataset.resident` the arrays stay on the devices for the next pass.

        Args:
          strict: whether an image that cannot be decoded is an error; otherwise it is masked.
        """
        if self.config.dataset.resident and split not in (*self._resident, 'train'):
            self._resident[split] = list(self._read(split, strict))
        yield from self._resident[split] if split in self._resident else self._read(split, strict)

    def _read(
        self, split: str, strict: bool
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, jax.Array]]]:
        with input_pipeline.evaluation_batches(
            self.config.dataset,
            split=split,
            batch_size=self.batch,
            rows=self._rows,
            strict=strict,
        ) as batches:
            for batch in batches:
                arrays = {n: x for n, x in batch.items() if n != 'index'}
                yield batch, mesh_lib.to_devices(arrays, self.mesh, 1)


def _add(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The sum in float64; an empty `total` counts as 0."""
    more = jax.tree.map(lambda x: x.astype(np.float64), more)
    return jax.tree.map(np.add, total, more) if total else more


def _shown(index: int, item: Item, prediction: int, longest: int = 0) -> dict[str, Any]:
    """An image as the report shows it: 'index' is its place in the split, 'file' its name.

    Args:
      longest: shrink the picture to this side at most; 0 keeps it.
    """
    import cv2

    assert item.image is not None  # the evaluation would have stopped
    image = item.image[..., ::-1] if item.image.shape[-1] == 3 else item.image
    if 0 < longest < max(image.shape[:2]):
        height, width = (max(round(n * longest / max(image.shape[:2])), 1) for n in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return {
        'index': index,
        'file': item.key,
        'image_png': base64.b64encode(cv2.imencode('.png', image)[1].tobytes()).decode(),
        'label': item.label,
        'prediction': prediction,
    }


def _routes(out: dict[str, Any], i: int) -> dict[str, Any]:
    """The experts, gates and kept choices of image i of a batch, by layer."""
    layers = {}
    for name, choice in out['choices'].items():
        tokens = len(choice['expert']) // len(out['label'])
        own = slice(i * tokens, (i + 1) * tokens)
        side = math.isqrt(tokens)
        layers[name] = {
            'grid': None if tokens == 1 else [side, side] if side * side == tokens else None,
            'experts': choice['expert'][own].tolist(),
            'gates': choice['gate'][own].astype(float).round(4).tolist(),
            'kept': choice['kept'][own].tolist(),
        }
    return layers
