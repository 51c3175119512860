"""Reads the groups of devices among which a collective runs, in the notations of HLO."""

import math
import re

Groups = tuple[tuple[int, ...], ...]


def parse(attributes: str) -> Groups:
    """Groups in any notation: listed, iota, or axes of a mesh. () is one group of all devices."""
    if mesh := re.search(
        r'replica_groups=mesh\[([^]]*)\](?:, device_ids=\((.*?)\))? \{(.*?)\}', attributes
    ):
        return _mesh_groups(*mesh.groups(default=''))
    if iota := re.search(r'replica_groups=\[\d+,(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', attributes):
        ids, size = _iota(iota[2]), int(iota[1])
        return tuple(tuple(ids[n : n + size]) for n in range(0, len(ids), size))
    listed = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}', attributes)
    return (
        tuple(tuple(_numbers(g)) for g in re.findall(r'\{([\d, ]*)\}', listed[1])) if listed else ()
    )


def _mesh_groups(axes: str, ids: str, over: str) -> Groups:
    """Groups of devices that differ only along the axes `over`.

    Args:
      axes: names and sizes, such as "'a'=2,'b'=8".
      ids: device ids in the mesh's order, where they are not 0, 1, 2, ...
      over: such as "'a','b':(2)4", where (2)4 is the factor 4 of axis b's size that follows a
        factor 2.
    """
    dims = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", axes)}
    total = math.prod(dims.values())
    order = (_iota(ids) if ids.startswith('[') else _numbers(ids)) or range(total)
    strides, stride = {}, total
    for name, n in dims.items():
        stride //= n
        strides[name] = stride
    digits = []  # (stride, size) within a device's position
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", over):
        part = int(size or dims[name])
        digits.append((strides[name] * dims[name] // (int(before or 1) * part), part))
    groups: dict[int, list[int]] = {}
    for position, device in enumerate(order):
        group = position - sum(position // s % n * s for s, n in digits)
        groups.setdefault(group, []).append(device)
    return tuple(map(tuple, groups.values()))


def _iota(notation: str) -> list[int]:
    """Ids that '[4,2]T(1,0)' stands for: 0, 1, 2, ... as an array 4 × 2, its axes transposed to the
    order 1, 0, read row by row."""
    shape, _, order = notation.partition('T')
    dims = _numbers(shape)
    ids = [0]
    for axis in _numbers(order) or range(len(dims)):
        stride = math.prod(dims[axis + 1 :])
        ids = [i + n * stride for i in ids for n in range(dims[axis])]
    return ids


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r'\d+', text)]
