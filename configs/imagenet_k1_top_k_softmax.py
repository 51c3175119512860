"""Does k = 1 fail for want of a router gradient? `imagenet_k1`, softmax after the choice.

The gate of a single choice is then 1, and the task loss does not reach the router.

Command: python main.py --config=configs/imagenet_k1_top_k_softmax.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k1


def get_config() -> ConfigDict:
    c = imagenet_k1.get_config()
    c.model.moe.router_args = {'noise': 'gaussian', 'gate': 'top_k_softmax'}
    return c
