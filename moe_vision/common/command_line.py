"""How every command reads its command line, refuses a mistake in it, and ends.

Only argparse is imported: a mistake is answered at once. `moe_vision.config.command_line` adds what
a command with a config needs.
"""

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from moe_vision.common.errors import UserError, nearest


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
    """Calls the command; returns what it returns, 2 after a mistake, or 130 after Ctrl-C.

    A mistake is printed as one line on standard error. All other exceptions are raised.
    """
    try:
        return command()
    except mistakes as e:
        print('error:', ' '.join(str(e).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
