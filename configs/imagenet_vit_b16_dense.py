"""What does ViT-B/16 do? `imagenet_vit_s16_dense`, only the size changed.

Cost: 35.1G FLOPs per image (35.1G executed), 86,567,656 parameters, rho_place 0.3175.

The network has as many parameters as the published one.

Command: python main.py --config=configs/imagenet_vit_b16_dense.py --workdir=W
Measured: not yet.
"""

from ml_collections import ConfigDict

from configs import imagenet_vit_s16_dense


def get_config() -> ConfigDict:
    c = imagenet_vit_s16_dense.get_config()
    c.model.args.width = 768
    c.model.args.heads = 12
    return c
