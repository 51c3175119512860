"""What do drops alone cost at k = 1? The dense twin with the drops of `imagenet_k1`.

Command: python main.py --config=configs/imagenet_dense_drops_k1.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_dense_drops_k2


def get_config() -> ConfigDict:
    c = imagenet_dense_drops_k2.get_config()
    c.model.moe.k = 1
    return c
