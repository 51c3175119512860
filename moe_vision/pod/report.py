"""Formats what the check measured as lines of text."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from moe_vision.leverage import Leverage
from moe_vision.leverage.table import aligned, si
from moe_vision.pod.expected import Expected, layer_of
from moe_vision.pod.hlo import Collective, Part
from moe_vision.pod.memory import Memory
from moe_vision.pod.roofline import Roofline, sent

_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')


def size(n: float) -> str:
    """Three digits and a binary unit: 1536 becomes '1.5 KiB'."""
    power = 0
    while abs(n) >= 1000 and power < len(_UNITS) - 1:
        n, power = n / 1024, power + 1
    return f'{n:.3g} {_UNITS[power]}'


def memory(program: Memory, hbm: int) -> list[str]:
    """Memory of the program on one device, by kind, and as a share of `hbm` bytes."""
    return _shares(
        f'memory of a device, of {size(hbm)}',
        {
            'arguments': program.arguments,
            'temporaries': program.temporaries,
            'outputs': program.outputs,
            'outputs in the place of arguments': -program.aliased,
            'code': program.code,
            'used': program.used,
        },
        hbm,
    )


def state(parts: dict[str, int], hbm: int) -> list[str]:
    """Bytes of the train state on one device, by part, without the padding of layouts."""
    return _shares(
        f'train state of a device, of {size(hbm)}', parts | {'all': sum(parts.values())}, hbm
    )


def _shares(title: str, rows: dict[str, int], hbm: int) -> list[str]:
    return aligned(
        [(title, '', ''), *[(f'  {n}', size(x), f'{x / hbm:.1%}') for n, x in rows.items()]]
    )


def collectives(
    all_collectives: Sequence[Collective], layers: Sequence[str], routed: Collection[str]
) -> list[str]:
    """A row per layer and a column per kind: number of tensors, and their bytes on a device."""
    tensors: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for c in all_collectives:
        for p in c.parts:
            for name in (layer_of(p.op_name, layers) or '(elsewhere)', 'total'):
                tensors[name, c.kind] += c.runs
                sizes[name, c.kind] += p.bytes * c.runs
    kinds = sorted({c.kind for c in all_collectives})

    def cell(name: str, kind: str) -> str:
        number = tensors[name, kind]
        return f'{number}, {size(sizes[name, kind])}' if number else ''

    rows = [('collectives of a step: tensors, bytes of a device', *kinds)]
    for name in (*layers, '(elsewhere)', 'total'):
        if any(tensors[name, k] for k in kinds):
            rows.append(
                (f'  {name}{" *" if name in routed else ""}', *[cell(name, k) for k in kinds])
            )
    return aligned(rows)


def exchanges(actual: Collection[Collective], planned: Expected, devices: int) -> list[str]:
    """Number of exchanges of routed layers and the bytes that a device sends in them, beside the
    numbers that the config plans."""
    if not planned.exchanges:
        return []
    counts: Counter[str] = Counter()
    for c in actual:
        counts[c.kind] += c.runs
    numbers = ', '.join(
        f'{counts[kind]} {kind} (expected {n})' for kind, n in sorted(planned.exchanges.items())
    )
    return [
        f'  exchanges of routed layers (*): {numbers}; a device sends '
        f'{size(sent(actual, devices))} in them (expected {size(planned.sent)})'
    ]


def unexpected(c: Collective, part: Part, layers: Iterable[str]) -> str:
    """A line about an unexpected tensor: kind, shape, bytes, and where it comes from."""
    layer = layer_of(part.op_name, layers)
    repeats = '' if c.times == 1 else ', in a loop' if c.times is None else f', {c.times} times'
    return (
        f'unexpected {c.kind}: {part.shape} ({size(part.bytes)}{repeats})'
        f'{f" in {layer}" if layer else ""}: {part.op_name or c.name}'
    )


def compute(flops: int, cost: Leverage, images: float) -> list[str]:
    """FLOPs of a device in a step, and the share of the forward pass that is padding."""
    return [
        f'compute of a device: {si(flops)} FLOPs in a step of {images:g} images; forward '
        f'{si(cost.flops_executed)} per image, {cost.padding:.1%} of them for empty expert slots'
    ]


def slices(all_collectives: Collection[Collective], count: int) -> list[str]:
    """Number of tensors that a device reduces with other slices, and their bytes."""
    sums = [
        p.bytes * c.runs for c in all_collectives if c.kind.endswith('of slices') for p in c.parts
    ]
    return (
        [
            f'  between {count} slices: {len(sums)} tensors, {size(sum(sums))} of a device; the '
            'estimate leaves out the network between them'
        ]
        if count > 1
        else []
    )


def roofline(estimate: Roofline, chip: str, at_peak: float, batch: int) -> list[str]:
    """The estimate, marked as such. `at_peak`: seconds that the FLOPs take at the chip's peak."""
    return [
        f'ESTIMATE from published peaks of {chip}, nothing was run: '
        f'compute {_ms(estimate.compute)}, memory {_ms(estimate.memory)}, '
        f'links {_ms(estimate.links)}; bound by {estimate.bound}',
        f'  a step takes at least {_ms(estimate.least)}: {batch / estimate.least:,.0f} images/s, '
        f'{at_peak / estimate.least:.0%} of peak compute; '
        f'{_ms(estimate.most)} if nothing overlaps',
    ]


def _ms(seconds: float) -> str:
    return f'{1000 * seconds:.3g} ms'
