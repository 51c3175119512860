"""Hides what libraries print about each part that orbax abandons when a save or a read fails.

The first failure is raised, and our log names it. The other parts are still under way then; what
they meet would be printed once for each, as warnings and tracebacks that say nothing more. The same
holds for what orbax itself logs about a damaged file: it prints all that the file holds. It logs
all of these as errors, so no level tells them from what matters.

Only commands call this: it changes logging and hooks of the whole process, which in a notebook are
those of others, too.
"""

import atexit
import contextlib
import functools
import gc
import logging
import os
import sys
import types
import warnings
from typing import Any

from absl import logging as absl_logging


@functools.cache
def hide() -> None:
    """Hides it for the rest of the process, because it comes at any time, from other threads."""
    logging.getLogger('asyncio').addFilter(
        lambda record: 'exception was never retrieved' not in record.getMessage()
    )
    absl_logging.get_absl_logger().addFilter(
        lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname
    )
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
    show = sys.unraisablehook

    def unraisablehook(error: Any) -> None:
        if str(error.exc_value) != 'Event loop is closed':  # by then nobody waits for the part
            show(error)

    sys.unraisablehook = unraisablehook
    atexit.register(_close)


def _close() -> None:
    """Closes coroutines of orbax that still wait: at the very end they could not even be closed."""
    for x in gc.get_objects():
        if isinstance(x, types.CoroutineType) and 'orbax' in x.cr_code.co_filename:
            with contextlib.suppress(Exception):
                x.close()
