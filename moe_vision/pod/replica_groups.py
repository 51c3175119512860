"""The groups of devices among which a collective runs, in the notations of HLO."""

import math
import re

Groups = tuple[tuple[int, ...], ...]


def parse(attributes: str) -> Groups:
    """Groups in any of their notations: listed, iota, or axes of a mesh. () is all devices."""
    if mesh := re.search(r'replica_groups=mesh\[([^]]*)\](?:, device_ids=\((.*?)\))? \{(.*?)\}',
                         attributes):
        return _mesh_groups(*mesh.groups(default=''))
    if iota := re.search(r'replica_groups=\[\d+,(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', attributes):
        ids, size = _iota(iota[2]), int(iota[1])
        return tuple(tuple(ids[n:n + size]) for n in range(0, len(ids), size))
    listed = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}', attributes)
    return tuple(tuple(_numbers(g)) for g in re.findall(r'\{([\d, ]*)\}', listed[1])
                 ) if listed else ()


def _mesh_groups(axes: str, ids: str, over: str) -> Groups:
    """Devices that differ along the axes `over` alone, such as "'a','b':(2)4": of axis b the part
    of size 4 that has 2 before it. `ids`: of the devices, where they are not in order."""
    dims = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", axes)}
    total = math.prod(dims.values())
    order = (_iota(ids) if ids.startswith('[') else _numbers(ids)) or range(total)
    strides, stride = {}, total
    for name, n in dims.items():
        stride //= n
        strides[name] = stride
    digits = []  # (stride, size) in the place of a device
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", over):
        part = int(size or dims[name])
        digits.append((strides[name] * dims[name] // (int(before or 1) * part), part))
    groups: dict[int, list[int]] = {}
    for place, device in enumerate(order):
        groups.setdefault(place - sum(place // s % n * s for s, n in digits), []).append(device)
    return tuple(map(tuple, groups.values()))


def _iota(text: str) -> list[int]:
    """Of '[4,2]T(1,0)': 0, 1, 2, ... laid out as 4 × 2, its axes put in that order, row by row."""
    shape, _, order = text.partition('T')
    dims = _numbers(shape)
    ids = [0]
    for axis in _numbers(order) or range(len(dims)):
        stride = math.prod(dims[axis + 1:])
        ids = [i + n * stride for i in ids for n in range(dims[axis])]
    return ids


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r'\d+', text)]
