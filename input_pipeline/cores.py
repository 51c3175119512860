"""The processors that this process may use."""

import os


def cores() -> int:
    """Returns how many there are: a scheduler may have lent fewer than the machine has."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
