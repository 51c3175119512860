"""Writes what each arm costs and reaches, whether its experts collapsed, and what probes found."""

import math
from collections.abc import Iterable
from typing import Any

from moe_vision.common.json_values import number, value_at
from moe_vision.report.formats import NONE, count, pp, share, significant, size
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.analysis.pairs import listed
from moe_vision.study.analysis.summaries import ArmSummary
from moe_vision.study.report import numbers
from moe_vision.study.report.document import (
    Block,
    Name,
    Picture,
    Section,
    Table,
    Text,
    Words,
    joined,
)
from moe_vision.study.report.numbers import spread
from moe_vision.study.report.tables import mechanism_rows

_ACCURACIES = {
    'test': (
        'test accuracy, %',
        'final validation accuracy, %',
        'at the checkpoint selected on validation, %',
        'with unbounded capacity, %',
    ),
    'validation': ('validation accuracy, %',),
}
_COSTS = (
    'diverged',
    'FLOPs per image',
    'executed FLOPs',
    'ρ place',
    'ρ active',
    'ρ executed',
    'parameters',
    'active parameters',
)
_COLLAPSE = (
    'arm',
    'collapsed',
    'effective experts',
    'fewest effective',
    'experts',
    'most dead experts',
    'drop rate, %',
    'orphan rate, %',
)
_MECHANISM = (
    'arm',
    'specialisation',
    'agreement with the final routes, first; halfway',
    'cost of shuffled routes, pp',
    'cost of random routes, pp',
    'cost of ablating an expert, pp',
    'cost of ablating the costliest, pp',
    'router gradient, task',
    'router gradient, balance',
    'task / balance',
)


def section(analysis: Analysis) -> Section:
    """Accuracy, cost and size of every arm."""
    if not analysis.arms:
        return Section('arms', 'Arms', [Text('No arm has a row yet.', 'missing')])
    text = (
        'Mean ± sd over seeds. ρ place: share of the same-width dense twin’s FLOPs in the '
        'replaced blocks. ρ active: share of this arm’s FLOPs in the chosen experts. ρ '
        'executed: share of the executed FLOPs in the experts’ buffers, padding included.'
    )
    head = ['arm', 'seeds', *_ACCURACIES[analysis.split], *_COSTS]
    rows = [_arm(a, analysis.split) for a in analysis.arms.values()]
    if any(lent := [_lenders(analysis, a) for a in analysis.arms.values()]):
        text += (
            ' “Rows of”: which study lent rows to this one, which read its rows instead of '
            'training equal cells again.'
        )
        head.append('rows of')
        rows = [[*row, owners or 'this study'] for row, owners in zip(rows, lent, strict=True)]
    return Section('arms', 'Arms', [Text(text), Table(head, rows, 'arms')])


def _lenders(analysis: Analysis, a: ArmSummary) -> list[str]:
    """Whose the rows of an arm are, if some were lent: `first` (arm `k2`, seeds 0, 1), ..."""
    rows = analysis.rows.get(a.name, {})
    seeds_of: dict[tuple[str, str], list[int]] = {}
    for seed in a.seeds:
        row = rows.get(seed, {})
        if 'lent_by' in row:
            seeds_of.setdefault((str(row.get('study')), str(row['lent_by'])), []).append(seed)
    owners: list[Words] = [
        ['study ', Name(study), ' (arm ', Name(arm), f', {listed(seeds)})']
        for (study, arm), seeds in seeds_of.items()
    ]
    own = len(a.seeds) - sum(map(len, seeds_of.values()))
    return joined([*owners, *([f'this study ({own})'] if own else [])]) if owners else []


def _arm(a: ArmSummary, split: str) -> list[Words]:
    accuracy = pp(a.mean, sign=False)
    if len(a.values) > 1:
        accuracy += f' ± {pp(a.sd, sign=False)}'
    other = [
        spread(a.validation),
        spread(a.selected),
        spread(a.unbounded) if a.routed else NONE,
    ]
    return [
        Name(a.name),
        str(len(a.seeds)),
        accuracy,
        *(other if split == 'test' else []),
        str(len(a.diverged)),
        size(a.flops),
        size(a.flops_executed),
        *map(share, (a.rho_place, a.rho_active, a.rho_executed)),
        count(a.params_total),
        count(a.params_active),
    ]


def collapse(analysis: Analysis) -> Section:
    """Whether experts are in use, per routed arm."""
    routed = [a for a in analysis.arms.values() if a.routed]
    if not routed:
        return Section('collapse', 'Collapse', [Text('No routed arm has a row yet.', 'missing')])
    lost = [a for a in routed if a.collapsed]
    text: list[str] = [
        'Values of the worst layer of each run on the test set; mean ± sd over seeds. Effective '
        'experts are 1/Σq² of the load q before capacity. An expert is dead if it gets less than '
        '1 % of an equal share. An orphan is a token that lost all its choices. '
    ]
    if lost:
        text += ['Collapsed in at least one seed: ', *joined(Name(a.name) for a in lost), '.']
    else:
        text.append('No run collapsed.')
    return Section(
        'collapse',
        'Collapse',
        [Text(text), Table(_COLLAPSE, [_collapse(a) for a in routed], 'collapse')],
    )


