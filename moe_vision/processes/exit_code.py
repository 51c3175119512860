"""Turns the end of a command that trains into an exit code and a line, in every process."""

import sys
from collections.abc import Callable

from input_pipeline import DataError
from moe_vision.common import command_line
from moe_vision.common.errors import UserError
from moe_vision.processes import peers
from moe_vision.processes.stop import EXIT_CODE, Stopped


def exit_code(run: Callable[[], None]) -> int:
    """Calls `run` and returns 0, or the exit code of what it raises.

    These are the codes of `command_line.exit_code`, and 143 for SIGTERM. Other exceptions are
    raised. In a run of several processes an error also ends the others.
    """
    try:
        run()
        sys.stdout.flush()
        return 0
    except Stopped as e:
        command_line.say(str(e))
        peers.done()
        return EXIT_CODE
    except KeyboardInterrupt:
        known: tuple[int, str] | None = (
            command_line.INTERRUPTED,
            'interrupted; start again with the same command to continue.',
        )
    except Exception as e:
        known = command_line.ending(e, (UserError, DataError))
        if known is None:
            peers.failed(e)
            raise
    assert known is not None
    code, line = known
    command_line.say(line)
    peers.give_up(code, line.removeprefix('error: ') or 'nobody reads its output any more')
    return code
