"""Says in words whether routing is healthy, and which config key to look at if it is not."""

import dataclasses
import math
from collections.abc import Callable

from moe_vision.common.json_values import as_dict, number
from moe_vision.report.formats import count, percent, significant
from moe_vision.report.read import Run

DROPS = 0.10  # above this share of dropped choices, a layer is worth a look
BLIND = 0.02  # nats; below this, the choice of expert says almost nothing about the class


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
    where: str
    effective: float
    dead: float
    drops: float
    orphans: float

    @classmethod
    def read(cls, run: Run, name: str) -> '_Layer':
        values, where = run.latest(name)
        keys = ('effective_experts', 'dead_experts', 'drop_rate', 'orphan_rate')
        return cls(name, run.num_experts(name), where, *(number(values.get(k)) for k in keys))


def judge(run: Run) -> Verdict:
    """The verdict over all routed layers, from the newest numbers there are."""
    layers = [_Layer.read(run, name) for name in run.layers()]
    points = _divergence(run)
    if not layers:
        if run.rows or run.result:
            return Verdict('bad' if points else 'none', 'Dense run: nothing is routed.', points)
        return Verdict('none', 'Too early to say: no numbers on routing yet.', points)
    points += _findings(run, layers)
    worst = min(layers, key=lambda x: x.effective if x.effective == x.effective else math.inf)
    spread = (
        f'{worst.name} uses the equivalent of {significant(worst.effective, 2)} of {worst.experts}'
    )
    known = math.isfinite(worst.effective)
    if run.result.get('collapsed') is True or worst.effective < worst.experts / 4:
        why = f'{spread} experts.' if known else 'result.json says so.'
        return Verdict('bad', f'Routing collapsed: {why}', points)
    if points:
        line = f'No collapse, but worth a look: {points[0].split("; look at ")[0].rstrip(".")}.'
        return Verdict('warn', line, points + _unspecialised(run))
    if not known:
        return Verdict('none', 'Routing cannot be judged: its numbers are missing.', points)
    drops = max((x.drops for x in layers if math.isfinite(x.drops)), default=math.nan)
    line = f'No collapse: even {spread} experts'
    if drops > 0:
        line += f', and at most {percent(drops)} of choices are dropped'
    elif drops == 0:
        line += ', and no choice is dropped'
    return Verdict('good', f'{line}, {worst.where}.', _unspecialised(run))


def _findings(run: Run, layers: list[_Layer]) -> list[str]:
    """One sentence per kind of problem, about all layers that have it."""
    balance = f'look at {_key(run, "model.moe.losses")} and {_key(run, "model.moe.router")}'

    def named(bad: list[_Layer], number_of: Callable[[_Layer], str]) -> str:
        return ', '.join(f'{x.name} ({number_of(x)})' for x in bad)

    points = []
    if thin := [x for x in layers if x.effective < x.experts / 2]:
        names = named(thin, lambda x: f'equivalent to {significant(x.effective, 2)} of {x.experts}')
        points.append(
            f'Fewer than half of the experts carry the load {thin[0].where}: {names}; {balance}.'
        )
    if dead := [x for x in layers if x.dead > 0]:
        names = named(dead, lambda x: f'{count(x.dead)} of {x.experts}')
        points.append(f'Some experts are dead {dead[0].where}: {names}; {balance}.')
    if full := [x for x in layers if x.drops > DROPS]:
        names = named(
            full,
            lambda x: (
                percent(x.drops)
                + (f', {percent(x.orphans)} of tokens lose all choices' if x.orphans > 0 else '')
            ),
        )
        points.append(
            f'Many choices are dropped for lack of room {full[0].where}: {names}; '
            f'look at {_key(run, "model.moe.capacity_factor")}.'
        )
    return points


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
