"""What do dropped images cost k = 2? `imagenet_k2` with room for all.

Command: python main.py --config=configs/imagenet_k2_unbounded.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.capacity_factor = float('inf')
    c.model.moe.eval_capacity_factor = float('inf')
    return c
