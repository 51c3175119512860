"""What does ViT-S/16 itself do? The twin of `imagenet_vit_s16_k2`, nothing else changed.

Cost: 9.2G FLOPs per image (9.2G executed), 22,050,664 parameters, rho_place 0.3032.

Command: python main.py --config=configs/imagenet_vit_s16_dense.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_vit_s16_k2


def get_config() -> ConfigDict:
    c = imagenet_vit_s16_k2.get_config()
    c.model.twin = 'same_width'
    return c
