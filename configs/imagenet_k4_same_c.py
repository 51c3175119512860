"""Is it the slots or the choices? `imagenet_k4` with as many slots as `imagenet_k2`.

Command: python main.py --config=configs/imagenet_k4_same_c.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k4


def get_config() -> ConfigDict:
    c = imagenet_k4.get_config()
    c.model.moe.capacity_factor = 0.625
    c.model.moe.eval_capacity_factor = 1.0
    return c
