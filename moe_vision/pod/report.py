"""The check as lines of text."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from moe_vision.leverage import Leverage
from moe_vision.leverage.table import aligned, si
from moe_vision.pod.expected import Expected, layer_of, sent
from moe_vision.pod.hlo import Collective, Part
from moe_vision.pod.memory import Memory
from moe_vision.pod.roofline import Roofline

_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')


def size(n: float) -> str:
    """1536 to '1.5 KiB'."""
    power = 0
    while abs(n) >= 1000 and power < len(_UNITS) - 1:
        n, power = n / 1024, power + 1
    return f'{n:.3g} {_UNITS[power]}'


def memory(found: Memory, hbm: int) -> list[str]:
    """Of one device, by kind, against what its chip has for it."""
    return _shares(f'memory of a device, of {size(hbm)}', {
        'arguments': found.arguments, 'temporaries': found.temporaries, 'outputs': found.outputs,
        'outputs in the place of arguments': -found.aliased, 'code': found.code,
        'used': found.used}, hbm)


def state(parts: dict[str, int], hbm: int) -> list[str]:
    """The train state on one device, without the padding of layouts."""
    return _shares(f'train state of a device, of {size(hbm)}',
                   parts | {'all': sum(parts.values())}, hbm)


def _shares(title: str, rows: dict[str, int], hbm: int) -> list[str]:
    return aligned([(title, '', ''), *[(f'  {n}', size(x), f'{x / hbm:.1%}')
                                       for n, x in rows.items()]])


def collectives(found: Sequence[Collective], layers: Sequence[str],
                routed: Collection[str]) -> list[str]:
    """A row per layer, a column per kind: how many tensors, and their bytes on a device."""
    tensors: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for c in found:
        for p in c.parts:
            for name in (layer_of(p.op_name, layers) or '(elsewhere)', 'total'):
                tensors[name, c.kind] += c.times or 1
                sizes[name, c.kind] += p.bytes * (c.times or 1)
    kinds = sorted({c.kind for c in found})
    cell = lambda at: f'{tensors[at]}, {size(sizes[at])}' if tensors[at] else ''  # noqa: E731
    rows = [('collectives of a step: tensors, bytes of a device', *kinds)]
    for name in (*layers, '(elsewhere)', 'total'):
        if any(tensors[name, k] for k in kinds):
            rows.append((f'  {name}{" *" if name in routed else ""}',
                         *[cell((name, k)) for k in kinds]))
    return aligned(rows)


def exchanges(found: Collection[Collective], wanted: Expected, devices: int) -> list[str]:
    """How many exchanges of routed layers there are, and should be; what a device sends by them."""
    if not wanted.exchanges:
        return []
    counts: Counter[str] = Counter()
    for c in found:
        counts[c.kind] += c.times or 1
    numbers = ', '.join(f'{counts[kind]} {kind} (expected {n})'
                        for kind, n in sorted(wanted.exchanges.items()))
    return [f'  exchanges of routed layers (*): {numbers}; a device sends '
            f'{size(sent(found, devices))} by them (expected {size(wanted.sent)})']


def told(c: Collective, part: Part, layers: Iterable[str]) -> str:
    """An unexpected collective as a line: kind, tensor, where it comes from."""
    where = layer_of(part.op_name, layers)
    often = '' if c.times == 1 else ', in a loop' if c.times is None else f', {c.times} times'
    return (f'unexpected {c.kind}: {part.shape} ({size(part.bytes)}{often})'
            f'{f" in {where}" if where else ""}: {part.op_name or c.name}')


def compute(flops: int, cost: Leverage, images: float) -> list[str]:
    """FLOPs of a device in a step, and what of them pads."""
    padding = 1 - cost.flops / cost.flops_executed
    return [f'compute of a device: {si(flops)} FLOPs in a step of {images:g} images; forward '
            f'{si(cost.flops_executed)} an image, {padding:.1%} of them for empty expert slots']


def slices(found: Collection[Collective], count: int) -> list[str]:
    """What a device sends to other slices."""
    sums = [p.bytes * (c.times or 1) for c in found if c.kind.endswith('of slices')
            for p in c.parts]
    return [f'  between {count} slices: {len(sums)} tensors, {size(sum(sums))} of a device; the '
            'network between them is in no estimate'] if count > 1 else []


def roofline(found: Roofline, chip: str, at_peak: float, batch: int) -> list[str]:
    """The estimate, said to be one. `at_peak`: seconds of the FLOPs at the chip's peak."""
    ms = lambda s: f'{1000 * s:.3g} ms'  # noqa: E731
    return [
        f'ESTIMATE from published peaks of {chip}, nothing was run: compute {ms(found.compute)}, '
        f'memory {ms(found.memory)}, links {ms(found.links)}; bound by {found.bound}',
        f'  a step takes at least {ms(found.least)}: {batch / found.least:,.0f} images/s, '
        f'{at_peak / found.least:.0%} of peak compute; {ms(found.most)} if nothing overlaps']
