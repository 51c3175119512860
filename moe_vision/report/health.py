"""Says in words whether routing is healthy, and which config key to look at if it is not."""

import dataclasses
import math

from moe_vision.report.palette import count, percent, plain
from moe_vision.report.read import Run, as_dict, number

DROPS = 0.10  # above this share of dropped choices, a layer is worth a look


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`level` is good, warn, bad or none (nothing to judge); `points` are whole sentences."""

    level: str
    line: str
    points: list[str]


def judge(run: Run) -> Verdict:
    """The verdict over all routed layers, from the newest numbers there are."""
    layers = run.layers()
    points = _divergence(run)
    if not layers:
        if run.rows or run.result:
            return Verdict('bad' if points else 'none', 'Dense run: nothing is routed.', points)
        return Verdict('none', 'Too early to say: no numbers on routing yet.', points)
    level = 'warn' if points else 'good'
    least, most_dropped = math.nan, math.nan
    for layer in layers:
        values, where = run.latest(layer)
        found = _layer(run, layer, values, where)
        points += found
        if found:
            level = 'warn'
        share = number(values.get('effective_experts')) / max(run.num_experts(layer), 1)
        least = float(min(filter(math.isfinite, (least, share)), default=math.nan))
        drops = number(values.get('drop_rate'))
        most_dropped = float(max(filter(math.isfinite, (most_dropped, drops)), default=math.nan))
    points += _unspecialised(run, layers)
    if run.result.get('collapsed') is True:
        return Verdict('bad', 'Routing collapsed: a few experts take nearly everything.', points)
    if level == 'warn':
        collapse = any(_collapsed(run, layer) for layer in layers)
        line = 'Routing is collapsing: ' if collapse else 'No collapse, but worth a look: '
        return Verdict('bad' if collapse else 'warn', line + _first(points[0]), points)
    if math.isnan(least):
        return Verdict('none', 'Routing cannot be judged: its numbers are missing.', points)
    line = f'No collapse: load is spread over at least {percent(least, 0)} of the experts'
    if math.isfinite(most_dropped):
        line += f' and at most {percent(most_dropped)} of choices are dropped'
    return Verdict('good', line + ', in every routed layer.', points)


def _first(sentence: str) -> str:
    cut = sentence.split('; ')[0].rstrip('.')
    return cut + '.'


def _collapsed(run: Run, layer: str) -> bool:
    experts = run.num_experts(layer)
    return experts > 1 and number(run.latest(layer)[0].get('effective_experts')) < experts / 4


def _layer(run: Run, layer: str, values: dict, where: str) -> list[str]:
    experts = run.num_experts(layer)
    dead, effective, drops, orphans = (
        number(values.get(key))
        for key in ('dead_experts', 'effective_experts', 'drop_rate', 'orphan_rate')
    )
    points = []
    if experts and effective < experts / 2:
        points.append(
            f'{layer} spreads its load like {plain(effective, 2)} of {experts} experts {where}; '
            f'look at {_key(run, "model.moe.losses")} and {_key(run, "model.moe.router")}.'
        )
    if dead > 0:
        points.append(
            f'{layer} has {count(dead)} of {experts} experts dead {where} (they receive nothing); '
            f'look at {_key(run, "model.moe.losses")} and {_key(run, "model.moe.router")}.'
        )
    if drops > DROPS:
        lost = f', and {percent(orphans)} of tokens lose all of theirs' if orphans > 0 else ''
        points.append(
            f'{layer} drops {percent(drops)} of its choices {where}{lost}; '
            f'look at {_key(run, "model.moe.capacity_factor")}.'
        )
    return points


def _key(run: Run, key: str) -> str:
    value = run.setting(key)
    return key if value is None else f'{key} (now {value})'


def _unspecialised(run: Run, layers: list[str]) -> list[str]:
    tested = as_dict(run.evaluation.get('layers'))
    blind = [
        layer for layer in layers
        if number(as_dict(tested.get(layer)).get('mutual_information')) < 0.02
    ]  # fmt: skip
    if not blind:
        return []
    return [f'In {", ".join(blind)}, the choice of expert says next to nothing about the class '
            '(mutual information below 0.02 nats); that need not hurt accuracy.']


def _divergence(run: Run) -> list[str]:
    for name in ('train', 'validation'):
        rows = run.split(name)
        bad = [row for row in rows if 'loss' in row and math.isnan(number(row['loss']))]
        if bad:
            return [f'The {name} loss is not a finite number in {len(bad)} of {len(rows)} rows, '
                    f'first at step {bad[0]["step"]:,}; look at train.learning_rate and '
                    'train.clip_norm.']  # fmt: skip
    return []
