"""Does a second expert help that nobody chose? `imagenet_k2`, the second at random.

Command: python main.py --config=configs/imagenet_k1_plus_random.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.router_args = {'noise': 'gaussian', 'second_choice': 'random_expert'}
    return c
