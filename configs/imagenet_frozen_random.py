"""Do routes that never learn do as well? `imagenet_k2`, only the router changed.

Command: python main.py --config=configs/imagenet_frozen_random.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.router = 'frozen_random'
    return c
