"""Does Soft MoE over the patches of an image gain? `imagenet_vit_s16_k2`, only the router changed.

Cost: 9.78G FLOPs per image (9.78G executed), 72,137,326 parameters, rho_place 0.3032.

Eight experts have 25 slots each, 200 in all, for the 197 tokens of an image: the experts' compute
is that of k = 1.

Command: python main.py --config=configs/imagenet_vit_s16_soft.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_vit_s16_k2


def get_config() -> ConfigDict:
    c = imagenet_vit_s16_k2.get_config()
    c.model.moe.router = 'soft'
    c.model.moe.router_args = {'axis': 'tokens', 'slots_per_expert': 25}
    c.model.moe.losses = {}
    c.model.moe.group_size = 197  # one image
    return c
