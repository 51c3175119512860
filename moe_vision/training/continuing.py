"""What may change when a run goes on in its folder, and who may use the folder.

A folder belongs to one run: what is in it was trained with one config. Each key of the config says
whether it may change all the same (`config.schema`). Imports no jax.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from absl import logging

from input_pipeline import DatasetInfo
from moe_vision.common.claims import STALE, Claims
from moe_vision.common.errors import UserError
from moe_vision.common.files import reason
from moe_vision.common.json_values import as_dict, clean
from moe_vision.config import check as config_lib
from moe_vision.config import compare, typed
from moe_vision.config.rules import total_steps
from moe_vision.config.schema import Config, Train
from moe_vision.run_folder import lives

_SHOWN = 5  # differences in one message
_LOCK = 'lock'  # of the claim on a run's folder


def check(workdir: str, config: Config, info: DatasetInfo) -> list[str]:
    """Checks that a config may train in a folder: it is free, or holds the run of this config.

    Answers before anything slow begins; `opened` checks again.

    Returns:
      What differs from the config there, of the keys that may change: 'log.every_steps 20 -> 5'.

    Raises:
      UserError: another process trains there, or the folder holds the run of another config or of
        other data, or one that would get shorter.
    """
    claims = Claims[str](lives.folder_of(workdir))
    if claims.runs_here(_LOCK):
        raise _taken(claims, workdir)
    return _check_run(workdir, config, info)


def _check_run(workdir: str, config: Config, info: DatasetInfo) -> list[str]:
    """What `check` does and returns, but for other processes."""
    for name in ('metrics', 'events'):
        if os.path.islink(os.path.join(workdir, name)):
            raise UserError(
                f"'{name}' in workdir '{workdir}' is a link, and a run that goes on deletes files "
                'there, which may be yours; put a folder in its place.'
            )
    if not lives.begun(workdir):
        return []
    differs, may = _differs(workdir, config), compare.changes()
    if others := [line for key, lines in differs.items() if may[key] == 'never' for line in lines]:
        raise UserError(
            f"workdir '{workdir}' holds the run of another config ({_listed(others)}). Give this "
            f'one another --workdir, or go on with that one: --config=configs/workdir.py:{workdir}.'
            f' A run that goes on may get longer, and may change {compare.changeable()}.'
        )
    if other := lives.other_data(workdir, info):
        raise UserError(
            f'{other}. Give the same data (dataset.data_dir), or another --workdir; '
            f"--config.init_from={workdir} there starts from this run's weights."
        )
    _check_length(workdir, config, info)
    return [line for lines in differs.values() for line in lines]


def differences(workdir: str, config: Config) -> list[str]:
    """How a config differs from that of the folder's run, but for keys that may change freely."""
    may = compare.changes()
    return [
        line
        for key, lines in _differs(workdir, config).items()
        if may[key] != 'freely'
        for line in lines
    ]


@contextlib.contextmanager
def opened(workdir: str, config: Config, info: DatasetInfo) -> Iterator[Claims[str]]:
    """Makes a run's folder and keeps other processes from training there, if this config may.

    Of several processes of a run, one calls it. If the process that has locked the folder is on
    another machine and may have died, it waits until that is certain.

    Raises:
      UserError: this config may not train there, another process trains there, or the folder cannot
        be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            claims = stack.enter_context(Claims[str](lives.folder_of(workdir)))
            taken = claims.take_or_watch(_LOCK, lambda: _say_waiting(workdir, _owner(claims)))
        except OSError as e:
            raise cannot_begin(workdir, e) from e
        if not taken:
            raise _taken(claims, workdir)
        if changed := _check_run(workdir, config, info):
            logging.warning(
                'the config differs from the one this run was started with: %s', '; '.join(changed)
            )
        _say_what_differs(workdir, config)
        yield claims


def require(claims: Claims[str], workdir: str) -> None:
    """Raises UserError if another process has taken the folder over while this one stood still."""
    if not claims.holds(_LOCK) and claims.owner(_LOCK):  # '' if the folder has vanished
        raise UserError(
            f"{_owner(claims)} has taken over workdir '{workdir}' while this process stood still; "
            'this one ends and writes nothing more.'
        )


def cannot_begin(workdir: str, error: OSError) -> UserError:
    """The error for a folder that cannot be written."""
    return UserError(
        f"workdir '{workdir}' cannot be written: {reason(error)}; make room, or give "
        'another --workdir.'
    )


def _taken(claims: Claims[str], workdir: str) -> UserError:
    return UserError(
        f"{_owner(claims)} trains in workdir '{workdir}'; wait until it has ended, or give "
        'another --workdir.'
    )


def _owner(claims: Claims[str]) -> str:
    return claims.owner(_LOCK) or 'another process'


def _say_waiting(workdir: str, owner: str) -> None:
    logging.warning(
        "'%s' is locked by %s; waiting up to %.0f s to see whether that still runs",
        workdir,
        owner,
        STALE,
    )


def _say_what_differs(workdir: str, config: Config) -> None:
    """Warns of what `config.json` holds and this code cannot read, before it is replaced, and of
    other code that wrote it."""
    try:
        before = lives.config(workdir)
    except ValueError as e:
        logging.warning('%s/config.json cannot be read (%s) and will be replaced', workdir, e)
        return
    from moe_vision.run_folder import record  # imports jax

    if lives.begun(workdir) and (others := record.other_code(workdir)):
        logging.warning(
            'this run was started with other code, which may change the last digits of its '
            'results: %s',
            _listed(others),
        )
    if unknown := compare.unknown(before, config_lib.to_dict(config)):
        logging.warning(
            '%s/config.json has keys that this code does not know; they are not read: %s',
            workdir,
            ', '.join(unknown),
        )


def _differs(workdir: str, config: Config) -> dict[str, list[str]]:
    """The keys in which a config differs from that of the folder's run, each with what differs."""
    try:
        before = lives.config(workdir)
    except ValueError:
        before = None
    return {} if before is None else compare.changed(before, config_lib.to_dict(config))


def _check_length(workdir: str, config: Config, info: DatasetInfo) -> None:
    """Raises UserError if the run would get shorter than it was to be, or than it is."""
    images, done = info.split_sizes['train'], lives.done(workdir)
    total = planned = total_steps(config, images)
    with contextlib.suppress(UserError, ValueError):  # what the folder says may be of any kind
        before = {**vars(Train()), **as_dict((lives.config(workdir) or {}).get('train'))}
        train = dataclasses.replace(
            config.train,
            epochs=typed.convert(before['epochs'], float, 'train.epochs'),
            steps=typed.convert(before['steps'], int, 'train.steps'),
        )
        planned = total_steps(dataclasses.replace(config, train=train), images)
    if total >= max(planned, done):
        return
    given = (
        f'train.steps is {config.train.steps}'
        if config.train.steps
        else f'train.epochs is {config.train.epochs:g}, which makes {total} steps'
    )
    raise UserError(
        f"{given}, but the run in workdir '{workdir}' was to take {max(planned, done)} steps and "
        f'has done {done}. A run that goes on can only get longer: give at least '
        f'train.steps={max(planned, done)}, or another --workdir.'
    )


def _listed(lines: list[str]) -> str:
    """The first of these differences, in one line."""
    more = [f'and {len(lines) - _SHOWN} more'] if len(lines) > _SHOWN else []
    return '; '.join([*map(clean, lines[:_SHOWN]), *more])
