"""Does the backbone's family matter? `cifar10_standard`, depthwise-separable instead.

Command: python main.py --config=configs/cifar10_depthwise.py --workdir=W
Measured: not yet.

The depthwise network is this project's own choice: the paper's is not known.
"""

from ml_collections import ConfigDict

from configs import cifar10_standard


def get_config() -> ConfigDict:
    c = cifar10_standard.get_config()
    c.model.name = 'depthwise'
    return c
