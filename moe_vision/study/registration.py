"""What a study fixes before its first run: one record, its hash, and what became of it since.

The record is the study with every arm's resolved config, less the keys that change no result. It
is all that the analysis reads, so that no study file is needed to report.
"""

import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_vision.common.errors import UserError
from moe_vision.common.files import write_json
from moe_vision.common.json_values import MISSING, differences, plain
from moe_vision.config import check as config_lib
from moe_vision.config import registry, schema
from moe_vision.study import types
from moe_vision.study.load import Loaded, operational

_ARGS = {  # where a method's arguments stand, the table they are in, and where its name stands
    ('model', 'args'): (registry.BACKBONES, ('model', 'name')),
    ('model', 'moe', 'router_args'): (registry.ROUTERS, ('model', 'moe', 'router')),
    ('model', 'moe', 'expert_args'): (registry.EXPERTS, ('model', 'moe', 'expert')),
    ('train', 'optimizer_args'): (registry.OPTIMIZERS, ('train', 'optimizer')),
}


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it stands in records and rows: without its seed and without operational keys.

    Args:
      config: as `config.to_dict` gives it and config.json holds it.
    """
    def less(values: dict[str, Any], path: str = '') -> dict[str, Any]:
        out = {}
        for key, value in values.items():
            at = f'{path}{key}'
            if at == 'seed' or operational(at) or operational(f'{at}.'):
                continue
            out[key] = less(value, f'{at}.') if isinstance(value, dict) else value
        return out

    return less(dict(config))


def record(loaded: Loaded) -> dict[str, Any]:
    """The study as plain JSON values; each arm has 'config' and 'seed_offset'."""
    out = plain(dataclasses.asdict(loaded.study))
    configs = {name: config_lib.to_dict(config) for name, config in loaded.configs.items()}
    out['arms'] = {name: {'config': resolved(configs[name]), 'seed_offset': arm.seed_offset}
                   for name, arm in loaded.study.arms.items()}
    return out


def digest(of: Mapping[str, Any]) -> str:
    """sha256, in hex, of the record with sorted keys and no white space."""
    text = json.dumps(of, sort_keys=True, separators=(',', ':'), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(workdir: str) -> tuple[dict[str, Any], str]:
    """The committed record and its hash.

    Raises:
      UserError: there is none, or it was changed.
    """
    path = _path(workdir)
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        committed, given = found['record'], str(found['hash'])
        actual = digest(committed)
        committed['arms'], committed['seeds'], committed['name']
    except FileNotFoundError as e:
        raise UserError(f"'{path}' does not exist; give the --workdir of a study, or register one "
                        'with --study.') from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"'{path}' cannot be read ({type(e).__name__}: {e}); restore it from "
                        'version control.') from e
    if actual != given:
        raise UserError(f"'{path}' was changed: its hash is {given[:16]}, but its record has "
                        f'{actual[:16]}; restore it from version control, or use a new --workdir.')
    return committed, given


def folders(workdir: str) -> list[str]:
    """`workdir`, or where it is no study's folder, those below it of studies that have rows."""
    if _path(workdir).exists():
        return [workdir]
    below = (p.parent for p in Path(workdir).rglob('preregistration.json'))
    return sorted(str(p) for p in below
                  if (p / 'rows').exists() or (p / 'rows.jsonl').exists()) or [workdir]


def register(loaded: Loaded, workdir: str) -> tuple[dict[str, Any], str]:
    """The record and hash that hold in `workdir`: those committed there, else written now.

    Keys that the code grew since, and that stand at their default, change nothing.

    Raises:
      UserError: another study is registered there, or the file was changed.
    """
    path, ours = _path(workdir), record(loaded)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f'.{socket.gethostname()}-{os.getpid()}.{path.name}')
        write_json(own, {'hash': digest(ours), 'record': ours}, UserError)
        try:
            os.link(own, path)  # another process may have been first; then its record holds
        except FileExistsError:
            pass
        finally:
            own.unlink()
    committed, given = read(workdir)
    for text in differences(committed, ours, _study_default):
        raise UserError(f"'{path}' was registered with another study: {text}. Restore the study "
                        'file, or use a new --workdir.')
    return committed, given


def same_config(committed: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """'' or the first leaf at which a row's config differs from the arm's."""
    return next(differences(committed, found, _config_default), '')


def _study_default(path: tuple[Any, ...], new: Mapping[str, Any]) -> Any:
    """Of a key of the record: the default of the study's dataclasses, or of the arm's config."""
    if path[0] == 'arms' and path[2:3] == ('config',):
        return _config_default(path[3:], new['arms'].get(path[1], {}).get('config', {}))
    cls = {1: types.Study, 3: {'arms': types.Arm, 'comparisons': types.Comparison,
                               'figures': types.Figure}.get(path[0])}.get(len(path))
    return _field_default(cls, path[-1]) if cls else MISSING


def _config_default(path: tuple[Any, ...], config: Mapping[str, Any]) -> Any:
    """The default of a config's key: of its method's arguments, or of the common keys.

    The config may be a row's, which is data. So a method's arguments are known only if its name is
    in the table, or if the study's own file has named it.
    """
    def at(value: Any, keys: tuple[Any, ...]) -> Any:
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                return MISSING
            value = value[key]
        return value

    for place, (table, name) in _ARGS.items():
        if path[:len(place)] == place and len(path) == len(place) + 1:
            entry = registry.known(table, at(config, name))
            return _field_default(entry.args, path[-1]) if entry else MISSING
    return at(schema.defaults(), path)


def _field_default(cls: Any, name: str) -> Any:
    for field in dataclasses.fields(cls):
        if field.name == name:
            if field.default_factory is not dataclasses.MISSING:
                return field.default_factory()
            return MISSING if field.default is dataclasses.MISSING else field.default
    return MISSING


def _path(workdir: str) -> Path:
    return Path(workdir) / 'preregistration.json'
