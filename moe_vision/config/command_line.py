"""The command line of a command that reads a config: its own flags, those that several commands
share, and `--config.KEY=VALUE`."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from input_pipeline import DataError
from moe_vision.common import command_line
from moe_vision.common.errors import UserError
from moe_vision.config import source


class OverridesParser(command_line.Parser):
    """A parser that also takes overrides of the config's keys."""

    def parse_with_overrides(
        self,
        arguments: Sequence[str],
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


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds --best and --trust: which weights of a run are read, and what code it may name."""
    parser.add_argument(
        '--best',
        action='store_true',
        help='use the weights that were best on validation, not the last ones',
    )
    parser.add_argument(
        '--trust',
        default='',
        metavar='MODULES',
        help="modules of your own that the run's config may import, such as my.routers,my.losses",
    )


_EXTRA = {
    'absl',
    'array_record',
    'chex',
    'cv2',
    'etils',
    'flatbuffers',
    'grain',
    'matplotlib',
    'ml_collections',
    'optax',
    'orbax',
    'PIL',
    'scipy',
    'sklearn',
    'tensorboardX',
    'tensorflow_datasets',
}


def exit_code(command: Callable[[], int]) -> int:
    """As `common.command_line.exit_code`; a DataError is a mistake, too.

    So is a missing package of the extra `train`: the layers alone do without it.
    """

    def run() -> int:
        try:
            return command()
        except ModuleNotFoundError as e:
            if str(e.name).partition('.')[0] not in _EXTRA:
                raise
            raise UserError(
                f"this command needs the package '{e.name}'; run pip install '.[train]' in the "
                "folder of moe_vision's source."
            ) from e

    return command_line.exit_code(run, (UserError, DataError))
