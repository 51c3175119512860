"""Inference of one batch: routed networks beside dense ones, and routed layers beside their floor.

A network that routes images is compared with the dense network of its active FLOPs. A layer that
routes patches is compared with its experts alone on the same buffers, at the capacity factor of
evaluation.
"""

import dataclasses
import time
from collections.abc import Iterator

from benchmarks import layer
from benchmarks.table import Row, row
from configs import cifar10_standard, digits_k2
from moe_vision.config import check as config_lib
from moe_vision.study.run import latency

BATCHES = (1, 8, 64, 512)
NETWORKS = {'digits_k2': digits_k2.get_config, 'cifar10_standard': cifar10_standard.get_config}
ACTIVE = 'dense of its active FLOPs'
TOKENS = 197  # of an image in ViT-S/16


def networks(rounds: int) -> Iterator[Row]:
    for name, make in NETWORKS.items():
        routed = config_lib.check(make())
        dense = dataclasses.replace(
            routed, model=dataclasses.replace(routed.model, twin='same_active_flops')
        )
        variables = {n: latency.variables_of(c) for n, c in (('routed', routed), (ACTIVE, dense))}
        for batch in BATCHES:
            began = time.perf_counter()
            calls = {'routed': latency.call(routed, variables['routed'], batch)}
            facts = {'compiling s': time.perf_counter() - began}
            calls[ACTIVE] = latency.call(dense, variables[ACTIVE], batch)
            number = rounds if batch > 8 else 10 * rounds
            yield row(
                f'{name}, batch {batch}', calls, number, {ACTIVE: 1.15} if batch == 1 else {}, facts
            )


def layer_of(images: int, dtype: str) -> layer.Shape:
    """A layer of ViT-S/16 with eight experts, in a group for each image."""
    return layer.Shape(TOKENS, 384, 1536, 8, 2, 2.0, g=images, dtype=dtype)


def layers(rounds: int) -> Iterator[Row]:
    dtype = 'float32' if layer.on_cpu() else 'bfloat16'
    for batch in BATCHES[:2] if layer.on_cpu() else BATCHES:
        shape = layer_of(batch, dtype)
        fns = layer.competitors(shape)
        calls, programs = layer.calls_of({n: fns[n] for n in ('layer', 'floor', 'dense')})
        yield row(
            f'{shape}',
            calls,
            3 * rounds,
            {'floor': 1.15},
            {'compiling s': programs['layer'].seconds},
        )


def rows(rounds: int) -> Iterator[Row]:
    yield from networks(rounds)
    yield from layers(rounds)
