"""Writes `configs/base.py`, the file in which people look keys up, from `config.schema`.

Command: python -m moe_vision.config.base_file > configs/base.py
"""

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from moe_vision.config import compare, schema

_WIDTH = 100
_TOP = '''\
"""Every common key, once, with its meaning. Other configs start here and change what they must.

This file is made from moe_vision/config/schema.py, where a key's type and range stand beside its
default and meaning: change that, then `python -m moe_vision.config.base_file > configs/base.py`.

Durations come in pairs, `*_epochs` and `*_steps`: a `*_steps` that is not 0 wins.
Dictionaries that belong to one method (`*_args`, `losses`, `model.args`) are checked against that
method's own arguments: method_args.py, router_args.py, loss_args.py and backbone_args.py in
moe_vision/config/ list them. The command line may set them key by key:
`--config.model.moe.router_args.noise=gaussian`.

{may_change}
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
'''


def render() -> str:
    """The text of `configs/base.py`."""
    lines = (f'    {line}' if line else '' for line in _section(schema.Config(), 'c'))
    may_change = (
        'A run that goes on in its folder can get longer (train.epochs, train.steps) and may '
        f'change {compare.changeable()}. Any other change makes another run, which needs a '
        'folder of its own.'
    )
    top = _TOP.format(may_change='\n'.join(textwrap.wrap(may_change, _WIDTH)))
    return top + '\n'.join([*lines, '    return c', ''])


def _section(section: Any, at: str) -> Iterator[str]:
    for field in dataclasses.fields(section):
        name, default = f'{at}.{field.name}', getattr(section, field.name)
        if dataclasses.is_dataclass(default):
            yield from ('', f'{name} = ConfigDict()', *_section(default, name))
        else:
            yield from commented(f'{name} = {default!r}', field.metadata['meaning'])


def commented(code: str, meaning: str) -> list[str]:
    """The lines of one key: its comment stands behind it, or above it if that is too long."""
    line = f'{code}  # {meaning}'
    if len(line) <= _WIDTH - 4 and '\n' not in meaning:
        return [line]
    wrapped = (textwrap.wrap(text, _WIDTH - 6) for text in meaning.split('\n'))
    return [*(f'# {part}' for parts in wrapped for part in parts), code]


if __name__ == '__main__':
    print(render(), end='')
