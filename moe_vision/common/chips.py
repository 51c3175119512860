"""Published numbers of accelerator chips.

Sources: of TPUs, Google Cloud's documentation, its pages v4, v5e, v5p, v6e and tpu7x as of 2026:
peak bfloat16 compute, capacity and bandwidth of the memory, and half of the "bidirectional
inter-chip interconnect bandwidth", which is what a chip can send over all its links together. For
v4, whose page does not give the latter: six links of 50 GB/s in each direction (Jouppi et al.,
"TPU v4", ISCA 2023). Where the page says GB of a memory, GiB is meant. Of GPUs, NVIDIA's data
sheets: bfloat16 tensor cores without sparsity.
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of one chip; `per_device` gives the share of each device that jax sees in it."""

    flops: float  # bfloat16 FLOP/s at its peak
    hbm: int  # bytes
    hbm_bandwidth: float  # bytes/s
    ici_bandwidth: float  # bytes/s it sends, over all links
    axes: int  # of its torus
    most: int  # chips of the largest slice
    devices: int = 1

    def per_device(self) -> 'Chip':
        n = self.devices
        return dataclasses.replace(
            self, flops=self.flops / n, hbm=self.hbm // n, hbm_bandwidth=self.hbm_bandwidth / n,
            ici_bandwidth=self.ici_bandwidth / n, devices=1)


TPUS = {
    'v4': Chip(275e12, 32 * _GIB, 1200e9, 300e9, axes=3, most=4096),
    'v5e': Chip(197e12, 16 * _GIB, 819e9, 200e9, axes=2, most=256),
    'v5p': Chip(459e12, 95 * _GIB, 2765e9, 600e9, axes=3, most=6144),
    'v6e': Chip(918e12, 32 * _GIB, 1638e9, 400e9, axes=2, most=256),
    'tpu7x': Chip(2307e12, 192 * _GIB, 7380e9, 600e9, axes=3, most=9216, devices=2),
}

_TPU_KINDS = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p', 'TPU v6 lite': 'v6e',
              'TPU7x': 'tpu7x'}
_GPUS = {'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12, 'H200': 989e12,
         'A100': 312e12}  # the first whose name is in a device's kind


def peak(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device, by jax's name of its kind; None: not in these tables."""
    if device_kind in _TPU_KINDS:
        return TPUS[_TPU_KINDS[device_kind]].per_device().flops
    return next((flops for name, flops in _GPUS.items() if name in device_kind), None)
