"""What does the dense network do where `cifar10_depthwise` routes? Its twin, nothing else changed.

Command: python main.py --config=configs/cifar10_depthwise_dense.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import cifar10_depthwise


def get_config() -> ConfigDict:
    c = cifar10_depthwise.get_config()
    c.model.twin = 'same_width'
    return c
