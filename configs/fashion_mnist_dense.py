"""What does the dense network do where `fashion_mnist_k2` routes? Its twin, nothing else changed.

Command: python main.py --config=configs/fashion_mnist_dense.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist_k2


def get_config() -> ConfigDict:
    c = fashion_mnist_k2.get_config()
    c.model.twin = 'same_width'
    return c
