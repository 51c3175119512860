"""How fast a step could be at best: an estimate from published peaks, of nothing that ran."""

import dataclasses
from collections.abc import Iterable

from moe_vision.pod.chips import Chip
from moe_vision.pod.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one device if each were all it had to do."""

    compute: float
    memory: float
    links: float

    @property
    def bound(self) -> str:
        return max(('compute', 'memory', 'links'), key=lambda n: getattr(self, n))

    @property
    def least(self) -> float:
        """Seconds where all three overlap fully."""
        return max(self.compute, self.memory, self.links)

    @property
    def most(self) -> float:
        """Seconds where none overlaps."""
        return self.compute + self.memory + self.links


def estimate(device: Chip, flops: int, bytes_accessed: float, found: Iterable[Collective],
             devices: int) -> Roofline:
    """Of a device's FLOPs, bytes and collectives of one step, at its peaks.

    All links of a chip are taken to work at once, and FLOPs to be bfloat16.
    """
    sent = sum(sent_bytes(c, devices) * (c.times or 1) for c in found)
    return Roofline(flops / device.flops, bytes_accessed / device.hbm_bandwidth,
                    sent / device.ici_bandwidth)


def sent_bytes(c: Collective, devices: int) -> float:
    """What a device sends in one run where the algorithm is the best one, n devices in a group.

    A reduction sends each byte out and back, (n - 1) / n of them each time; the others once.
    """
    if c.kind in ('collective-permute', 'collective-broadcast'):
        return c.bytes
    n = len(c.groups[0]) if c.groups else devices
    return (2 if c.kind == 'all-reduce' else 1) * c.bytes * (n - 1) / n
