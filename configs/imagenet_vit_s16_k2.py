"""What does routing patches do? ViT-S/16 with eight MLP experts in every second block.

Cost: 12G FLOPs per image (13.4G executed), 71,694,952 parameters, rho_place 0.3032.

Tokens are the 196 patches and the class token; those of four images share capacity. The dense twin
has the 22,050,664 parameters of ViT-S/16 as published.

The mesh is for 256 devices with one group each: a device sends 5.3 MB a step for a routed block;
with all experts on every device it would send 66 MB of gradients. On 16 devices or fewer
`--config.mesh.expert=1` sends less (`--mode=summary` counts both).

Command: python main.py --config=configs/imagenet_vit_s16_k2.py --workdir=W
Measured: not yet.

The paper routes whole images of convolutional networks. This network is this project's own choice;
its length of training and its mixing follow DeiT.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50


def get_config() -> ConfigDict:
    c = imagenet_resnet50.get_config()
    c.model.name = 'vit'
    c.model.args = {
        'width': 384,
        'depth': 12,
        'heads': 6,
        'patch_size': 16,
        'pool': 'token',
        'drop_path': 0.1,
    }
    c.model.moe.placement = 'every_2'
    c.model.moe.group_size = 788  # 4 images of 197 tokens
    c.mesh.expert = 8
    c.train.epochs = 300.0
    c.train.mixup = 0.8
    return c
