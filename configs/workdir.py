"""Reads the config of an existing run: `--mode=eval --workdir=W` uses this without --config.

Command: python main.py --config=configs/workdir.py:W --workdir=W2
"""

import dataclasses

from ml_collections import ConfigDict

from moe_vision.config import check as config_lib
from moe_vision.config import source


def get_config(workdir: str) -> ConfigDict:
    return ConfigDict(source.escaped(dataclasses.asdict(config_lib.load(workdir))))
