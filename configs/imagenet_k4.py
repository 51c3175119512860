"""Do four experts per image gain more than two? `imagenet_k2`, only k changed.

Command: python main.py --config=configs/imagenet_k4.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.k = 4
    return c