def _collapse(a: ArmSummary) -> list[Words]:
    effective = numbers.finite(a.effective_experts)
    dead = numbers.finite(a.dead_experts)
    experts = value_at(a.config, 'model', 'moe', 'num_experts')
    return [
        Name(a.name),
        f'{a.collapsed} of {len(a.seeds)}',
        spread(effective, _two),
        f'{min(effective):.2f}' if effective else NONE,
        str(experts) if experts else NONE,
        str(int(max(dead))) if dead else NONE,
        _rate(a.drop_rate),
        _rate(a.orphan_rate),
    ]


def _rate(values: Iterable[float]) -> str:
    return spread([100 * v for v in numbers.finite(values)], _two)


def _two(value: float) -> str:
    return f'{value:.2f}'


def mechanism(analysis: Analysis, agreement: Picture | None) -> Section:
    """Specialisation, agreement, interventions, gradients; and how to read them."""
    probes: dict[str, dict[str, list[tuple[int, str, Any, float]]]] = {}
    for arm, seed, quantity, layer, at, value in mechanism_rows(analysis):
        if math.isfinite(number(value)):
            probes.setdefault(arm, {}).setdefault(quantity, []).append((seed, layer, at, value))
    if not probes:
        return Section(
            'mechanism',
            'Mechanism',
            [Text('No trained routed cell was probed, so nothing is known about why.', 'missing')],
        )
    blocks: list[Block] = [
        Text(
            'Mean ± sd over seeds, layers averaged within a seed. Specialisation is I(expert; '
            'class), corrected for its bias and divided by its maximum: 0 is none, 1 is an expert '
            'per class. Agreement is the share of fixed probe images whose first choice is the '
            'same as after training: at the first validation, and halfway through training.'
        ),
        Text(
            'How to read them together: the cost of shuffled routes is what a token gains from '
            'its own expert instead of another token’s. If it is near zero, the experts are '
            'almost interchangeable on these images, however even their load and however high '
            'their specialisation. If it is large but the gap is not positive, the experts '
            'differ, but these data show no gain over the twin. Random routes keep the gates of '
            'the choices that they replace, so part of their cost may come from a gate that now '
            'weights another expert. A task gradient far below the balance gradient means that '
            'the router learns to balance rather than to choose; at k = 1 with gates normalised '
            'over the chosen experts, the task gradient is zero by construction.'
        ),
        Table(_MECHANISM, [_probed(name, arm) for name, arm in probes.items()], 'mechanism'),
    ]
    if any('random_drop' not in arm for arm in probes.values()):
        blocks.append(
            Text(
                'The cost of random routes is not measured where experts choose tokens: such '
                'experts have just the slots that their own choices fill, so it would also count '
                'what tokens lose that find no slot.'
            )
        )
    return Section('mechanism', 'Mechanism', [*blocks, agreement] if agreement else blocks)


def _probed(name: str, probes: dict[str, list[tuple[int, str, Any, float]]]) -> list[Words]:
    def seeds(
        quantity: str, scale: float = 1.0, at: Any = None, worst: bool = False
    ) -> list[float]:
        by_seed: dict[int, list[float]] = {}
        for seed, _, where, value in probes.get(quantity, []):
            if at is None or where == at:
                by_seed.setdefault(seed, []).append(scale * value)
        return [max(v) if worst else numbers.mean(v) for v in by_seed.values()]

    final = probes.get('agreement.with_final', [])
    epochs = sorted({epoch for _, _, epoch, _ in final if math.isfinite(number(epoch))})
    first_and_halfway = (epochs[0], epochs[(len(epochs) - 1) // 2]) if epochs else ()
    agreement = [numbers.mean(seeds('agreement.with_final', at=e)) for e in first_and_halfway]
    task, balance = seeds('router_gradient.task'), seeds('router_gradient.balance')
    ratios = [t / b for t, b in zip(task, balance, strict=False) if b]
    return [
        Name(name),
        spread(seeds('specialisation.normalised'), _two),
        '; '.join(map(share, agreement)) or NONE,
        spread(seeds('shuffle_drop', 100)),
        spread(seeds('random_drop', 100)),
        spread(seeds('ablation', 100)),
        spread(seeds('ablation', 100, worst=True)),
        spread(task, significant),
        spread(balance, significant),
        spread(ratios, significant),
    ]
