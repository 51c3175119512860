"""The configs of `configs/`: every file, and every arm of the files that hold a table of them."""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from moe_vision.config import source

FOLDER = Path(__file__).parents[2] / 'configs'
FILES = sorted({p.name for p in FOLDER.glob('*.py')} - {'__init__.py', 'workdir.py', 'finetune.py'})


def module(file: str):
    return importlib.import_module(f'configs.{file.removesuffix(".py")}')


TABLES = {f: module(f).ARMS for f in FILES if hasattr(module(f), 'ARMS')}
CONFIGS = [name for f in FILES for name in ([f'{f}:{arm}' for arm in TABLES.get(f, ())] or [f])]


def made(name: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:ARM`."""
    return source.run(str(FOLDER / name))
