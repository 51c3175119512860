"""What do drops alone cost? The dense twin with the drops of `imagenet_k2`.

A random router decides who is dropped; see `same_drops` in `configs/base.py`.

Command: python main.py --config=configs/imagenet_dense_drops_k2.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_dense


def get_config() -> ConfigDict:
    c = imagenet_dense.get_config()
    c.model.twin = 'same_drops'
    return c
