"""How commands end: the exit code and the line of each kind of error, and output nobody takes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from input_pipeline import DataError
from moe_vision.common import command_line
from moe_vision.common.errors import NotWritten, UserError
from moe_vision.config import command_line as with_config
from moe_vision.processes import exit_code as training
from moe_vision.processes.stop import Stopped

ROOT = Path(__file__).resolve().parents[2]
ALL = {
    'plain': command_line.exit_code,
    'with a config': with_config.exit_code,
    'training': training.exit_code,
}


def raising(error):
    def command():
        raise error

    return command


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/W/a.json')


@pytest.mark.parametrize(
    'error, code, line',
    [
        (UserError('of\nthe user'), 2, 'error: of the user'),
        (NotWritten("'W' is gone"), 3, "error: 'W' is gone"),
        (
            FULL,
            3,
            "error: '/W/a.json' cannot be written: No space left on device; make room, and "
            'start again.',
        ),
        (
            FileExistsError(errno.EEXIST, 'File exists', '/W/claims'),
            2,
            "error: '/W/claims' cannot be used: File exists; see what stands there, and start",
        ),
        (FileNotFoundError(errno.ENOENT, 'No such file', '/W/a'), 3, "error: '/W/a' cannot be"),
        (KeyboardInterrupt(), 130, 'interrupted'),
    ],
    ids=['mistake', 'not written', 'full disk', 'odd folder', 'gone', 'ctrl-c'],
)
@pytest.mark.parametrize('exit_code', ALL.values(), ids=ALL)
def test_each_kind_of_error_has_its_code_and_one_line(exit_code, error, code, line, capsys):
    assert exit_code(raising(error)) == code
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count('\n') == 1


@pytest.mark.parametrize('exit_code', ALL.values(), ids=ALL)
def test_a_message_that_quotes_a_file_commands_no_terminal(exit_code, capsys):
    exit_code(raising(UserError("unknown key '\x1b[2J\x07\u202eä'")))
    assert capsys.readouterr().err == "error: unknown key '\ufffd[2J\ufffd\ufffdä'\n"


@pytest.mark.parametrize('exit_code', ALL.values(), ids=ALL)
def test_a_message_that_quotes_a_long_value_is_short(exit_code, capsys):
    exit_code(raising(UserError(f'k is {"x" * 10**6}; it must be an int.')))
    said = capsys.readouterr().err
    assert len(said) < 2100 and said.startswith('error: k is xx') and said.endswith(' an int.\n')


def test_a_mistake_in_data_and_a_stop(capsys):
    for exit_code in (with_config.exit_code, training.exit_code):
        assert exit_code(raising(DataError('no such set'))) == 2
    assert training.exit_code(raising(Stopped('saved'))) == 143
    assert capsys.readouterr().err == 'error: no such set\n' * 2 + 'saved\n'


@pytest.mark.parametrize(
    'error',
    [
        OSError(errno.ENOENT, 'gone'),
        ValueError('a bug'),
        BrokenPipeError(errno.EPIPE, 'of a worker'),
    ],
    ids=repr,
)
@pytest.mark.parametrize('exit_code', ALL.values(), ids=ALL)
def test_other_errors_are_raised(exit_code, error):
    with pytest.raises(type(error)):
        exit_code(raising(error))


CODE = """
import select, sys
from moe_vision.common import command_line
from moe_vision.processes import exit_code as training

def command():
    {body}

sys.exit({exit_code}(command))
"""


GONE = 'poll = select.poll(); poll.register(1, 0); poll.poll(10_000); '  # whoever read a pipe


def start(exit_code, body, redirect):
    """(exit code, standard error) of a command in a shell that redirects its output."""
    code = CODE.format(body=body, exit_code=exit_code)
    buffered = {k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'}
    done = subprocess.run(
        ['bash', '-c', f'"$0" -c "$1" {redirect}; exit ${{PIPESTATUS[0]}}', sys.executable, code],
        cwd=ROOT,
        env=buffered,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize('size', [1, 100_000])
@pytest.mark.parametrize('redirect', ['| true', '2>&1 | true'])
@pytest.mark.parametrize('exit_code', ['command_line.exit_code', 'training.exit_code'])
def test_a_command_whose_output_nobody_reads_ends_quietly(exit_code, redirect, size):
    """`| head` in short; a small output is noticed only when it is flushed."""
    stream = ', file=sys.stderr' if '2>&1' in redirect else ''
    body = f'{GONE}print("x" * {size}{stream}); return 0'
    assert start(exit_code, body, redirect) == (141, '')


@pytest.mark.parametrize('exit_code', ['command_line.exit_code', 'training.exit_code'])
@pytest.mark.parametrize(
    'redirect, said',
    [('2>&1 | true', ''), ('| true', 'error: mistake\n'), ('> /dev/full', 'error: mistake\n')],
)
def test_a_mistake_keeps_its_code_where_nobody_reads(exit_code, redirect, said):
    """Although there is output that cannot be written any more."""
    body = (
        f'{GONE if "|" in redirect else ""}print("x" * 3); '
        'from moe_vision.common.errors import UserError; raise UserError("mistake")'
    )
    assert start(exit_code, body, redirect) == (2, said)


@pytest.mark.parametrize('size', [1, 100_000])
def test_output_to_a_full_disk_is_an_error_of_one_line(size):
    code, said = start('command_line.exit_code', f'print("x" * {size}); return 0', '> /dev/full')
    assert code == 3
    assert said == (
        'error: the output cannot be written: No space left on device; make room, and '
        'start again.\n'
    )
