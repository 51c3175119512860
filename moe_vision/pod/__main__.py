"""Compiles the training step of a config for a TPU pod, without one, and says what it would take.

    python -m moe_vision.pod --config=configs/imagenet_k2.py --topology=v5e:16x16

Any key of the config can be set: `--config.mesh.expert=8`. docs/pod.md says how to read the output.
Exit code 1: it does not fit the memory, or a collective that is not expected appears.
"""

import json
import sys

from input_pipeline import DataError
from moe_vision.common.errors import UserError
from moe_vision.pod import devices, options


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    try:
        request = options.parse(sys.argv[1:] if arguments is None else arguments, __doc__ or '')
        devices.check_installed()
        devices.prepare_environment()
        from moe_vision.pod import check  # jax from here on

        found = check.check(request.config, request.topology)
    except (UserError, DataError) as e:
        print('error:', ' '.join(str(e).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    print(json.dumps(found.plain, indent=2) if request.json else '\n'.join(found.lines))
    return 1 if found.problems else 0


if __name__ == '__main__':
    devices.with_a_large_stack('moe_vision.pod')
    sys.exit(main())
