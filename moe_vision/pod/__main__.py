"""Compiles the training step of a config for a TPU pod, without a TPU, and prints what it needs.

    python -m moe_vision.pod --config=configs/imagenet_k2.py --topology=v5e:16x16

Any key of the config can be set: `--config.mesh.expert=8`. docs/pod.md explains the output. The
exit code is 1 where the step does not fit the memory, or does a collective that is not expected.
"""

import json
import sys
from collections.abc import Sequence

from moe_vision.config.command_line import exit_code
from moe_vision.pod import devices, options


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    request = options.parse(arguments, __doc__)
    devices.check_installed()
    devices.prepare_environment()
    from moe_vision.pod import check  # imports jax

    result = check.check(request.config, request.topology)
    print(json.dumps(result.record, indent=2) if request.json else '\n'.join(result.lines))
    return 1 if result.problems else 0


if __name__ == '__main__':
    devices.with_a_large_stack('moe_vision.pod')
    sys.exit(main(sys.argv[1:]))
