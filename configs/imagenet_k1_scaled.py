"""Is it that gates begin near 1/E? `imagenet_k1` with gates times E/k.

Command: python main.py --config=configs/imagenet_k1_scaled.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k1


def get_config() -> ConfigDict:
    c = imagenet_k1.get_config()
    c.model.moe.router_args = {'noise': 'gaussian', 'gate_scale': 8.0}
    return c
