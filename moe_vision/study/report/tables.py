"""Writes every number of the analysis as CSV, one file per question."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from moe_vision.common.csv_cells import shown
from moe_vision.common.json_values import as_dict, as_list
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.findings import Contrast, Finding, Gap
from moe_vision.study.analysis.statistics import Estimate
from moe_vision.study.analysis.summaries import ArmSummary
from moe_vision.study.report import numbers

_INTERVAL = ('mean', 'sd', 'low', 'high')
_GAP = (
    'effect_size',
    'p',
    'p_holm',
    'q',
    'p_sign_flip',
    'p_tost',
    'p_tost_holm',
    'mde',
    'correlation',
    'image_error',
    'diverged',
    'cost',
    'cost_executed',
    'params',
    'rho_place',
)
_JUDGED = ('primary', 'expected', 'verdict', 'note') + tuple(
    f'{part}{key}'
    for part in ('', 'selected_', 'without_diverged_')
    for key in ('n', *_INTERVAL, 'level')
)
_ARM = (
    'flops',
    'flops_executed',
    'params_total',
    'params_active',
    'rho_place',
    'rho_active',
    'rho_executed',
    'routed',
)
_PER_SEED = (
    'validation',
    'selected',
    'unbounded',
    'effective_experts',
    'dead_experts',
    'drop_rate',
    'orphan_rate',
)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV of the rows: floats with ten digits, each line ended by one newline character.

    No cell is a formula to a spreadsheet.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(map(shown, head))
    writer.writerows([_field(value) for value in row] for row in rows)
    return out.getvalue()


def _field(value: Any) -> str:
    """A value in a file; ten digits of a float, so that the last bits of a sum do not show."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return format(value, '.10g') if math.isfinite(value) else ''
    return '' if value is None else shown(str(value))


def every(analysis: Analysis) -> dict[str, str]:
    """The tables of a study, file name -> content."""
    combined = analysis.contrasts.values()
    return {
        **({'contrasts.csv': _contrasts(combined)} if combined else {}),
        'gaps.csv': _gaps(analysis.gaps.values()),
        'per_seed.csv': csv_text(
            (
                'comparison',
                'arm',
                'baseline',
                'seed',
                'accuracy_arm_pp',
                'accuracy_baseline_pp',
                'gap_pp',
                'arm_diverged',
                'baseline_diverged',
            ),
            _per_seed(analysis),
        ),
        'arms.csv': _arms(analysis.arms.values()),
        'collapse.csv': csv_text(
            ('arm', 'seed', 'accuracy_pp', 'diverged', 'collapsed', *_PER_SEED), _collapse(analysis)
        ),
        'patterns.csv': csv_text(
            ('pattern', 'comparisons', 'verdicts', 'p', 'supported'),
            (
                (p.name, ' '.join(p.comparisons), '; '.join(p.verdicts), p.p, p.supported)
                for p in analysis.patterns
            ),
        ),
        'mechanism.csv': csv_text(
            ('arm', 'seed', 'quantity', 'layer', 'at', 'value'), mechanism_rows(analysis)
        ),
        'layers.csv': csv_text(('arm', 'seed', 'layer', 'quantity', 'value'), _layers(analysis)),
        'problems.csv': csv_text(
            ('comparison', 'what'),
            [
                *(('', problem) for problem in analysis.problems),
                *((g.name, flag) for g in analysis.findings.values() for flag in g.remarks),
            ],
        ),
    }


def _gaps(gaps: Iterable[Gap]) -> str:
    return csv_text(
        ['comparison', 'arm', 'baseline', *_JUDGED, *_GAP, 'seeds', 'flags'],
        (
            [g.name, g.arm, g.baseline, *_judged(g)]
            + [getattr(g, key) for key in _GAP]
            + [' '.join(map(str, g.seeds)), '; '.join(g.flags)]
            for g in gaps
        ),
    )


