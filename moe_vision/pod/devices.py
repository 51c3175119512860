"""The devices of a pod that is not there, for the compiler alone: nothing can be put on them."""

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
    wanted = next((m[1] for r in importlib.metadata.requires('jax') or ()
                   if (m := re.match(r'libtpu *== *([\d.]+?)(?:\.\*)? *;', r))), '')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(f'the TPU compiler (libtpu {wanted}) is not installed; {_INSTALL} in the '
                        "project's folder installs it.")
    found = importlib.metadata.version('libtpu')
    if f'{found}.'.startswith(f'{wanted}.'):
        return
    raise UserError(f'libtpu {found} is installed, but jax {importlib.metadata.version("jax")} '
                    f"belongs to libtpu {wanted}; {_INSTALL} in the project's folder installs it.")


def prepare_environment() -> None:
    """To be called before jax is imported: it runs on the CPU, and the compiler asks no network."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    # What libtpu would ask of a TPU's host; the topology says it all.
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
                   'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_LOG_DIR': 'disabled',
                   'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}  # several checks at a time use no chip


def with_a_large_stack(module: str) -> None:
    """Begins the process again where its stack may grow: the compiler for v6e recurses deeper than
    the usual 8 MiB allow, and would end it without a word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
        os.execv(sys.executable, [sys.executable, '-m', module, *sys.argv[1:]])


def devices_of(topology: Topology) -> list[Any]:
    """The slice's devices, as jax would see them there.

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
        return list(topologies.get_topology_desc(
            platform='tpu', topology_name=topology.slice, **options).devices)
    except jax.errors.JaxRuntimeError as e:
        raise UserError(f"the compiler has no topology '{topology}': {e}.") from e
