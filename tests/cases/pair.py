"""Starts a command as two processes; `{process}` in it stands for 0 in one and 1 in the other."""

import signal
import socket
import subprocess
import sys
import tempfile
import time

import train_cases


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as s:
        return s.getsockname()[1]


def start(
    jax_environment, command: list[str], devices: int = 4, processes: int = 2
) -> list[subprocess.Popen]:
    """Starts the processes with `devices` virtual devices each.

    They write to files, because a full pipe that nobody reads yet would block one of them.
    """
    flags = (
        f'{jax_environment.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
    )
    environment = jax_environment | {
        'XLA_FLAGS': flags,
        'JAX_PLATFORMS': 'cpu',
        'PYTHONFAULTHANDLER': '1',
    }
    started = []
    for i in range(processes):
        out, err = tempfile.TemporaryFile('w+'), tempfile.TemporaryFile('w+')
        started.append(
            subprocess.Popen(
                [sys.executable, *(c.replace('{process}', str(i)) for c in command)],
                env=environment,
                stdout=out,
                stderr=err,
                cwd=train_cases.ROOT,
            )
        )
        started[-1].files = out, err
    return started


def finish(started: list[subprocess.Popen], seconds: float = 300) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each. If one does not end in time, all print their stacks."""
    until, late = time.monotonic() + seconds, False
    try:
        for p in started:
            p.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        late = True
        for p in started:
            p.send_signal(signal.SIGABRT)
        time.sleep(5)
    finally:
        for p in started:
            p.kill()
    ended = []
    for p in started:
        for file in p.files:
            file.seek(0)
        ended.append((p.returncode, *(file.read() for file in p.files)))
    assert not late, [(code, err[-4000:]) for code, _, err in ended]
    return ended
