"""Where each array of a backbone stands in a file of another program.

`TABLES` maps a backbone and a way of naming to a function of the backbone's arguments. It returns,
by path here, the name there and what makes the array here of the one there. A path that is missing
has no counterpart there.

Axes: D width, F hidden width, H heads, C channels in, O channels out, h w taps, E experts.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from moe_vision.config.backbone_args import ConvNextNetArgs, ResNetArgs, VitArgs

Make = Callable[[np.ndarray], np.ndarray]
Names = dict[str, tuple[str, Make]]


def _as_it_is(x: np.ndarray) -> np.ndarray:
    return x


def _turned(x: np.ndarray) -> np.ndarray:
    """A matrix [O, C] as [C, O]."""
    return x.T


def _filters(x: np.ndarray) -> np.ndarray:
    """Filters [O, C, h, w] as [h, w, C, O]."""
    return x.transpose(2, 3, 1, 0)


def _kernel_bias(here: str, there: str, make: Make) -> Names:
    return {
        f'{here}/kernel': (f'{there}.weight', make),
        f'{here}/bias': (f'{there}.bias', _as_it_is),
    }


def _norm(here: str, there: str) -> Names:
    return {
        f'{here}/scale': (f'{there}.weight', _as_it_is),
        f'{here}/bias': (f'{there}.bias', _as_it_is),
    }


def _mlp(here: str, there: str) -> Names:
    """The two matrices of an expert that is dense here."""
    return {
        f'{here}/in_kernel': (f'{there}.fc1.weight', _turned),
        f'{here}/in_bias': (f'{there}.fc1.bias', _as_it_is),
        f'{here}/out_kernel': (f'{there}.fc2.weight', _turned),
        f'{here}/out_bias': (f'{there}.fc2.bias', _as_it_is),
    }


def vit(a: VitArgs) -> Names:
    """timm's VisionTransformer, which DeiT and DINO name in the same way."""
    names = {
        'class_token': ('cls_token', _as_it_is),
        'position': ('pos_embed', _as_it_is),
        **_kernel_bias('stem', 'patch_embed.proj', _filters),
        **_norm('final_norm', 'norm'),
        **_kernel_bias('classifier', 'head', _turned),
    }
    for n in range(a.depth):
        here, there = f'block_{n}', f'blocks.{n}'
        names |= _norm(f'{here}_attention_norm', f'{there}.norm1')
        names |= _norm(f'{here}_norm', f'{there}.norm2')
        names |= _mlp(here, f'{there}.mlp')
        for part, which in enumerate(('query', 'key', 'value')):
            names |= {
                f'{here}_attention/{which}/{kind}': (f'{there}.attn.qkv.{torch}', make)
                for kind, torch, make in (
                    ('kernel', 'weight', _third(part, a.heads)),
                    ('bias', 'bias', _third(part, a.heads)),
                )
            }
        names |= {
            f'{here}_attention/out/kernel': (f'{there}.attn.proj.weight', _out_of(a.heads)),
            f'{here}_attention/out/bias': (f'{there}.attn.proj.bias', _as_it_is),
        }
    return names


def _third(part: int, heads: int) -> Make:
    """Query, key or value of [3 D, D] as [D, H, D / H], or of [3 D] as [H, D / H]."""

    def make(x: np.ndarray) -> np.ndarray:
        own = np.split(x, 3)[part].T
        return own.reshape(*own.shape[:-1], heads, -1)

    return make


def _out_of(heads: int) -> Make:
    """[D, D] as [H, D / H, D]."""
    return lambda x: x.T.reshape(heads, -1, x.shape[0])


def convnext(a: ConvNextNetArgs) -> Names:
    """timm's ConvNeXt."""
    names = {
        **_kernel_bias('stem', 'stem.0', _filters),
        **_norm('stem_norm', 'stem.1'),
        **_norm('final_norm', 'head.norm'),
        **_kernel_bias('classifier', 'head.fc', _turned),
    }
    for stage in range(1, len(a.depths)):
        names |= _norm(f'down_{stage}_norm', f'stages.{stage}.downsample.0')
        names |= _kernel_bias(f'down_{stage}', f'stages.{stage}.downsample.1', _filters)
    for number, there in enumerate(_blocks(a.depths, 'stages', 'blocks.')):
        here = f'block_{number}'
        names |= _mlp(here, f'{there}.mlp')
        names |= {
            f'{here}/depthwise': (f'{there}.conv_dw.weight', _filters),
            f'{here}/depthwise_bias': (f'{there}.conv_dw.bias', _as_it_is),
            f'{here}/norm_scale': (f'{there}.norm.weight', _as_it_is),
            f'{here}/norm_bias': (f'{there}.norm.bias', _as_it_is),
            f'{here}/layer_scale': (f'{there}.gamma', _as_it_is),
        }
    return names


