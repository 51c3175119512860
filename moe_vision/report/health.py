"""Says in words whether a run is healthy, and which config key to look at if it is not."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from moe_vision.common import limits
from moe_vision.common.json_values import as_dict, number
from moe_vision.report.formats import all_of, percent, share, significant
from moe_vision.report.read import Newest, Run

BLIND = 0.02  # nats; below this, the choice of expert says almost nothing about the class
DEFINITION = (
    'A layer has collapsed if fewer than half of its E experts carry its load (1/Σ load² is below '
    f'E/2), or if an expert is dead (it gets less than {share(limits.DEAD)} of an even load). '
    'A run has collapsed if any of its layers has, in its last evaluation.'
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`level` is good, warn, bad or none (nothing to judge); `points` are sentences."""

    level: str
    line: str
    points: list[str]


@dataclasses.dataclass(frozen=True)
class _Layer:
    name: str
    experts: int
    newest: Newest

    def of(self, key: str) -> float:
        return number(self.newest.values.get(key))

    @property
    def why(self) -> str:
        """Why this layer has collapsed; '' if it has not."""
        numbers = self.of('effective_experts'), self.of('dead_experts')
        return all_of(list(limits.why_collapsed(*numbers, self.experts).values()))


def judge(run: Run) -> Verdict:
    """The verdict over all routed layers and classes, from the newest numbers there are."""
    layers = [_Layer(name, run.num_experts(name), run.latest(name)) for name in run.layers()]
    diverged, collapse = _divergence(run), _collapse(run, layers)
    points = [*diverged, *collapse, *_drops(run, layers), *_classes(run)]
    if collapse:
        return Verdict('bad', f'Routing collapsed: {_first(collapse)}.', points)
    if not layers:
        if not (run.rows or run.result or run.evaluation):
            return Verdict('none', 'Too early to say: there are no numbers yet.', points)
        line = 'Dense run: nothing is routed.'
        if points:
            line = f'{line} Worth a look: {_first(points)}.'
        return Verdict('bad' if diverged else 'warn' if points else 'none', line, points)
    if points:
        line = f'No collapse, but worth a look: {_first(points)}.'
        return Verdict('warn', line, points + _unspecialised(run))
    known = [x for x in layers if math.isfinite(x.of('effective_experts'))]
    if not known:
        return Verdict('none', 'Routing cannot be judged: its numbers are missing.', points)
    worst = min(known, key=lambda x: x.of('effective_experts') / max(x.experts, 1))
    line = (
        f'No collapse: even {worst.name} uses the equivalent of '
        f'{significant(worst.of("effective_experts"), 2)} of {worst.experts} experts'
    )
    drops = max((d for x in layers if math.isfinite(d := x.of('drop_rate'))), default=math.nan)
    if run.can_drop and drops > 0:
        line += f', and at most {percent(drops)} of choices are dropped'
    elif run.can_drop and drops == 0:
        line += ', and no choice is dropped'
    return Verdict('good', f'{line}, {worst.newest.where}.', _unspecialised(run))


def _first(points: list[str]) -> str:
    return points[0].split('; look at ')[0].rstrip('.')


def _collapse(run: Run, layers: list[_Layer]) -> list[str]:
    """A sentence for each layer that has collapsed: which criterion, and where it was measured."""
    look = f'look at {_key(run, "model.moe.losses")} and {_key(run, "model.moe.router")}'
    points = [
        f'{x.name}: {x.why}, {x.newest.where}'
        f'{" (not evaluated yet)" if x.newest.trained else ""}; {look}.'
        for x in layers
        if x.why
    ]
    if points or run.result.get('collapsed') is not True:
        return points
    effective, dead = (number(run.result.get(k)) for k in ('effective_experts', 'dead_experts'))
    experts = max((x.experts for x in layers), default=0)
    why = all_of(list(limits.why_collapsed(effective, dead, experts).values()))
    words = f': in its worst layer, {why}' if why else ''
    return [f'result.json says so, and evaluation.json does not show it{words}; {look}.']


def _drops(run: Run, layers: list[_Layer]) -> list[str]:
    """One sentence about all layers that drop too much, by the key that decides their room."""
    points = []
    for trained, name in ((False, 'eval_capacity_factor'), (True, 'capacity_factor')):
        full = [
            x for x in layers if x.of('drop_rate') > run.drop_limit and x.newest.trained == trained
        ]
        if full:
            names = _each(full, _dropped)
            points.append(
                f'More than {share(run.drop_limit)} of the choices are dropped for lack of room '
                f'{full[0].newest.where}: {names}; look at {_key(run, f"model.moe.{name}")}.'
            )
    return points


def _dropped(x: _Layer) -> str:
    orphans = x.of('orphan_rate')
    lost = f', {percent(orphans)} of tokens lose all choices' if orphans > 0 else ''
    return percent(x.of('drop_rate')) + lost


def _each(layers: list[_Layer], number_of: Callable[[_Layer], str]) -> str:
    return ', '.join(f'{x.name} ({number_of(x)})' for x in layers)


def _classes(run: Run) -> list[str]:
    right, images = by_class(run)
    return limits.about_classes(right, images, run.class_names(), run.scored) if images else []


def by_class(run: Run) -> tuple[list[float], list[float]]:
    """How many images of each class were right, and how many there are; [] if not known."""
    confusion = run.confusion()
    if confusion is None:
        return [], []
    return np.nan_to_num(np.diag(confusion)).tolist(), np.nansum(confusion, 1).tolist()


def _key(run: Run, key: str) -> str:
    value = run.setting(key)
    if isinstance(value, dict):
        value = ', '.join(f'{name} {weight}' for name, weight in value.items()) or 'none'
    return key if value is None else f'{key} (now {value})'


def _unspecialised(run: Run) -> list[str]:
    tested = as_dict(run.evaluation.get('layers'))
    blind = [
        layer
        for layer, values in tested.items()
        if number(as_dict(values).get('mutual_information')) < BLIND
    ]
    if not blind:
        return []
    return [
        f'In {", ".join(blind)}, the choice of expert says next to nothing about the class '
        f'(mutual information below {BLIND} nats); that need not hurt accuracy.'
    ]


def _divergence(run: Run) -> list[str]:
    for name in ('train', 'validation'):
        rows = run.split(name)
        bad = [row for row in rows if 'loss' in row and math.isnan(number(row['loss']))]
        if bad:
            return [
                f'The {name} loss is not a finite number in {len(bad)} of {len(rows)} rows, '
                f'first at step {bad[0]["step"]:,}; look at train.learning_rate and '
                'train.clip_norm.'
            ]
    return []
