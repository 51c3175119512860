"""Is it the number of experts taken, or their compute? `imagenet_k2` at the active FLOPs of k = 1.

Experts of a hidden width at which one has half the FLOPs: a bottleneck's grow faster than it.

Command: python main.py --config=configs/imagenet_k2_half_width.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.hidden = 184
    return c
