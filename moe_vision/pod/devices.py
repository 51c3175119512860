"""Describes the devices of a pod to the TPU compiler, on a machine that has none of them."""

import importlib.metadata
import importlib.util
import os
import re
import resource
import sys
from typing import Any

from moe_vision.common.errors import UserError
from moe_vision.pod.topology import Topology

_INSTALL = "pip install '.[pod]'"  # in the project's folder


def check_installed() -> None:
    """Raises UserError unless the TPU compiler that belongs to this jax is installed."""
    required = next(
        (
            m[1]
            for r in importlib.metadata.requires('jax') or ()
            if (m := re.match(r'libtpu *== *([\d.]+?)(?:\.\*)? *;', r))
        ),
        '',
    )
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            f'the TPU compiler (libtpu {required}) is not installed; {_INSTALL} in the '
            "project's folder installs it."
        )
    installed = importlib.metadata.version('libtpu')
    if f'{installed}.'.startswith(f'{required}.'):
        return
    raise UserError(
        f'libtpu {installed} is installed, but jax {importlib.metadata.version("jax")} '
        f"needs libtpu {required}; {_INSTALL} in the project's folder installs it."
    )


def prepare_environment() -> None:
    """Call this before jax is imported: jax then runs on the CPU, and libtpu asks no network."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    # libtpu would ask a TPU host for these; the topology already gives them.
    os.environ |= {
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_LOG_DIR': 'disabled',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    }  # checks use no chip, so several may run


def with_a_large_stack(module: str) -> None:
    """Restarts the process with the largest stack that it may have. The compiler for v6e recurses
    deeper than the usual 8 MiB allow, and would crash without a message."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
        os.execv(sys.executable, [sys.executable, '-m', module, *sys.argv[1:]])


def devices_of(topology: Topology) -> list[Any]:
    """The slice's devices as jax would list them; they can be compiled for, but hold no arrays.

    Raises:
      UserError: the compiler does not know the slice.
    """
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.chip == 'v4':  # both cores of a chip are one device
        options['chip_config_name'] = 'megacore'
    if topology.slices > 1:
        options['num_slices'] = topology.slices
    if topology.chips == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)
    try:
        return list(
            topologies.get_topology_desc(
                platform='tpu', topology_name=topology.slice, **options
            ).devices
        )
    except jax.errors.JaxRuntimeError as e:
        raise UserError(f"the compiler has no topology '{topology}': {e}.") from e
