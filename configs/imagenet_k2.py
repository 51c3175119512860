"""Is the gap positive at ImageNet scale when two experts are taken per image?

A ResNet-50 whose last seven shape-preserving blocks, five of the third stage and two of the fourth,
have eight bottleneck experts each, with group norm inside. Their hidden width was solved for:

    python -m moe_vision.leverage --config=configs/imagenet_k2.py --solve=model.moe.hidden \
        --target_rho=0.38

answers 296, where rho_place is 0.379. The blocks that an expert copies have 256 and 512.

Command: python main.py --config=configs/imagenet_k2.py --workdir=W
Measured: not yet.

Known of the paper: backbone placement with about 38 % of the compute routed, k = 2 above and
k = 1 below the dense network. Its backbone, E, capacity, optimizer, epochs, batch and
augmentation are not known: those here are this project's own choice.
"""

from ml_collections import ConfigDict

from configs import imagenet_resnet50


def get_config() -> ConfigDict:
    c = imagenet_resnet50.get_config()
    c.model.moe.placement = 'last_7'
    c.model.moe.hidden = 296
    return c
