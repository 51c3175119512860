"""Counts the processors and the memory that this process may use."""

import contextlib
import os
from pathlib import Path

_LIMITS = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')


def cores() -> int:
    """Returns the number of usable processors: a scheduler may grant fewer than the machine has."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Returns the bytes of memory of the machine, or of the container if it has fewer."""
    found = [2**63]  # where nothing tells
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # 'max' is no number
            found.append(int(Path(path).read_text()))
    return min(found)
