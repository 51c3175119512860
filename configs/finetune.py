"""Trains the network of an existing run further, on other images or longer: `finetune.py:W0`.

It takes the config of the run in W0 and starts from its weights (`init_from`). Classes of other
names get a new classifier. The classifier learns at five times the run's rate. What came along
learns at that rate at most, and the earlier a block stands, the less: `layer_decay`. Set the data
set, and whatever else is to differ.

Command: python main.py --config=configs/finetune.py:W0 --workdir=W \
             --config.dataset.name=image_folder --config.dataset.data_dir=D
"""

import dataclasses

from ml_collections import ConfigDict

from moe_vision.config import check as config_lib
from moe_vision.config import source


def get_config(workdir: str) -> ConfigDict:
    c = ConfigDict(source.escaped(dataclasses.asdict(config_lib.load(workdir))))
    c.init_from = workdir
    c.train.epochs, c.train.steps = 10.0, 0
    c.train.warmup_epochs, c.train.warmup_steps = 1.0, 0
    c.train.learning_rate *= 5
    c.train.transforms = {'layer_decay': {'decay': 0.75, 'trunk': 0.2}}
    return c
