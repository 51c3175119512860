"""Does one expert per patch lose? `imagenet_vit_s16_k2`, only k changed.

Cost: 9.21G FLOPs per image (9.93G executed), 71,694,952 parameters, rho_place 0.3032.

Command: python main.py --config=configs/imagenet_vit_s16_k1.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_vit_s16_k2


def get_config() -> ConfigDict:
    c = imagenet_vit_s16_k2.get_config()
    c.model.moe.k = 1
    return c
