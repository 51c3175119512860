"""What does the dense network do where `cifar10_standard` routes? Its twin, nothing else changed.

Command: python main.py --config=configs/cifar10_standard_dense.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import cifar10_standard


def get_config() -> ConfigDict:
    c = cifar10_standard.get_config()
    c.model.twin = 'same_width'
    return c
