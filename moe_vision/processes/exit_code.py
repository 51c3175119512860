"""Turns the end of a command that trains into an exit code and a line, in every process."""

import sys
from collections.abc import Callable

from input_pipeline import DataError
from moe_vision.common.errors import UserError
from moe_vision.processes import peers
from moe_vision.processes.stop import EXIT_CODE, Stopped


def exit_code(run: Callable[[], None]) -> int:
    """Calls `run` and returns 0; 2 for an error the user can fix, 130 for Ctrl-C, 143 for SIGTERM.

    Other exceptions are raised. In a run of several processes an error also ends the others.
    """
    try:
        run()
        return 0
    except (UserError, DataError) as e:
        code, error = 2, ' '.join(str(e).split())
        sys.stderr.write(f'error: {error}\n')
    except Stopped as e:
        sys.stderr.write(f'{e}\n')
        peers.done()
        return EXIT_CODE
    except KeyboardInterrupt:
        code, error = 130, 'interrupted'
        sys.stderr.write('interrupted; start again with the same command to continue.\n')
    except Exception as e:
        peers.failed(e)
        raise
    peers.give_up(code, error)
    return code
