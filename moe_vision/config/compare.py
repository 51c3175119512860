"""Compares the config of a run with the one that its folder, or a study's record, holds, and says
which keys may differ.

What was written before a key was there lacks it. The key then has its default, which is how the
code behaved that knew nothing of it. Nothing here imports a method's code: what is compared may be
a stranger's.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from moe_vision.common.json_values import MISSING, differences, plain
from moe_vision.config import registry, schema, surgery
from moe_vision.config.kinds import Kind

_ARGS = {  # path of a method's arguments -> (table of methods, path of the method's name)
    ('model', 'args'): (registry.BACKBONES, ('model', 'name')),
    ('model', 'moe', 'router_args'): (registry.ROUTERS, ('model', 'moe', 'router')),
    ('model', 'moe', 'expert_args'): (registry.EXPERTS, ('model', 'moe', 'expert')),
    ('train', 'optimizer_args'): (registry.OPTIMIZERS, ('train', 'optimizer')),
}
_NAMED = {  # path of a dictionary of methods, each with its arguments -> table of methods
    ('model', 'moe', 'loss_args'): registry.LOSSES,
    ('train', 'transforms'): registry.TRANSFORMS,
}
_FIELDS = {  # path of what holds dictionaries of equal keys -> their dataclass
    ('model', 'moe', 'kinds'): Kind,
    ('model', 'moe', 'layers'): schema.AtLayer,
}
# dictionaries whose entries the user names
_OPEN = ('model.moe.losses', 'train.transforms')


def changes() -> dict[str, str]:
    """'never', 'freely' or 'upward' for every key: what may change when a run goes on."""
    return {key: limits.get('changes', 'never') for key, _, limits in schema.keys(schema.Config())}


def changeable() -> str:
    """The keys that may change freely, in words: a section is 'eval.*' if all of it may."""
    may, names = changes(), []
    for key, change in may.items():
        section = key.rpartition('.')[0]
        whole = all(c == 'freely' for k, c in may.items() if k.startswith(f'{section}.'))
        if change == 'freely':
            names.append(f'{section}.*' if whole else key)
    return ', '.join(dict.fromkeys(names))


def changed(before: Any, now: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys in which two configs differ, each with what differs: 'train.epochs 30.0 -> 60.0'.

    Args:
      before: the config that a folder holds; values of any kind.
      now: a checked config, as `config.check.to_dict` returns it.
    """
    found = {}
    for key, default, _ in schema.keys(schema.Config()):
        path = tuple(key.split('.'))
        value = look_up(now, path)
        old = look_up(before, path)
        if old is MISSING:
            old = value if path in _ARGS else plain(default)
        if key == 'model.moe.expert' and not old:
            old = _default_expert(now)
        if path in _ARGS and isinstance(old, Mapping):
            old = {name: old[name] for name in old if name in value}  # the others: `unknown`
        if lines := list(differences(old, value, lambda at, _: default_of(at, now), path, now)):
            found[key] = lines
    return found


def _default_expert(config: Mapping[str, Any]) -> str:
    model = config['model']
    backbone = registry.known(registry.BACKBONES, model['name'])
    return registry.default_expert(backbone, model['moe']['placement']) if backbone else ''


def unknown(before: Any, now: Mapping[str, Any]) -> list[str]:
    """The keys and arguments of a config that a folder holds which this code does not know."""

    def walk(values: Any, known: Any, at: str = '') -> Iterator[str]:
        if not isinstance(values, Mapping) or not isinstance(known, Mapping):
            return
        for name, value in values.items():
            key = f'{at}{name}'
            if name not in known:
                yield key
            elif key not in _OPEN:
                yield from walk(value, known[name], f'{key}.')

    return list(walk(before, now))


def default_of(path: tuple[Any, ...], config: Mapping[str, Any]) -> Any:
    """The default of a config's key, from its method's arguments or from the schema; or MISSING.

    The config may be a row's, which is data and may not import code. So a method's arguments are
    known only if its name is in the table, or if the user's own file has named it.
    """
    place = path[:-1]
    if place in (*_ARGS, ('init_args',)) or place[:-1] in (*_NAMED, *_FIELDS):
        cls = _fields(place, config)
        return field_default(cls, path[-1]) if cls else MISSING
    inside = '.'.join(map(str, path[:-1])) in changes()  # such as one of model.moe.losses
    return MISSING if inside else look_up(schema.defaults(), path)


def _fields(place: tuple[Any, ...], config: Mapping[str, Any]) -> Any:
    """The dataclass whose fields stand at a place of the config; None of an unknown method."""
    if place[:-1] in _FIELDS:
        return _FIELDS[place[:-1]]
    if place == ('init_args',):
        entry = registry.known(surgery.SURGERY, look_up(config, ('init_kind',)))
    elif place in _ARGS:
        table, name = _ARGS[place]
        entry = registry.known(table, look_up(config, name))
    else:
        entry = registry.known(_NAMED[place[:-1]], place[-1])
    return entry.args if entry else None


def field_default(cls: Any, name: str) -> Any:
    """The default of a dataclass's field, or MISSING."""
    for field in dataclasses.fields(cls):
        if field.name == name:
            if field.default_factory is not dataclasses.MISSING:
                return field.default_factory()
            return MISSING if field.default is dataclasses.MISSING else field.default
    return MISSING


def look_up(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path of nested dictionaries, or MISSING."""
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return MISSING
        value = value[key]
    return value