def _blocks(depths: Iterable[int], stages: str, blocks: str) -> list[str]:
    return [f'{stages}.{s}.{blocks}{n}' for s, depth in enumerate(depths) for n in range(depth)]


def resnet(a: ResNetArgs) -> Names:
    """timm's and torchvision's ResNet of bottleneck blocks."""
    names = {
        'stem/kernel': ('conv1.weight', _filters),
        **_batch_norm('stem_norm', 'bn1'),
        **_kernel_bias('classifier', 'fc', _turned),
    }
    number = 0
    for stage, depth in enumerate(a.depths):
        for n in range(depth):
            there = f'layer{stage + 1}.{n}'
            here = f'block_{number}' if n else f'down_{stage}'
            number += n > 0
            for i in (1, 2, 3):
                names[f'{here}/conv{i}/kernel'] = (f'{there}.conv{i}.weight', _filters)
                names |= _batch_norm(f'{here}/norm{i}', f'{there}.bn{i}')
            if not n:
                shortcut = f'{here}_shortcut'
                names[f'{shortcut}/conv/kernel'] = (f'{there}.downsample.0.weight', _filters)
                names |= _batch_norm(f'{shortcut}/norm', f'{there}.downsample.1')
    return names


def _batch_norm(here: str, there: str) -> Names:
    return {
        **_norm(f'{here}/norm', there),
        f'{here}/norm/mean': (f'{there}.running_mean', _as_it_is),
        f'{here}/norm/var': (f'{there}.running_var', _as_it_is),
    }


def v_moe(a: VitArgs) -> Names:
    """V-MoE's own checkpoints. Blocks with experts have other names than those without."""
    top = {
        'class_token': 'cls',
        'position': 'Encoder/posembed_input/pos_embedding',
        'stem': 'embedding',
        'final_norm': 'Encoder/encoder_norm',
        'representation': 'pre_logits',
        'classifier': 'head',
    }
    names: Names = {}
    for here, there in top.items():
        names[here] = (there, _as_it_is)
        for kind in ('kernel', 'bias', 'scale'):
            names[f'{here}/{kind}'] = (f'{there}/{kind}', _as_it_is)
    for n in range(a.depth):
        here, there = f'block_{n}', f'Encoder/encoderblock_{n}'
        for norm, number in (('attention_norm', 0), ('norm', 1)):
            for kind in ('scale', 'bias'):
                name = f'{there}/LayerNorm_{number}/{kind}'
                names[f'{here}_{norm}/{kind}'] = (name, _as_it_is)
        for which in ('query', 'key', 'value', 'out'):
            for kind in ('kernel', 'bias'):
                name = f'{there}/SelfAttention/{which}/{kind}'
                names[f'{here}_attention/{which}/{kind}'] = (name, _as_it_is)
        names[f'{here}/router/kernel'] = (f'{there}/Moe/Router/dense/kernel', _as_it_is)
        for side, number in (('in', 0), ('out', 1)):
            for kind in ('kernel', 'bias'):
                dense = f'Mlp/Dense_{number}/{kind}'
                names[f'{here}/{side}_{kind}'] = (f'{there}/{dense}', _as_it_is)
                names[f'{here}/experts/{side}_{kind}'] = (f'{there}/Moe/{dense}', _as_it_is)
    return names


TABLES: dict[tuple[str, str], Callable[[Any], Names]] = {
    ('vit', 'torch'): vit,
    ('convnext', 'torch'): convnext,
    ('resnet', 'torch'): resnet,
    ('vit', 'v_moe'): v_moe,
}

_GOOGLE = {  # of the .npz files of Google's ViT, which V-MoE's own names follow otherwise
    'Transformer/': 'Encoder/',
    'MlpBlock_3/': 'Mlp/',
    'MultiHeadDotProductAttention_1/': 'SelfAttention/',
    'LayerNorm_2/': 'LayerNorm_1/',
}


def renamed(name: str) -> str:
    """The name that V-MoE gives to an array of Google's ViT."""
    for old, new in _GOOGLE.items():
        name = name.replace(old, new)
    return name
