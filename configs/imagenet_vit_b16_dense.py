"""What does ViT-B/16 do? `imagenet_vit_s16_dense`, only the size changed.

86,567,656 parameters, as published.

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
