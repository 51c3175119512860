"""How fast a step could be at best: an estimate from published peaks, of nothing that ran."""

import dataclasses
from collections.abc import Iterable

from moe_vision.common.chips import Chip
from moe_vision.pod.hlo import Collective
from moe_vision.pod.memory import Memory


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


def estimate(device: Chip, flops: int, used: Memory, found: Iterable[Collective],
             devices: int) -> Roofline:
    """Of a device's FLOPs, bytes and collectives of one step, at its peaks.

    FLOPs are taken to be bfloat16, each byte of the memory that is used to be touched once
    (temporaries twice, written and read), and all links of a chip to work at once.
    """
    touched = used.arguments + used.outputs + 2 * used.temporaries
    sent = sum(sent_bytes(c, devices) * (c.times or 1) for c in found)
    return Roofline(flops / device.flops, touched / device.hbm_bandwidth,
                    sent / device.ici_bandwidth)


def sent_bytes(c: Collective, devices: int) -> float:
    """What a device sends in one run where the algorithm is the best one, n devices in a group.

    A reduction sends each byte out and back, (n - 1) / n of them each time; the others once.
    """
    if c.kind.endswith('of slices'):
        return 0  # over the network of the data centre, not over links
    if c.kind in ('collective-permute', 'collective-broadcast'):
        return c.bytes
    n = len(c.groups[0]) if c.groups else devices
    return (2 if c.kind == 'all-reduce' else 1) * c.bytes * (n - 1) / n
