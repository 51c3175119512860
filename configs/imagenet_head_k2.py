"""Does a routed head lose where a routed backbone gains? `imagenet_k2`, only the place changed.

Eight residual experts 2048 -> 8192 -> 2048 on the pooled vector; rho_place is 0.008.

Command: python main.py --config=configs/imagenet_head_k2.py --workdir=W
Measured: not yet.

Known of the paper: a head placement with less than 1 % of the compute routed, below the dense
network. The form of its head is not known; this one is this project's own choice.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2


def get_config() -> ConfigDict:
    c = imagenet_k2.get_config()
    c.model.moe.placement = 'head'
    c.model.moe.hidden = 0  # four times the width
    return c
