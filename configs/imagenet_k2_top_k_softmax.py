"""Does the order of softmax and choice matter? `imagenet_k2`, softmax after the choice.

Command: python main.py --config=configs/imagenet_k2_top_k_softmax.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.router_args = {'noise': 'gaussian', 'gate': 'top_k_softmax'}
    return c
