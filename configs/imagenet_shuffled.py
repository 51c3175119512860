"""Does it matter which image goes where? `imagenet_k2`, learned routes dealt to other images.

Command: python main.py --config=configs/imagenet_shuffled.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.router = 'shuffled'
    return c
