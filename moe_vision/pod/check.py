"""Compiles the training step of a config for a slice, and checks memory and collectives."""

import dataclasses
import importlib.metadata
import sys
from typing import Any

from moe_vision.common.chips import TPUS
from moe_vision.config.schema import Config
from moe_vision.pod import compiled, expected, hlo, memory, report, roofline
from moe_vision.pod.topology import Topology


@dataclasses.dataclass(frozen=True)
class Result:
    lines: list[str]
    record: dict[str, Any]  # the same for --json
    problems: list[str]  # one line each


def check(config: Config, topology: Topology) -> Result:
    """Compiles the training step and lists what does not fit or is not expected.

    Raises:
      UserError: the config does not fit the slice's number of devices.
    """
    setup = compiled.setup_for(config, topology)
    device, devices, cost = TPUS[topology.chip].per_device(), setup.mesh.size, setup.cost
    state = memory.of_state(setup.abstract)
    versions = {n: importlib.metadata.version(n) for n in ('jax', 'libtpu')}
    mesh, batch = dict(setup.mesh.shape), config.train.batch_size
    traced = compiled.trace_step(setup)
    flops = compiled.step_flops(traced) // devices
    head = [
        f'{topology}: {devices} devices, mesh data {mesh["data"]} × expert {mesh["expert"]}; '
        + ', '.join(f'{n} {v}' for n, v in versions.items()),
        '',
        *report.state(state, device.hbm),
        '',
        *report.compute(flops, cost, batch / devices),
        '',
    ]
    record: dict[str, Any] = {
        'topology': str(topology),
        'devices': devices,
        'mesh': mesh,
        'versions': versions,
        'hbm': device.hbm,
        'state': state,
        'flops': flops,
        'padding': cost.padding,
    }
    print('compiling; a large network takes minutes', file=sys.stderr, flush=True)
    try:
        program = compiled.compile_step(traced)
    except compiled.TooLarge as e:
        tensors = e.tensors or [
            f'{report.size(size)} {shape} in {scope}'
            for size, shape, scope in memory.largest(traced.jaxpr.jaxpr, devices)
        ]
        problems = [
            f'does not fit: {e} of memory; the largest tensors of a device:',
            *(f'  {tensor}' for tensor in tensors),
        ]
        return Result([*head, *problems], record | {'problems': problems}, problems)
    collectives, used = hlo.collectives(program.hlo), memory.of_program(program.memory)
    layers, routed = [b.name for b in cost.blocks], set(cost.capacities)
    planned = expected.of_setup(setup, topology.slices)
    exchanges = expected.exchanges(collectives, planned, routed)
    estimate = roofline.estimate(device, flops, used, collectives, devices)
    problems = [
        report.unexpected(c, tensor, layers)
        for c, tensor in expected.unexpected(collectives, planned, routed)
    ]
    if used.used > device.hbm:
        problems.append(
            f'does not fit: needs {report.size(used.used)} of {report.size(device.hbm)} of memory'
        )
    lines = [
        *head,
        f'compiled in {program.seconds:.0f} s',
        '',
        *report.memory(used, device.hbm),
        '',
        *report.collectives(collectives, layers, routed),
        *report.exchanges(exchanges, planned, devices),
        *report.slices(collectives, topology.slices),
        '',
        *report.roofline(estimate, topology.chip, flops / device.flops, batch),
        '',
        *(problems or ['It fits, and no collective is unexpected.']),
    ]
    record |= {
        'seconds': program.seconds,
        'problems': problems,
        'memory': dataclasses.asdict(used) | {'used': used.used},
        'collectives': [
            {
                'kind': c.kind,
                'times': c.times,
                'group': len(c.groups[0]) if c.groups else devices,
                'tensors': [
                    dataclasses.asdict(p) | {'layer': expected.layer_of(p.op_name, layers)}
                    for p in c.parts
                ],
            }
            for c in collectives
        ],
        'exchanges': {
            'expected': dict(planned.exchanges),
            'expected_sent': planned.sent,
            'sent': roofline.sent(exchanges, devices),
        },
        'estimate': dataclasses.asdict(estimate)
        | {'bound': estimate.bound, 'least': estimate.least, 'most': estimate.most},
    }
    return Result(lines, record, problems)
