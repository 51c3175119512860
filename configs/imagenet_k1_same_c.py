"""Is it the slots or the choices? `imagenet_k1` with as many slots as `imagenet_k2`.

Command: python main.py --config=configs/imagenet_k1_same_c.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k1


def get_config() -> ConfigDict:
    c = imagenet_k1.get_config()
    c.model.moe.capacity_factor = 2.5
    c.model.moe.eval_capacity_factor = 4.0
    return c
