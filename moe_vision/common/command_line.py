"""How every command reads its command line, refuses a mistake in it, and ends.

Only argparse is imported: a mistake is answered at once. `moe_vision.config.command_line` adds what
a command with a config needs.
"""

import argparse
import errno
import itertools
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from moe_vision.common.errors import NotWritten, UserError, nearest

MISTAKE, UNWRITTEN, INTERRUPTED, NOBODY_READS = 2, 3, 130, 141  # exit codes; 1 is a bug
_LONGEST = 2000  # characters of a line about an error
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_GONE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ESTALE,
    errno.EIO,
)  # a folder was checked, then vanished


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are a UserError of one line.

    Args:
      module: the module that `python -m` runs.
      description: the command's docstring; `--help` prints it unchanged, above the flags.
    """

    def __init__(self, module: str, description: str | None) -> None:
        super().__init__(
            prog=f'python -m {module}',
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The flags' values.

        Looks for unknown flags first: a flag that seems to be missing may be misspelt.

        Raises:
          UserError: the first mistake.
        """
        for argument in itertools.takewhile(lambda a: a != '--', arguments):
            name = argument.partition('=')[0]
            if re.match('--.|-[A-Za-z]', name) and name not in self._option_string_actions:
                raise UserError(
                    f"unknown flag '{name}'.{self.nearest_flag(name)} Allowed: "
                    f'{", ".join(self.allowed_flags())}.'
                )
        namespace, unexpected = self.parse_known_args(arguments)
        if unexpected:
            raise UserError(
                f"unexpected argument '{unexpected[0]}'; flags are written --name=value."
            )
        return namespace

    def allowed_flags(self) -> list[str]:
        """All flags, in the order in which `--help` shows them."""
        return [name for name in self._option_string_actions if name.startswith('--')]

    def nearest_flag(self, name: str) -> str:
        """` Did you mean '--flag'?`, or the empty string."""
        return nearest(name, self.allowed_flags())

    def error(self, message: str) -> NoReturn:
        """Replaces argparse's usage, error and exit."""
        raise UserError(f'{message}; {self.prog} --help shows the flags.')


def exit_code(
    command: Callable[[], int], mistakes: tuple[type[Exception], ...] = (UserError,)
) -> int:
    """Calls the command; returns what it returns, or the exit code of what it raises.

    That is 2 after a mistake, 3 where what was done cannot be written, 130 after Ctrl-C; one line
    on standard error says what it was. It is 141, without a line, where nobody reads the output any
    more (`| head`). All other exceptions are raised.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except Exception as e:
        known = ending(e, mistakes)
        if known is None:
            raise
        code, line = known
    except KeyboardInterrupt:
        code, line = INTERRUPTED, 'interrupted'
    say(line)
    return code


def ending(
    error: Exception,
    mistakes: tuple[type[Exception], ...] = (UserError,),
) -> tuple[int, str] | None:
    """The exit code and the line of an error that the user can mend; None for any other error."""
    line = _short(f'error: {error}')
    if isinstance(error, NotWritten):
        return UNWRITTEN, line
    if isinstance(error, mistakes):
        return MISTAKE, line
    if isinstance(error, BrokenPipeError):  # of the output, or of another pipe
        return (NOBODY_READS, '') if _nobody_reads() else None
    if isinstance(error, OSError) and error.errno in _FULL:  # wherever it is noticed
        what = f"'{error.filename}'" if error.filename else 'the output'
        return UNWRITTEN, (
            f'error: {what} cannot be written: {error.strerror}; make room, and start again.'
        )
    if isinstance(error, OSError) and error.filename:  # a pipe where a folder belongs, and the like
        return UNWRITTEN if error.errno in _GONE else MISTAKE, _short(
            f"error: '{error.filename}' cannot be used: {error.strerror}; see what stands there, "
            'and start again.'
        )
    return None


def _short(text: str) -> str:
    """The text in one line that a terminal can show. It may quote a value of any length."""
    line = printable(' '.join(text.split()))
    half = _LONGEST // 2  # the end says what to do
    return line if len(line) <= _LONGEST else f'{line[:half]} … {line[-half:]}'


def printable(text: str) -> str:
    """The text without line breaks and other characters that a terminal would take for commands.

    Names in a stranger's files may hold such characters, and messages quote them.
    """
    return ''.join(c if c.isprintable() else '\ufffd' for c in text)


def say(line: str) -> None:
    """Prints a line on standard error, if it is not empty and somebody reads it.

    What standard output still holds is written first. Streams that cannot be written get the null
    device instead: Python would print a traceback about what is left in them when it ends.
    """
    for stream, text in ((sys.stdout, ''), (sys.stderr, line and f'{line}\n')):
        try:
            stream.write(text)  # in one write: other threads also write there
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _nobody_reads() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads any more."""
    watched = select.poll()
    for number in (1, 2):
        watched.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))
