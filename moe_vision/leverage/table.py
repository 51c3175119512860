"""Formats a config's compute as lines: by block, in total, and against its dense twins."""

import math
from collections.abc import Iterable, Sequence

from moe_vision.config import registry
from moe_vision.config.kinds import kind_of_id, skips, true_kinds
from moe_vision.config.places import moe_at, routed_layers
from moe_vision.config.schema import Config, Moe
from moe_vision.leverage.types import Capacity, Leverage, TrainingStep, Twin

_COLUMNS = {
    'twin': 'flops_twin',
    'FLOPs': 'flops',
    'executed': 'flops_executed',
    'router': 'flops_router',
    'dispatch': 'flops_dispatch',
    'params': 'params',
    'active': 'params_active',
    'bytes': 'bytes',
    'active bytes': 'bytes_active',
    'buffers': 'bytes_buffers',
}
_NOTE = (
    'FLOPs per image, forward; * routed place; twin: the same-width dense network; buffers: '
    "bytes of the experts' slots per image, in and out"
)


def text(config: Config, leverage: Leverage) -> list[str]:
    """The table of blocks, the leverages and the capacities."""
    return [*blocks(leverage), '', leverages(leverage), *capacities(config, leverage)]


def network(config: Config) -> str:
    """One line that says what is routed."""
    moe, twin = config.model.moe, config.model.twin
    if moe.placement == 'none':
        return 'dense'
    router = registry.entry('router', registry.ROUTERS, moe.router)
    layers = [moe_at(config.model, n) for n in range(routed_layers(config.model))]
    k = '' if 'k' in router.ignores else f'k={_each([m.k for m in layers])}, '
    experts = _each([m.num_experts for m in layers])
    routed = f'{experts} experts, {k}at {moe.placement}, router {moe.router}'
    return f'dense twin ({twin}) of: {routed}' if twin != 'none' else routed


def _each(numbers: Sequence[int]) -> str:
    """The number of all layers, or those of each."""
    return ', '.join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))


def blocks(leverage: Leverage) -> list[str]:
    """One row per block; blocks without FLOPs share one row."""
    small = [b for b in leverage.blocks if not b.flops_executed]
    rows = [
        (
            f'{b.name}{" *" if b.routed else ""}',
            *[_cell(getattr(b, field), column) for column, field in _COLUMNS.items()],
        )
        for b in leverage.blocks
        if b.flops_executed
    ]
    if small:
        sums = {f: sum(getattr(b, f) for b in small) for f in _COLUMNS.values()}
        rows.append(
            (
                'without FLOPs',
                *[
                    '' if 'flops' in f or f == 'bytes_buffers' else _cell(sums[f], column)
                    for column, f in _COLUMNS.items()
                ],
            )
        )
    rows.append(('total', *[_cell(leverage.sum(f), column) for column, f in _COLUMNS.items()]))
    return [_NOTE, *aligned([('block', *_COLUMNS), *rows])]


def leverages(leverage: Leverage) -> str:
    return (
        f'rho_place {leverage.rho_place:.4f}   rho_active {leverage.rho_active:.4f}   '
        f'rho_executed {leverage.rho_executed:.4f}'
    )


def step(leverage: Leverage, step: TrainingStep) -> str:
    """One line about a training step."""
    return (
        f'training step: {si(step.flops)} FLOPs per image as executed, forward and backward, '
        f'{step.flops / leverage.flops_executed:.3f} x forward; rho_train {step.rho_train:.4f}'
    )


def capacities(config: Config, leverage: Leverage) -> list[str]:
    """One line per routed layer."""
    lines = []
    for layer, (name, cap) in enumerate(leverage.capacities.items()):
        moe = moe_at(config.model, layer)
        if cap.flops:
            lines.append(f'{name}: {_kinds(moe, cap)}')
        if not cap.capacity:
            lines.append(f'{name}: groups of {cap.group_size} tokens, soft, nothing is dropped')
            continue
        lines.append(
            f'{name}: groups of {cap.group_size} tokens, {cap.capacity} slots per expert '
            f'(asked {moe.capacity_factor:g}, effective {cap.effective_factor:.3f}); '
            + (
                f'evaluation {cap.eval_capacity} slots (asked {moe.eval_capacity_factor:g}, '
                f'effective {cap.eval_effective_factor:.3f})'
                if cap.can_drop
                else 'the same in evaluation, and nothing is dropped'
            )
        )
    return lines


def _kinds(moe: Moe, cap: Capacity) -> str:
    """The ids of each kind of experts, and what a token costs there."""
    of_id, parts = kind_of_id(moe.kinds), []
    for n, kind in enumerate(true_kinds(moe.kinds)):
        ids = [e for e, of in enumerate(of_id) if of == n]
        parts.append(f'{kind.expert} {_listed(ids)} {si(cap.flops[ids[0]])}')
    if skips(moe.kinds):
        first = moe.num_experts
        parts.append(f'skip {_listed(list(range(first, first + skips(moe.kinds))))} 0')
    return f'experts, their ids and FLOPs per token: {"; ".join(parts)}'


def _listed(ids: Sequence[int]) -> str:
    shown = [str(n) for n in ids[:8]] + ['...'] * (len(ids) > 8)
    return f'({", ".join(shown)})'


def twins(leverage: Leverage, all_twins: Iterable[Twin]) -> list[str]:
    """Costs of this network as ratios to those of each dense twin."""
    rows, refused = [], []
    for twin in all_twins:
        if twin.refused:
            refused.append(f'no {twin.name}: {twin.refused}')
            continue
        rows.append(
            (
                twin.name,
                si(twin.flops),
                f'{leverage.flops / twin.flops:.3f}',
                f'{leverage.flops_executed / twin.flops:.3f}',
                f'{twin.params:,}',
                f'{leverage.params_total / twin.params:.3f}',
            )
        )
    head = ('dense twin', 'its FLOPs', 'cost', 'cost executed', 'its params', 'params')
    note = "cost: FLOPs over the twin's; params: parameters over the twin's"
    return [*(['', note, *aligned([head, *rows])] if rows else []), *refused]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns the first column left and the others right; returns a line per row."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return [
        '  '.join(
            [r[0].ljust(widths[0]), *[x.rjust(n) for x, n in zip(r[1:], widths[1:], strict=True)]]
        ).rstrip()
        for r in rows
    ]


def _cell(value: int, column: str) -> str:
    if column in ('params', 'active'):
        return f'{value:,}'
    return si(value) if value or column in ('twin', 'FLOPs', 'executed') else ''


def si(n: float) -> str:
    """Three digits and an SI prefix: 1234567 becomes '1.23M'."""
    if n == 0:
        return '0'
    power = min(int(math.log10(abs(n)) // 3), 4)
    return f'{n / 1000**power:.3g}' + ('', 'k', 'M', 'G', 'T')[power]
