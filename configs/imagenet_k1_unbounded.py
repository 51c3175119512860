"""Is it dropped images that harm k = 1? `imagenet_k1` with room for all.

Command: python main.py --config=configs/imagenet_k1_unbounded.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k1


def get_config() -> ConfigDict:
    c = imagenet_k1.get_config()
    c.model.moe.capacity_factor = float('inf')
    c.model.moe.eval_capacity_factor = float('inf')
    return c
