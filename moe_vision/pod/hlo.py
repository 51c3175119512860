"""Reads the collectives of a compiled program from its text (HLO).

A collective counts as often as it runs: loops multiply by their trip count, and each branch of a
conditional counts once. A pair of start and done counts once, also inside a fusion or an
asynchronous call. So does a collective that the TPU compiler spreads over a chain of fusions that
do other work meanwhile. Between slices, the compiler exchanges data by a send and a receive over
the network; they count as a collective of their own, of kind 'all-reduce of slices'.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from moe_vision.pod import replica_groups
from moe_vision.pod.replica_groups import Groups

KINDS = (
    'all-gather',
    'all-reduce',
    'all-to-all',
    'collective-broadcast',
    'collective-permute',
    'ragged-all-to-all',
    'reduce-scatter',
)

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) (?:\(.*|\{$)')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*)')
_SHAPE = re.compile(r'\b([a-z]\w*)\[([^\]]*)\]')
_CALLED = re.compile(
    r'\b(?:calls|to_apply|body|branch_computations|true_computation|'
    r'false_computation|called_computations)=(\{[^}]*\}|%?[\w.-]+)'
)
_CHAIN_START = 'AsyncCollectiveStart'  # begins a collective spread over several fusions
_OF_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of a collective on one device: its input or its output, whichever is larger."""

    shape: str  # such as 'bf16[8,4,14,14,256]'
    bytes: int
    op_name: str  # of the collective; with several tensors, of what made this one


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction. `times` is None inside a loop of unknown trip count."""

    kind: str
    name: str
    parts: tuple[Part, ...]
    groups: Groups  # of partitions; () is one of all. A permute has pairs (source, target)
    times: int | None
    op_name: str

    @property
    def origin(self) -> str:
        """Name of its operation, or of the one that made its first tensor."""
        return self.op_name or next((p.op_name for p in self.parts), '')

    @property
    def bytes(self) -> int:
        """Bytes of one run on one device: of the inputs or of the outputs, whichever are larger."""
        return sum(p.bytes for p in self.parts)

    @property
    def runs(self) -> int:
        """Runs in one step; 1 inside a loop of unknown trip count."""
        return self.times or 1


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shapes: tuple[str, ...]  # of its results
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    op_name: str

    @property
    def called(self) -> list[str]:
        """Computations that it runs; for a loop only the body."""
        return [
            name
            for listed in _CALLED.findall(self.attributes)
            for name in re.findall(r'[\w.-]+', listed)
        ]


def collectives(text: str) -> tuple[Collective, ...]:
    """All collectives of a program, in the order of its text."""
    computations, entry = parsed(text)
    return tuple(_walk(computations, entry, 1, ''))


def _walk(
    computations: dict[str, dict[str, Instruction]], name: str, times: int | None, outer: str
) -> Iterator[Collective]:
    computation = computations.get(name, {})
    begins = any(_CHAIN_START in i.attributes for i in computation.values())
    for i in computation.values():
        kind = i.opcode.removesuffix('-start')
        if i.opcode == 'send' and (between := _OF_SLICES.search(i.attributes)):
            kind = f'{between[1].lower().replace("_", "-")} of slices'
            data = dataclasses.replace(i, shapes=i.shapes[:1], operands=i.operands[:1])
            yield _collective(kind, data, computation, times, outer)
        if kind in KINDS and (begins or 'chain_id=' not in i.attributes):
            yield _collective(kind, i, computation, times, outer)
        if i.opcode.endswith(('-done', '-update')):
            continue  # names the computation of its start once more
        inner = times
        if i.opcode == 'while':
            trips = _trips(i, computations)
            inner = None if times is None or trips is None else times * trips
        for name in i.called:
            yield from _walk(computations, name, inner, i.op_name or outer)


def _trips(loop: Instruction, computations: dict[str, dict[str, Instruction]]) -> int | None:
    """How often a loop runs; None if unknown. The compiler says so, or the loop is a `lax.scan`,
    which counts from 0 while its counter is less than a constant."""
    if known := re.search(r'known_trip_count\W+n\W+(\d+)', loop.attributes):
        return int(known[1])
    named = re.search(r'condition=%?([\w.-]+)', loop.attributes)
    condition = computations.get(named[1] if named else '', {})
    for i in condition.values():
        if i.op_name.endswith('while/cond/lt') and 'direction=LT' in i.attributes:
            bound = condition.get(i.operands[1])
            if bound and bound.opcode == 'constant':
                return int(bound.operands[0])
    return None


def _collective(
    kind: str, i: Instruction, computation: dict[str, Instruction], times: int | None, outer: str
) -> Collective:
    groups = replica_groups.parse(i.attributes)
    makers = [computation.get(o) for o in i.operands]
    count = max(len(makers), 1)
    shapes = i.shapes
    if i.opcode.endswith('-start') and kind != 'all-reduce':  # (operands, results, contexts)
        shapes = shapes[count : 2 * count]
    if kind == 'reduce-scatter':  # its input is larger
        shapes = tuple(s for m in makers if m for s in m.shapes) or shapes
    op_name = i.op_name or _recovered_name(i, kind, computation)
    parts = []
    for n, shape in enumerate(shapes):
        maker = makers[n] if n < len(makers) else None
        made_by = _origin(maker, computation) if maker else ''
        names = (op_name, made_by) if len(shapes) == 1 else (made_by, op_name)
        parts.append(Part(shape, size(shape), next(filter(None, names), outer)))
    return Collective(kind, i.name, tuple(parts), groups, times, op_name or outer)


def _recovered_name(i: Instruction, kind: str, computation: dict[str, Instruction]) -> str:
    """A name for a collective that lost its own: that of a copy of its result, or of what reads the
    result in the `shard_map` of a routed layer, directly or through unnamed instructions."""
    names, results, seen = [], [i.name], set()
    while results:
        result = results.pop()
        for user in computation.values():
            if result in user.operands and user.name not in seen:
                seen.add(user.name)
                names.append(user.op_name)
                results += [] if user.op_name else [user.name]
    wanted = (kind.replace('-', '_'), 'shard_map')
    return next((n for word in wanted for n in names if word in n), '')


def _origin(maker: Instruction, computation: dict[str, Instruction]) -> str:
    """The name of the operation that made a value; passes through unnamed copies and tuples."""
    while not maker.op_name and maker.operands and maker.operands[0] in computation:
        maker = computation[maker.operands[0]]
    return maker.op_name


def parsed(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Instructions by computation and name, and the name of the entry computation."""
    computations: dict[str, dict[str, Instruction]] = {}
    computation: dict[str, Instruction] = {}
    entry = ''
    for line in text.splitlines():
        if line[:1].isspace():
            if match := _INSTRUCTION.match(line):
                computation[match[1]] = _instruction(match[1], match[2])
        elif line.endswith('{') and (match := _COMPUTATION.match(line)):
            computation = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction:
    """Reads `rest`, which is TYPE opcode(operands), attributes."""
    rest = re.sub(r'/\*.*?\*/', '', rest)
    kind, _, rest = _after_bracket(rest) if rest.startswith('(') else rest.partition(' ')
    opcode, _, rest = rest.strip().partition('(')
    inside, _, attributes = _after_bracket(f'({rest}')
    op_name = _OP_NAME.search(attributes)
    return Instruction(
        name,
        tuple(f'{t}[{d}]' for t, d in _SHAPE.findall(kind)),
        opcode,
        tuple(o.split()[-1].lstrip('%') for o in _split(inside[1:-1])),
        attributes,
        op_name[1] if op_name else '',
    )


def _after_bracket(text: str) -> tuple[str, str, str]:
    """Splits `text`, as `str.partition` does, after the bracket that closes its first one."""
    depth = 0
    for n, c in enumerate(text):
        depth += (c in '([{') - (c in ')]}')
        if not depth:
            return text[: n + 1], '', text[n + 1 :]
    return text, '', ''


def _split(text: str) -> list[str]:
    """Splits at the commas outside brackets."""
    pieces, depth = [''], 0
    for c in text:
        depth += (c in '([{') - (c in ')]}')
        if c == ',' and not depth:
            pieces.append('')
        else:
            pieces[-1] += c
    return [p for p in pieces if p.strip()]


def size(shape: str) -> int:
    """Bytes of a shape such as 'bf16[8,128]', without the padding of its layout."""
    kind, _, dims = shape[:-1].partition('[')
    bits = 8 if kind == 'pred' else int((re.search(r'\d+', kind) or ['0'])[0])
    return math.ceil(bits * math.prod(int(d.strip(' <=')) for d in dims.split(',') if d) / 8)