def _contrasts(contrasts: Iterable[Contrast]) -> str:
    tests = _GAP[: _GAP.index('mde') + 1]
    return csv_text(
        ['name', 'kind', 'comparisons', 'x', 'values_of_x', *_JUDGED, *tests, 'diverged']
        + ['seed_values_pp', 'flags'],
        (
            [c.name, c.kind, ' '.join(part.name for part in c.parts), c.column]
            + [' '.join(format(x, '.10g') for x in c.x), *_judged(c)]
            + [getattr(c, key) for key in (*tests, 'diverged')]
            + [', '.join(f'{seed}: {value:.10g}' for seed, value in c.by_seed.items())]
            + ['; '.join(c.flags)]
            for c in contrasts
        ),
    )


def _judged(f: Finding) -> list[Any]:
    """What `_JUDGED` names."""
    values: list[Any] = [f.primary, f.expected, f.verdict, f.note]
    for e in (f.estimate, f.selected, f.without_diverged):
        values += _estimate(e)
    return values


def _estimate(e: Estimate) -> list[Any]:
    return [e.n, *(getattr(e, key) for key in _INTERVAL), e.level]


def _per_seed(analysis: Analysis) -> Iterator[Sequence[Any]]:
    for g in analysis.gaps.values():
        for seed, ours, theirs in zip(g.seeds, g.arm_values, g.baseline_values, strict=True):
            diverged = (seed in analysis.diverged(arm) for arm in (g.arm, g.baseline))
            yield (g.name, g.arm, g.baseline, seed, ours, theirs, ours - theirs, *diverged)


def _arms(arms: Iterable[ArmSummary]) -> str:
    head = [
        'arm',
        'seeds',
        'diverged',
        'mean_pp',
        'sd_pp',
        'validation_mean_pp',
        'selected_mean_pp',
        'unbounded_mean_pp',
        'collapsed_seeds',
        *_ARM,
    ]
    return csv_text(
        head,
        (
            [
                a.name,
                len(a.seeds),
                len(a.diverged),
                a.mean,
                a.sd,
                numbers.mean(a.validation),
                numbers.mean(a.selected),
                numbers.mean(a.unbounded),
                a.collapsed,
                *(getattr(a, key) for key in _ARM),
            ]
            for a in arms
        ),
    )


def _collapse(analysis: Analysis) -> Iterator[Sequence[Any]]:
    for a in analysis.arms.values():
        for i, seed in enumerate(a.seeds):
            result = as_dict(analysis.rows.get(a.name, {}).get(seed, {})).get('result')
            values = (getattr(a, key) for key in _PER_SEED)
            yield (
                a.name,
                seed,
                a.values[i] if i < len(a.values) else None,
                seed in a.diverged,
                as_dict(result).get('collapsed'),
                *(v[i] if i < len(v) else None for v in values),
            )


def mechanism_rows(analysis: Analysis) -> Iterator[tuple[str, int, str, str, Any, float]]:
    """(arm, seed, quantity, layer, expert or epoch, value) of every probe; shares of 1, nats."""
    for arm, seed, row in analysis.cells():
        for quantity, values in as_dict(row.get('mechanism')).items():
            for probe in _flat(quantity, values):
                yield arm, seed, *probe


def _flat(quantity: str, values: Any) -> Iterator[tuple[str, str, Any, float]]:
    """(quantity, layer, expert or epoch, value) from one number, lists or named lists."""
    if not isinstance(values, dict):
        yield quantity, '', '', values
        return
    for layer, inner in values.items():
        if isinstance(inner, list):
            yield from ((quantity, layer, expert, value) for expert, value in enumerate(inner))
            continue
        for key, value in as_dict(inner).items():
            if key != 'epoch' and isinstance(value, list):
                for epoch, at_epoch in zip(as_list(inner.get('epoch')), value, strict=False):
                    yield f'{quantity}.{key}', layer, epoch, at_epoch
            elif key != 'epoch':
                yield f'{quantity}.{key}', layer, '', value


def _layers(analysis: Analysis) -> Iterator[Sequence[Any]]:
    for arm, seed, row in analysis.cells():
        for layer, values in as_dict(row.get('layers')).items():
            for key, value in as_dict(values).items():
                if isinstance(value, int | float):
                    yield arm, seed, layer, key, value
