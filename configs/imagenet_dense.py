"""What does the dense network do where `imagenet_k2` routes? Its twin, nothing else changed.

Command: python main.py --config=configs/imagenet_dense.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.twin = 'same_width'
    return c
