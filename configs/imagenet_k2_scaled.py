"""Is it that gates begin near 1/E? `imagenet_k2` with gates times E/k.

Command: python main.py --config=configs/imagenet_k2_scaled.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.router_args = {'noise': 'gaussian', 'gate_scale': 4.0}
    return c
