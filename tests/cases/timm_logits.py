"""Small networks of timm with drawn weights: their names, shapes and logits, in timm_logits.json.

The tests draw the same weights and compare. To remake the file, where torch and timm are installed:

    python tests/cases/timm_logits.py
"""

import json
import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix('.json')
CLASSES, IMAGES = 5, 3
SIZES = {'vit': 32, 'convnext': 60, 'resnet': 36}  # maps where padding makes a difference


def drawn(name, shape):
    """The weights of a name: of norms near 1, of matrices such that activations stay of size 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.normal(size=shape)
    if name.endswith('running_var'):
        return (0.5 + rng.uniform(size=shape)).astype(np.float32)
    if len(shape) > 1 and 'pos_embed' not in name and 'cls_token' not in name:
        return (x * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    scale = name.endswith('weight') or name.endswith('gamma')
    return (0.2 * x + scale).astype(np.float32)


def images(name):
    """[B, H, W, C], normalised."""
    size = SIZES[name]
    return np.random.default_rng(7).normal(size=(IMAGES, size, size, 3)).astype(np.float32)


def _networks():
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import Bottleneck, ResNet
    from timm.models.vision_transformer import VisionTransformer

    return {
        'vit': VisionTransformer(
            img_size=32, patch_size=8, num_classes=CLASSES, embed_dim=32, depth=2, num_heads=4
        ),
        'convnext': ConvNeXt(num_classes=CLASSES, depths=(1, 2, 1, 1), dims=(8, 16, 24, 32)),
        'resnet': ResNet(
            Bottleneck, layers=(2, 2, 1, 1), channels=(64, 8, 8, 8), num_classes=CLASSES
        ),
    }


def main():
    import torch

    found = {}
    for name, network in _networks().items():
        shapes = {n: list(x.shape) for n, x in network.state_dict().items() if x.ndim}
        state = {n: torch.from_numpy(drawn(n, s)) for n, s in shapes.items()}
        network.load_state_dict(state, strict=False)
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(images(name).transpose(0, 3, 1, 2)))
        rows = [[float(x) for x in row] for row in logits]
        found[name] = {'shapes': shapes, 'logits': rows}
    FILE.write_text(json.dumps(found, separators=(',', ':')) + '\n')


if __name__ == '__main__':
    main()
