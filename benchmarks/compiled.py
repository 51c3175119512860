"""Compiles routed layers for an H100 without one, and counts their kernels and the bytes they move.

    pip install 'jax[cuda12]'
    python -m benchmarks.compiled           # layers, convolutions of experts, inference
    python -m benchmarks.compiled --steps --out=benchmarks/results/h100-compiled.md

--steps adds the training steps of the ImageNet configs, which take minutes.

XLA's compiler for GPUs needs no GPU, but without one it cannot try out kernels: it uses its own
(Triton) for products in layers, and cuBLAS for products in whole steps. Nothing is timed.

Times are those of a roofline. A kernel moves its operands and its results once each, at the
bandwidth of the memory. A product or a convolution takes at least as long as its FLOPs at the peak
of the chip; that of float32, in which routers compute, is a fifteenth of that of bfloat16. Nothing
overlaps, and starting a kernel is free.

Names are those of `benchmarks.layer`, their temporaries in MB; 'twin' is that of `benchmarks.step`.
"""

import argparse
import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, SingleDeviceSharding  # noqa: E402

from benchmarks import forms, latency, run, step  # noqa: E402
from benchmarks.table import Row, markdown  # noqa: E402
from moe_vision.common import chips, platform  # noqa: E402
from moe_vision.common.paths import expanded  # noqa: E402
from moe_vision.config import check as config_lib  # noqa: E402
from moe_vision.pod import hlo  # noqa: E402
from moe_vision.pod.compiled import trace_step  # noqa: E402
from moe_vision.training.setup import Setup  # noqa: E402

BANDWIDTH = 3.35e12  # bytes/s; NVIDIA's data sheet of the H100 SXM, like the peak in `chips`
PEAK, FLOAT32_PEAK = chips.peak('NVIDIA H100') or math.inf, 67e12  # FLOP/s
TARGET = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048
}
"""
PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
_CUBLAS = {'xla_gpu_enable_triton_gemm': False}  # Triton's fit no step of 50,432 tokens
_PRODUCT = 'custom_call_target="__cublas'
_CONVOLUTION = re.compile(r'dim_labels=\w+?_(\w+)->.*custom_call_target="__cudnn\$conv(\w+)"')
_NO_KERNEL = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'partition-id'}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One instruction of the program."""

    name: str
    bytes: int
    busy: float  # seconds of its products and convolutions at peak FLOP/s

    @property
    def seconds(self) -> float:
        return max(self.bytes / BANDWIDTH, self.busy)


@dataclasses.dataclass(frozen=True)
class Program:
    kernels: tuple[Kernel, ...]
    temporary_mb: float

    @property
    def milliseconds(self) -> float:
        return 1e3 * sum(k.seconds for k in self.kernels)

    @property
    def gigabytes(self) -> float:
        return sum(k.bytes for k in self.kernels) / 1e9


def kernels(program: str) -> Iterator[Kernel]:
    """Kernels in a program's HLO text; the body of a loop counts once."""
    computations, entry = hlo.parsed(program)

    def kernels_in(name: str) -> Iterator[Kernel]:
        own = computations[name]
        for i in own.values():
            if i.opcode in ('call', 'while', 'conditional'):
                for called in i.called:
                    yield from kernels_in(called)
            elif i.opcode not in _NO_KERNEL:
                moved = [s for o in i.operands if o in own for s in own[o].shapes]
                library = _PRODUCT in i.attributes or _CONVOLUTION.search(i.attributes)
                moved += i.shapes[:1] if library else i.shapes  # leaves out its workspace
                yield Kernel(i.name, sum(map(hlo.size, moved)), _busy(i, own, computations))

    return kernels_in(entry)


def _busy(
    i: hlo.Instruction,
    own: Mapping[str, hlo.Instruction],
    computations: Mapping[str, Mapping[str, hlo.Instruction]],
) -> float:
    """Seconds at peak FLOP/s of a product or convolution, or of those inside a fusion."""
    convolution = _CONVOLUTION.search(i.attributes)
    if not (convolution or i.opcode == 'dot' or _PRODUCT in i.attributes):
        inside = [computations[c] for c in i.called if c in computations]
        return sum(_busy(j, part, computations) for part in inside for j in part.values())
    shapes = (*(own[o].shapes[0] for o in i.operands[:2]), i.shapes[0])
    dims = [[int(d) for d in re.findall(r'\d+', s.partition('[')[2])] for s in shapes]
    if convolution:
        flops = _convolution_flops(dims, convolution[1], convolution[2])
    else:  # [B, M, K] x [B, K, N] takes 2 B M K N
        axes = re.search(r'lhs_batch_dim(?:ension)?s\W*([\d,"]+)', i.attributes)
        batch = math.prod(dims[0][int(d)] for d in re.findall(r'\d+', axes[1])) if axes else 1
        flops = 2 * math.sqrt(math.prod(map(math.prod, dims)) / batch)
    return flops / (FLOAT32_PEAK if shapes[0].startswith('f32') else PEAK)


