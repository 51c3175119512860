"""Do routes drawn at random do as well? `imagenet_k2`, only the router changed.

Gates are learned, by the task alone.

Command: python main.py --config=configs/imagenet_random.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.router = 'random'
    c.model.moe.router_args = {'gate': 'softmax'}
    c.model.moe.losses = {}
    return c
