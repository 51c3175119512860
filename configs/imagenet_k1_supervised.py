"""Does k = 1 work where labels teach the router? `imagenet_k1_unbounded`, supervised.

Class modulo E names the expert; the weight 0.3 is inside the 0.1 to 1 of Mobile V-MoE.

Command: python main.py --config=configs/imagenet_k1_supervised.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k1_unbounded


def get_config() -> ConfigDict:
    c = imagenet_k1_unbounded.get_config()
    c.model.moe.router = 'supervised'
    c.model.moe.losses = {'supervised': 0.3}
    return c
