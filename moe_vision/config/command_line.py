"""The command line of a command that reads a config: its own flags, and `--config.KEY=VALUE`."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from input_pipeline import DataError
from moe_vision.common import command_line
from moe_vision.common.errors import UserError
from moe_vision.config import source


class OverridesParser(command_line.Parser):
    """A parser that also takes overrides of the config's keys."""

    def parse_with_overrides(self, arguments: Sequence[str],
                             ) -> tuple[argparse.Namespace, list[str], dict[str, Any]]:
        """The flags' values, and the overrides of common and of open keys, for `source.load`.

        Raises:
          UserError: the first mistake, in a key or a flag.
        """
        common, opened, others = source.take_overrides(arguments)
        return self.parse(others), common, opened

    def allowed_flags(self) -> list[str]:
        return [*super().allowed_flags(), '--config.KEY']

    def nearest_flag(self, name: str) -> str:
        """The nearest key where the name has a dot or ends a key, or where no flag is like it."""
        bare = name.lstrip('-')
        key = source.nearest_key(bare)
        is_key = '.' in bare or f".{bare}'" in key
        return key if is_key else super().nearest_flag(name) or key


def exit_code(command: Callable[[], int]) -> int:
    """As `common.command_line.exit_code`; a DataError is a mistake, too."""
    return command_line.exit_code(command, (UserError, DataError))
