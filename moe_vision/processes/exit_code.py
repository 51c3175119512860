"""How a command that trains ends: with an exit code and a line, in every process of its run."""

import sys
from collections.abc import Callable

from input_pipeline import DataError
from moe_vision.common.errors import UserError
from moe_vision.processes import peers
from moe_vision.processes.stop import EXIT_CODE, Stopped


def exit_code(run: Callable[[], None]) -> int:
    """Calls `run`; returns 0, or what it ended with: 2 for what the user can mend, 130 for Ctrl-C,
    143 for SIGTERM. What nobody foresaw is raised. Where there are other processes an error ends
    them, too.
    """
    try:
        run()
        return 0
    except (UserError, DataError) as e:
        code, told = 2, ' '.join(str(e).split())
        sys.stderr.write(f'error: {told}\n')
    except Stopped as e:
        sys.stderr.write(f'{e}\n')
        peers.done()
        return EXIT_CODE
    except KeyboardInterrupt:
        code, told = 130, 'interrupted'
        sys.stderr.write('interrupted; start again with the same command to go on.\n')
    except Exception as e:
        peers.failed(e)
        raise
    peers.give_up(code, told)
    return code
