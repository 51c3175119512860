"""The tables' files: every number of the analysis, one CSV per question."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from moe_vision.common.json_values import as_dict, as_list
from moe_vision.study.analysis.analyse import Analysis, Gap
from moe_vision.study.analysis.statistics import Estimate
from moe_vision.study.analysis.summaries import ArmSummary
from moe_vision.study.report import numbers

_INTERVAL = ('mean', 'sd', 'low', 'high')
_GAP = ('effect_size', 'p', 'p_holm', 'p_sign_flip', 'p_tost', 'p_tost_holm', 'mde', 'correlation',
        'image_error', 'diverged', 'cost', 'cost_executed', 'params', 'rho_place')
_ARM = ('mean', 'sd', 'flops', 'flops_executed', 'params_total', 'params_active', 'rho_place',
        'rho_active', 'rho_executed', 'routed')
_PER_SEED = ('validation', 'selected', 'unbounded', 'effective_experts', 'dead_experts',
             'drop_rate', 'orphan_rate')


def write(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV of the rows, floats with ten digits, lines ended by a newline alone."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(head)
    writer.writerows([numbers.field(value) for value in row] for row in rows)
    return out.getvalue()


def tables(analysis: Analysis) -> dict[str, str]:
    """File name -> content."""
    return {
        'gaps.csv': _gaps(analysis.gaps.values()),
        'per_seed.csv': write(
            ('comparison', 'arm', 'baseline', 'seed', 'accuracy_arm_pp', 'accuracy_baseline_pp',
             'gap_pp', 'arm_diverged', 'baseline_diverged'), _per_seed(analysis)),
        'arms.csv': _arms(analysis.arms.values()),
        'collapse.csv': write(
            ('arm', 'seed', 'accuracy_pp', 'diverged', 'collapsed', *_PER_SEED),
            _collapse(analysis)),
        'patterns.csv': write(
            ('pattern', 'comparisons', 'verdicts', 'p', 'supported'),
            ((p.name, ' '.join(p.comparisons), ' '.join(p.verdicts), p.p, p.supported)
             for p in analysis.patterns)),
        'mechanism.csv': write(('arm', 'seed', 'quantity', 'layer', 'at', 'value'),
                               mechanism_rows(analysis)),
        'layers.csv': write(('arm', 'seed', 'layer', 'quantity', 'value'), _layers(analysis)),
        'problems.csv': write(('comparison', 'what'), [
            *(('', problem) for problem in analysis.problems),
            *((g.name, flag) for g in analysis.gaps.values() for flag in flags(g))]),
    }


def _gaps(gaps: Iterable[Gap]) -> str:
    parts = ('', 'selected_', 'without_diverged_')
    head = ['comparison', 'arm', 'baseline', 'primary', 'expected', 'verdict', 'note']
    head += [f'{part}{key}' for part in parts for key in ('n', *_INTERVAL, 'level')]
    return write(head + [*_GAP, 'seeds', 'flags'], (
        [g.name, g.arm, g.baseline, g.primary, g.expected, g.verdict, g.note]
        + [value for e in (g.estimate, g.selected, g.without_diverged) for value in _estimate(e)]
        + [getattr(g, key) for key in _GAP] + [' '.join(map(str, g.seeds)), '; '.join(g.flags)]
        for g in gaps))


def _estimate(e: Estimate) -> list[Any]:
    return [e.n, *(getattr(e, key) for key in _INTERVAL), e.level]


def _per_seed(analysis: Analysis) -> Iterator[Sequence[Any]]:
    for g in analysis.gaps.values():
        for seed, ours, theirs in zip(g.seeds, g.arm_values, g.baseline_values, strict=True):
            lost = (seed in diverged(analysis, arm) for arm in (g.arm, g.baseline))
            yield (g.name, g.arm, g.baseline, seed, ours, theirs, ours - theirs, *lost)


def rows_of(analysis: Analysis) -> dict[str, dict[int, dict[str, Any]]]:
    """arm -> seed -> row of what was registered, in its order; other rows are left out."""
    return {a.name: {s: analysis.rows[a.name][s] for s in a.seeds}
            for a in analysis.arms.values() if a.name in analysis.rows}


def confirms(g: Gap) -> bool:
    """Whether the pre-registration covers it: primary, and from rows of this registration."""
    return g.primary and not any(flag.startswith('exploratory: ') for flag in g.flags)


def flags(g: Gap) -> list[str]:
    """What sets a comparison apart, other than that it was registered as exploratory."""
    return [f for f in g.flags if g.primary or not f.startswith('exploratory: not a primary')]


def diverged(analysis: Analysis, arm: str) -> tuple[int, ...]:
    """Seeds of an arm whose run diverged."""
    return analysis.arms[arm].diverged if arm in analysis.arms else ()


def _arms(arms: Iterable[ArmSummary]) -> str:
    head = ['arm', 'seeds', 'diverged', 'mean_pp', 'sd_pp', 'validation_mean_pp',
            'selected_mean_pp', 'unbounded_mean_pp', 'collapsed_seeds', *_ARM[2:]]
    return write(head, (
        [a.name, len(a.seeds), len(a.diverged), a.mean, a.sd, numbers.mean(a.validation),
         numbers.mean(a.selected), numbers.mean(a.unbounded), a.collapsed,
         *(getattr(a, key) for key in _ARM[2:])]
        for a in arms))


def _collapse(analysis: Analysis) -> Iterator[Sequence[Any]]:
    for a in analysis.arms.values():
        for i, seed in enumerate(a.seeds):
            result = as_dict(analysis.rows.get(a.name, {}).get(seed, {})).get('result')
            values = (getattr(a, key) for key in _PER_SEED)
            yield (a.name, seed, a.values[i] if i < len(a.values) else None, seed in a.diverged,
                   as_dict(result).get('collapsed'),
                   *(v[i] if i < len(v) else None for v in values))


def mechanism_rows(analysis: Analysis) -> Iterator[tuple[str, int, str, str, Any, float]]:
    """(arm, seed, quantity, layer, expert or epoch, value) of every probe; shares of 1, nats."""
    for arm, rows in rows_of(analysis).items():
        for seed, row in rows.items():
            for quantity, value in as_dict(row.get('mechanism')).items():
                for layer, at, number in _flat(quantity, value):
                    yield arm, seed, *layer, at, number


def _flat(quantity: str, value: Any) -> Iterator[tuple[tuple[str, str], Any, float]]:
    if not isinstance(value, dict):
        yield (quantity, ''), '', value
        return
    for layer, inner in value.items():
        if isinstance(inner, list):
            for i, number in enumerate(inner):
                yield (quantity, layer), i, number
            continue
        inner = as_dict(inner)
        epochs = as_list(inner.get('epoch'))
        for key, number in inner.items():
            if key != 'epoch' and isinstance(number, list):
                for at, n in zip(epochs, number, strict=False):
                    yield (f'{quantity}.{key}', layer), at, n
            elif key != 'epoch':
                yield (f'{quantity}.{key}', layer), '', number


def _layers(analysis: Analysis) -> Iterator[Sequence[Any]]:
    for arm, rows in rows_of(analysis).items():
        for seed, row in rows.items():
            for layer, values in as_dict(row.get('layers')).items():
                for key, value in as_dict(values).items():
                    if isinstance(value, int | float):
                        yield arm, seed, layer, key, value
