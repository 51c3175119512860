"""What earlier starts of a run have left in its folder: how far it came, and each one's config.

A life of a run is one start of its command. `config.json` describes the newest; `lives/N.json`
describe all of them, in order, each with the step after which it began. Imports no jax.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline import DatasetInfo
from moe_vision.common import files
from moe_vision.common.errors import UserError
from moe_vision.common.json_values import as_dict


def folder_of(workdir: str) -> Any:
    """The path of a workdir: a `pathlib.Path`, or an `epath.Path` if it is in a bucket."""
    if not files.in_bucket(workdir):
        return Path(workdir)
    from etils import epath  # slower to import

    return epath.Path(workdir)


def steps_in(folder: Any) -> list[int]:
    """Steps of the checkpoints in a folder of them, newest first."""
    return sorted(map(int, _names(folder, '(0|[1-9][0-9]{0,17})')), reverse=True)


def done(workdir: str) -> int:
    """The step of the newest checkpoint, readable or not; 0 if there is none."""
    return max(steps_in(folder_of(workdir) / 'checkpoints' / 'latest'), default=0)


def begun(workdir: str) -> bool:
    """Whether a run has left something in the folder that another one would replace."""
    folder = folder_of(workdir)
    return bool(
        steps_in(folder / 'checkpoints' / 'latest')
        or (folder / 'result.json').exists()
        or _names(folder / 'metrics', '(.*)')
    )


def config(workdir: str) -> dict[str, Any] | None:
    """What `config.json` holds as the run's config; None if there is no such file.

    Raises:
      ValueError: it cannot be read; the message says why, in one line.
    """
    try:
        record = files.read_json(f'{workdir.rstrip("/")}/config.json')
    except FileNotFoundError:
        return None
    found = as_dict(record).get('config')
    if not isinstance(found, dict):
        raise ValueError('it holds no config')
    return found


def other_data(workdir: str, info: DatasetInfo) -> str:
    """How the data differ from those that config.json records; '' if they do not, or it is not
    known."""
    try:
        before = files.read_json(f'{workdir.rstrip("/")}/config.json')['dataset']['digest']
    except (OSError, ValueError, KeyError, TypeError):
        return ''
    if not before or not info.digest or before == info.digest:
        return ''
    return (
        'the data differ from those this run was started with: digest of '
        f"'{info.name}' {str(before)[:16]} -> {info.digest[:16]}"
    )


def keep(workdir: str, record: Mapping[str, Any], start: int) -> None:
    """Writes what `config.json` is about to hold as a further file in `lives`.

    Args:
      start: the step after which this life begins.

    Raises:
      UserError: it cannot be written.
    """
    folder = folder_of(workdir)
    lives = folder / 'lives'
    numbers = [int(n) for n in _names(lives, r'([0-9]{1,9})\.json')]
    try:
        lives.mkdir(parents=True, exist_ok=True)
        if not numbers and (folder / 'config.json').exists():  # written before lives were kept
            files.write(lives / '1.json', files.read(str(folder / 'config.json')))
            numbers = [1]
    except (OSError, ValueError) as e:
        raise UserError(
            f"'{lives}' cannot be written: {files.reason(e)}; make room or give another "
            '--workdir, and start again to continue.'
        ) from e
    number = max(numbers, default=0) + 1
    files.write_json(lives / f'{number}.json', {'start': start} | dict(record), UserError)


def _names(folder: Any, pattern: str) -> list[str]:
    """The first group of the pattern for each name in a folder that matches it."""
    try:
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    except OSError as e:
        raise UserError(f"'{folder}' cannot be read ({files.reason(e)}); make it readable.") from e
    return [match[1] for name in names if (match := re.fullmatch(pattern, name))]
