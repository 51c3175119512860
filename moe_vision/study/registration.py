"""Pre-registers a study: writes one record of what is fixed before the first run, and its hash.

The record is the study with every arm's resolved config, without the keys that change no result.
The analysis reads only the record and the rows, so a report needs no study file.
"""

import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline import json_data
from moe_vision.common.errors import UserError
from moe_vision.common.files import write_json
from moe_vision.common.json_values import MISSING, differences, plain
from moe_vision.config import check as config_lib
from moe_vision.config import compare
from moe_vision.study import types
from moe_vision.study.checks import checked
from moe_vision.study.load import Loaded, operational

_SHOWN = 300  # characters of what is wrong with a record
_JUDGED: dict[str, Any] = {
    'comparisons': types.Comparison,
    'trends': types.Trend,
    'family_differences': types.FamilyDifference,
}


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as records and rows hold it: without its seed and without operational keys.

    Args:
      config: as `config.check.to_dict` returns it and config.json stores it.
    """

    def strip(values: dict[str, Any], prefix: str = '') -> dict[str, Any]:
        out = {}
        for key, value in values.items():
            path = f'{prefix}{key}'
            if path == 'seed' or operational(path) or operational(f'{path}.'):
                continue
            out[key] = strip(value, f'{path}.') if isinstance(value, dict) else value
        return out

    return strip(dict(config))


def record(loaded: Loaded) -> dict[str, Any]:
    """The study as plain JSON values; each arm has 'config' and 'seed_offset'."""
    out = plain(dataclasses.asdict(loaded.study))
    configs = {name: config_lib.to_dict(config) for name, config in loaded.configs.items()}
    out['arms'] = {
        name: {'config': resolved(configs[name]), 'seed_offset': arm.seed_offset}
        for name, arm in loaded.study.arms.items()
    }
    if loaded.tuned:
        out['tuned'] = plain(loaded.tuned)
    return out


def exists(workdir: str) -> bool:
    """Whether a study is registered in this folder."""
    return _path(workdir).exists()


def digest(record: Mapping[str, Any]) -> str:
    """sha256, in hex, of the record as JSON with sorted keys and no white space."""
    canonical = json.dumps(record, sort_keys=True, separators=(',', ':'), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read(workdir: str) -> tuple[dict[str, Any], str]:
    """The committed record and its hash.

    Raises:
      UserError: there is no readable record, or it was changed.
    """
    path = _path(workdir)
    try:
        stored = json_data.read(path)
        committed, stored_hash = stored['record'], str(stored['hash'])
        actual = digest(committed)
        completed = _completed(committed)
    except FileNotFoundError as e:
        raise UserError(
            f"'{path}' does not exist; give the --workdir of a study, or register one with --study."
        ) from e
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        UserError,
    ) as e:
        reason = getattr(e, 'strerror', None) or e
        raise UserError(
            f"'{path}' cannot be read ({type(e).__name__}: {str(reason)[:_SHOWN]}); "
            'restore it from version control.'
        ) from e
    if actual != stored_hash:
        raise UserError(
            f"'{path}' was changed: its hash is {stored_hash[:16]}, but its record has "
            f'{actual[:16]}; restore it from version control, or use a new --workdir.'
        )
    return completed, stored_hash


def _completed(committed: Mapping[str, Any]) -> dict[str, Any]:
    """The record, with the keys that it lacks at their defaults.

    Raises:
      UserError, LookupError, TypeError, AttributeError: no study file could have given it.
    """
    arms = {
        name: types.Arm('', seed_offset=arm.get('seed_offset', 0))
        for name, arm in committed['arms'].items()
    }
    study = checked(
        types.Study(
            **_known(types.Study, committed)
            | {
                'arms': arms,
                **{
                    part: {
                        name: cls(**_known(cls, value))
                        for name, value in committed.get(part, {}).items()
                    }
                    for part, cls in _JUDGED.items()
                },
                'figures': tuple(
                    types.Figure(**_known(types.Figure, value))
                    for value in committed.get('figures', ())
                ),
                'tune': types.Tuning(**committed['tune']) if committed.get('tune') else None,
            }
        )
    )
    whole = plain(dataclasses.asdict(study))
    whole['arms'] = {
        name: {'config': {}, 'seed_offset': arm.seed_offset} for name, arm in arms.items()
    }
    return _filled(committed, whole)


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are fields of the dataclass."""
    return {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}


def _filled(given: Any, whole: Any, at: str = 'record') -> Any:
    """`given` with the keys of `whole` that it lacks. Raises UserError where their kinds differ."""
    if isinstance(whole, dict) and isinstance(given, dict):
        both = {k: _filled(given[k], v, f'{at}.{k}') if k in given else v for k, v in whole.items()}
        return given | both
    if isinstance(whole, list) and isinstance(given, list) and len(whole) == len(given):
        return [_filled(a, b, at) for a, b in zip(given, whole, strict=True)]
    if given != whole:
        raise UserError(f'{at} is not of the kind that a study file gives')
    return given


def folders(workdir: str) -> list[str]:
    """`workdir` itself if it holds a study, else the folders below it of studies that have rows."""
    if _path(workdir).exists():
        return [workdir]
    below = (p.parent for p in Path(workdir).rglob('preregistration.json'))
    return sorted(
        str(p) for p in below if (p / 'rows').exists() or (p / 'rows.jsonl').exists()
    ) or [workdir]


def register(loaded: Loaded, workdir: str) -> tuple[dict[str, Any], str]:
    """Registers the study in `workdir`, unless that was done. Returns the record and hash there.

    Keys that the code has gained since count as equal while they have their default.

    Raises:
      UserError: another study is registered there, or the file was changed.
    """
    path, ours = _path(workdir), record(loaded)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f'.{socket.gethostname()}-{os.getpid()}.{path.name}')
        write_json(own, {'hash': digest(ours), 'record': ours}, UserError)
        try:
            os.link(own, path)  # if another process was first, its record counts
        except FileExistsError:
            pass
        finally:
            own.unlink()
    committed, stored_hash = read(workdir)
    for difference in differences(committed, ours, _study_default):
        raise UserError(
            f"'{path}' was registered with another study: {difference}. Restore "
            'the study file, or use a new --workdir.'
        )
    return committed, stored_hash


def same_config(committed: Mapping[str, Any], of_row: Mapping[str, Any]) -> str:
    """The first leaf at which a row's config differs from its arm's; '' if they are the same."""
    return next(differences(committed, of_row, compare.default_of), '')


def same_arm(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two arms of two records train the same thing: equal configs, and equal seeds."""
    return ours['seed_offset'] == theirs['seed_offset'] and not same_config(
        ours['config'], theirs['config']
    )


def _study_default(path: tuple[Any, ...], new: Mapping[str, Any]) -> Any:
    """The default of a key of the record, from the study's dataclasses or from the arm's config."""
    if path[0] == 'arms' and path[2:3] == ('config',):
        return compare.default_of(path[3:], new['arms'].get(path[1], {}).get('config', {}))
    cls = {
        1: types.Study,
        3: {'arms': types.Arm, 'figures': types.Figure, **_JUDGED}.get(path[0]),
    }.get(len(path))
    return compare.field_default(cls, path[-1]) if cls else MISSING


def _path(workdir: str) -> Path:
    return Path(workdir) / 'preregistration.json'