def _convolution_flops(dims: list[list[int]], labels: str, kind: str) -> float:
    """Two FLOPs for each output and each weight of its channel, also at the edges.

    Args:
      dims: shapes of the two operands and the result.
      labels: names of the kernel's dimensions, 'o' for output channels.
      kind: as in cuDNN's name, such as 'Forward' or 'BackwardFilter'.
    """
    first, second, result = dims
    y, kernel = {'BackwardFilter': (second, result), 'BackwardInput': (first, second)}.get(
        kind, (result, second)
    )
    return 2 * math.prod(y) * math.prod(kernel) / kernel[labels.index('o')]


def h100() -> jax.Device:
    return topologies.get_topology_desc(
        platform='cuda', topology='1x1x1', target_config=TARGET
    ).devices[0]


def compiled(device: jax.Device, fns: Mapping[str, tuple[Callable, Any]]) -> dict[str, Program]:
    """Compiles each function for the shapes of its arguments."""
    sharding = SingleDeviceSharding(device)
    programs = {}
    with platform.made_for(Mesh([device], 'data')):
        for name, (fn, args) in fns.items():
            args = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args
            )
            programs[name] = _program(jax.jit(fn).lower(*args), {})
    return programs


def layer(device: jax.Device, shape: forms.Shape) -> Row:
    """Each form of the layer, forward and backward."""
    fns = {n: (forms.with_gradient(fn), args) for n, (fn, args) in forms_of(shape).items()}
    return row(str(shape), compiled(device, fns))


def inference(device: jax.Device, images: int) -> Row:
    """The forward pass of a routed layer of ViT-S/16, at the capacity factor of evaluation."""
    shape = latency.layer_of(images, 'bfloat16')
    fns = {n: fn for n, fn in forms_of(shape).items() if n in ('layer', 'floor')}
    return row(f'inference of {images} images, {shape}', compiled(device, fns))


def convolutions(device: jax.Device, maps: forms.Maps) -> Row:
    """The experts' convolutions, forward and backward."""
    args = jax.eval_shape(maps.drawn)
    fns = {n: (forms.with_gradient(fn), args) for n, fn in forms.of_maps().items()}
    return row(str(maps), compiled(device, fns))


def forms_of(shape: forms.Shape) -> dict[str, tuple[Callable, Any]]:
    """Forms of the layer: name -> (function, shapes of its arguments)."""
    args = params, bank, x = jax.eval_shape(lambda: forms.drawn(shape))
    buffers = jax.ShapeDtypeStruct((shape.e, shape.g * shape.slots, *shape.payload), x.dtype)
    fns = {
        'layer': (forms.routed(shape), args),
        'floor': (shape.expert.apply_stacked, (bank, buffers)),
        'einsum': (forms.by_einsum(shape), args),
    }
    if shape.e <= 8:  # it multiplies every token with every expert
        fns['ragged'] = (forms.by_ragged_products(shape), args)
    return fns


def beside_twin(device: jax.Device, name: str) -> Row:
    """Compares a training step of `benchmarks.step` with that of its same-width twin."""
    config = config_lib.check(step.GPU[name]())
    setups = {
        n: Setup(c, devices=[device])
        for n, c in (('routed', config), ('twin', step.twin_of(config)))
    }
    executed = {n: s.cost.flops_executed for n, s in setups.items()}
    programs = {n: _program(trace_step(s).lower(), _CUBLAS) for n, s in setups.items()}
    return row(name, programs, {'times the FLOPs': executed['routed'] / executed['twin']})


def _program(lowered: Any, options: Mapping[str, Any]) -> Program:
    program = lowered.compile({'xla_gpu_autotune_level': 0, **options})
    return Program(
        tuple(kernels(program.as_text())), program.memory_analysis().temp_size_in_bytes / 1e6
    )


def row(
    case: str, programs: Mapping[str, Program], facts: Mapping[str, float] | None = None
) -> Row:
    """Compares the first program with the others, by their roofline times."""
    first = next(iter(programs.values()))
    return Row(
        case,
        {n: [p.milliseconds / 1e3] for n, p in programs.items()},
        facts={
            'kernels': len(first.kernels),
            'GB': first.gigabytes,
            **{f'MB of {n}': p.temporary_mb for n, p in programs.items()},
            **(facts or {}),
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--steps', action='store_true', help='also compile training steps')
    parser.add_argument('--out', type=expanded, default=None, help='file for the table')
    args = parser.parse_args()
    if not any(map(importlib.util.find_spec, PLUGINS)):
        parser.error(
            "the GPU compiler is not installed; `pip install 'jax[cuda12]'` installs it, "
            'also without a GPU'
        )
    device = h100()
    rows = [layer(device, shape) for shape in forms.GPU]
    rows += [convolutions(device, maps) for maps in forms.MAPS_ON_GPU]
    rows += [inference(device, images) for images in latency.BATCHES]
    names = [n for n in step.GPU if n not in step.CPU] if args.steps else []
    rows += [beside_twin(device, name) for name in names]
    setting = run.setting()
    lines = [
        '# Compiled for an H100, not run',
        '',
        __doc__.split('\n')[0],
        '',
        f'`python -m benchmarks.compiled{" --steps" if args.steps else ""}` at commit '
        f'{setting["commit"]}, {run.versions(setting)}. Milliseconds are those of a '
        'roofline; see the docstring.',
        '',
        *markdown([r.record() for r in rows]),
    ]
    print('\n'.join(lines))
    if args.out:
        Path(args.out).write_text('\n'.join(lines) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
