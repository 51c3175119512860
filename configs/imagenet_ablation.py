"""Why is the gap of `imagenet_k2` what it is? One arm of the ablation, named by the argument.

An arm is `imagenet_k2` with the few keys changed that its name says: `k1_same_c` takes one expert
per image and has as many slots as k = 2. The arms and the question behind each stand in
`configs/studies/top_k.py`, the study of the same arms, and the random routers in
`configs/studies/common.py`. `head_k2` routes the head instead of the backbone: eight residual
experts 2048 -> 8192 -> 2048 on the pooled vector, with a rho_place of 0.008.

Command: python main.py --config=configs/imagenet_ablation.py:k1_same_c --workdir=W
Measured: not yet.

Known of the paper: k = 1 and a head with less than 1 % of the compute routed lie below the dense
network. The form of its head is not known; this one is this project's own choice.
"""

from ml_collections import ConfigDict

from configs import imagenet_k2
from configs.studies import common, sets, top_k
from moe_vision.config import source

ARMS = {**top_k.changes(sets.IMAGENET), **common.CONTROLS, 'head_k2': sets.IMAGENET.head.overrides}


def get_config(arm: str = '') -> ConfigDict:
    c = imagenet_k2.get_config()
    c.update_from_flattened_dict(source.chosen('arm', arm, ARMS))
    return c
