"""Is the gap positive at ImageNet scale when two experts are taken per image?

Cost: 11.4G FLOPs per image (12.9G executed), 99,138,856 parameters, rho_place 0.3790.

A ResNet-50. Its last seven shape-preserving blocks, five of the third stage and two of the fourth,
have eight bottleneck experts each, with group norm inside. Their hidden width, 296, was solved for
with

    python -m moe_vision.leverage --config=configs/imagenet_k2.py --solve=model.moe.hidden \
        --target_rho=0.38

The blocks that an expert copies have hidden widths of 256 and 512.

A group has 32 images, so ceil(1.25 * k * 32 / 8) needs no rounding up for any k of the ablation.
The mesh is for 256 devices with four images each: a group lies on the eight devices of an expert
axis. There a device sends 45 MB a step for a block of the third stage and 22 MB for one of the
fourth; with all experts on every device it would send 78 and 112 MB of gradients
(`--mode=summary` counts them). On fewer devices, let the devices of an expert axis hold 32 images
together (64 devices: `--config.mesh.expert=2`). On up to 32 devices each holds 32 images or more,
and `--config.mesh.expert=1` sends least.

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
    c.model.moe.group_size = 32
    c.mesh.expert = 8
    return c
