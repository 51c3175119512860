"""Would the FLOPs of two experts do the same in a dense block? `imagenet_dense`, widened.

Command: python main.py --config=configs/imagenet_dense_active.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_dense


def get_config() -> ConfigDict:
    c = imagenet_dense.get_config()
    c.model.twin = 'same_active_flops'
    return c
