"""Estimates how fast a step could be at best, from published peaks; nothing runs."""

import dataclasses
from collections.abc import Iterable

from moe_vision.common.chips import Chip
from moe_vision.pod.hlo import Collective
from moe_vision.pod.memory import Memory


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a step would take alone on one device."""

    compute: float
    memory: float
    links: float

    @property
    def bound(self) -> str:
        return max(('compute', 'memory', 'links'), key=lambda n: getattr(self, n))

    @property
    def least(self) -> float:
        """Seconds if all three overlap fully."""
        return max(self.compute, self.memory, self.links)

    @property
    def most(self) -> float:
        """Seconds if none overlap."""
        return self.compute + self.memory + self.links


def estimate(
    device: Chip, flops: int, used: Memory, collectives: Iterable[Collective], devices: int
) -> Roofline:
    """Estimates one step of a device at its peaks.

    Assumes that all FLOPs are bfloat16, that each byte of used memory is touched once (temporaries
    twice: written and read), and that all links of a chip work at once.
    """
    touched = used.arguments + used.outputs + 2 * used.temporaries
    return Roofline(
        flops / device.flops,
        touched / device.hbm_bandwidth,
        sent(collectives, devices) / device.ici_bandwidth,
    )


def sent(collectives: Iterable[Collective], devices: int) -> float:
    """Bytes that a device sends in a step."""
    return sum(sent_bytes(c, devices) * c.runs for c in collectives)


def sent_bytes(c: Collective, devices: int) -> float:
    """Bytes that a device sends in one run of the best algorithm among a group of n devices.

    All but permutes and broadcasts send (n - 1) / n of the bytes, an all-reduce twice.
    """
    if c.kind.endswith('of slices'):
        return 0  # goes over the data centre's network, not over links
    if c.kind in ('collective-permute', 'collective-broadcast'):
        return c.bytes
    n = len(c.groups[0]) if c.groups else devices
    return (2 if c.kind == 'all-reduce' else 1) * c.bytes * (n - 1) / n
