"""Published figures of accelerator chips.

TPUs: Google Cloud's documentation, pages v4, v5e, v5p, v6e and tpu7x as of 2026, gives the peak of
bfloat16 compute, memory capacity and bandwidth, and the "bidirectional inter-chip interconnect
bandwidth". Half of the latter is what a chip can send over all its links together. The page of v4
lacks it; the table takes six links of 50 GB/s in each direction (Jouppi et al., "TPU v4", ISCA
2023). Memory sizes in GB on these pages mean GiB.

GPUs: NVIDIA's data sheets, bfloat16 tensor cores without sparsity.
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures for one chip; `per_device()` divides them among its JAX devices."""

    flops: float  # peak bfloat16 FLOP/s
    hbm: int  # bytes
    hbm_bandwidth: float  # bytes/s
    ici_bandwidth: float  # bytes/s sent over all links together
    axes: int  # of the torus of chips
    most: int  # chips in the largest slice
    devices: int = 1  # JAX devices in one chip

    def per_device(self) -> 'Chip':
        n = self.devices
        return dataclasses.replace(
            self,
            flops=self.flops / n,
            hbm=self.hbm // n,
            hbm_bandwidth=self.hbm_bandwidth / n,
            ici_bandwidth=self.ici_bandwidth / n,
            devices=1,
        )


TPUS = {
    'v4': Chip(275e12, 32 * _GIB, 1200e9, 300e9, axes=3, most=4096),
    'v5e': Chip(197e12, 16 * _GIB, 819e9, 200e9, axes=2, most=256),
    'v5p': Chip(459e12, 95 * _GIB, 2765e9, 600e9, axes=3, most=6144),
    'v6e': Chip(918e12, 32 * _GIB, 1638e9, 400e9, axes=2, most=256),
    'tpu7x': Chip(2307e12, 192 * _GIB, 7380e9, 600e9, axes=3, most=9216, devices=2),
}

_TPU_KINDS = {
    'TPU v4': 'v4',
    'TPU v5 lite': 'v5e',
    'TPU v5': 'v5p',
    'TPU v6 lite': 'v6e',
    'TPU7x': 'tpu7x',
}
_GPUS = {
    'H100 PCIe': 756e12,
    'H100 NVL': 835e12,
    'H100': 989e12,
    'H200': 989e12,
    'A100': 312e12,
}  # the first name that is part of a device's kind counts


def peak(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device, by jax's `device_kind`; None if no table has it."""
    if device_kind in _TPU_KINDS:
        return TPUS[_TPU_KINDS[device_kind]].per_device().flops
    return next((flops for name, flops in _GPUS.items() if name in device_kind), None)
