"""Training steps and routed layers beside the same work in PyTorch.

Needs torch and timm, which nothing else here needs, and a GPU.

Names in the table:
    timm            timm's network of the same name, autocast to bfloat16, AdamW in one kernel
    timm compiled   the same by torch.compile
    torch           the layer by sorting choices and multiplying groups of them: nothing is dropped,
                    nothing padded

Each time is that of several calls in a row, without waiting for the single ones, divided by their
number. On a GPU, leave memory to torch: XLA_PYTHON_CLIENT_MEM_FRACTION=0.5.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks import forms
from benchmarks.step import batch, imagenet, stepping
from benchmarks.table import Row
from benchmarks.timing import compiled
from configs import imagenet_resnet50, imagenet_vit_s16_dense
from moe_vision.common import timing
from moe_vision.config import check as config_lib
from moe_vision.config.schema import Config
from moe_vision.training.setup import Setup

NEEDED = ('torch', 'timm')
NETWORKS = {  # ours, timm's, the largest ratio to timm compiled to aim at
    'ViT-S/16': (imagenet_vit_s16_dense.get_config, 'vit_small_patch16_224', 1.25),
    'ResNet-50': (imagenet_resnet50.get_config, 'resnet50', 1.0),
}
SHAPES = [
    forms.Shape(t, d, 4 * d, e, 2, 1.25, g=32768 // t, dtype='bfloat16')
    for t, d, e in ((1024, 384, 8), (4096, 768, 8), (1024, 768, 64), (4096, 384, 64))
]
CALLS_OF_A_STEP, CALLS_OF_A_LAYER = 4, 10  # between two waits


def several(
    case: str,
    calls: Mapping[str, Callable[[], Any]],
    number: int,
    rounds: int,
    aims: Mapping[str, float],
    facts: Mapping[str, float],
) -> Row:
    """A row of calls that are made `number` times in a row before their result is waited for."""

    def in_a_row(call: Callable[[], Any]) -> Any:
        for _ in range(number - 1):
            call()
        return wait(call())

    turns = {name: functools.partial(in_a_row, call) for name, call in calls.items()}
    seconds = timing.rounds(turns, rounds)
    return Row(case, {n: [s / number for s in ss] for n, ss in seconds.items()}, aims, facts)


def wait(result: Any) -> Any:
    """Waits for what torch still computes on a GPU; `timing.rounds` waits for JAX's arrays."""
    torch = sys.modules.get('torch')
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def torch_step(name: str, images: int, size: int, by_compiler: bool) -> Callable[[], Any]:
    """A training step of timm's network on a random batch [images, 3, size, size]."""
    import timm
    import torch

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    network = timm.create_model(name, num_classes=1000).to(device)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    drawn = torch.randn(images, 3, size, size, device=device)
    x = drawn.to(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (images,), device=device)
    forward = torch.compile(network) if by_compiler else network

    def call() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return call


def beside_timm(name: str, config: Config, peer: str, aim: float, rounds: int) -> Row:
    """Times a training step of a dense network beside that of timm's."""
    setup = Setup(config, devices=jax.devices()[:1])
    arrays = batch(setup)
    step = compiled(setup.step, setup.fresh_state(), arrays)
    images, size = config.train.batch_size, config.dataset.image_size
    calls = {
        'ours': stepping(setup, step, arrays),
        'timm compiled': torch_step(peer, images, size, by_compiler=True),
        'timm': torch_step(peer, images, size, by_compiler=False),
    }
    facts = {'compiling s': step.seconds, 'images/s': 0.0}
    result = several(
        f'{name}, batch {images}', calls, CALLS_OF_A_STEP, rounds, {'timm compiled': aim}, facts
    )
    facts['images/s'] = 1e3 * images / result.milliseconds['ours']
    return result


def torch_layer(shape: forms.Shape, arrays: Any) -> Callable[[Any], Any]:
    """The layer as torch computes it: tokens [G, T, D] -> [G, T, D]; nothing is dropped.

    Args:
      arrays: (router params, bank) of `forms.drawn` as torch's tensors. `grouped_mm` takes no bias,
        so biases, which are added after each product, are gathered by expert.
    """
    import torch

    functional = torch.nn.functional
    grouped = getattr(functional, 'grouped_mm', None) or torch._grouped_mm
    router, bank = arrays

    def layer(x: Any) -> Any:
        tokens = x.reshape(-1, shape.d)
        features = functional.layer_norm(tokens.float(), (shape.d,), eps=1e-6)
        gate, expert = torch.softmax(features @ router['kernel'], -1).topk(shape.k, -1)
        expert, order = torch.sort(expert.reshape(-1), stable=True)
        offsets = torch.bincount(expert, minlength=shape.e).cumsum(0).to(torch.int32)
        token = order // shape.k
        w = {n: p.to(x.dtype) for n, p in bank.items()}
        hidden = grouped(tokens[token], w['in_kernel'], offs=offsets) + w['in_bias'][expert]
        hidden = functional.gelu(hidden, approximate='tanh')
        out = grouped(hidden, w['out_kernel'], offs=offsets) + w['out_bias'][expert]
        weighted = out.float() * gate.reshape(-1)[order][:, None]
        total = torch.zeros(tokens.shape, device=x.device).index_add(0, token, weighted)
        return total.to(x.dtype).reshape(x.shape)

    return layer


def tensors(tree: Any, device: str) -> Any:
    """JAX's arrays as torch's, of the same type, with gradients."""
    import torch

    def tensor(x: jax.Array) -> Any:
        single = torch.from_numpy(np.array(x, np.float32)).to(device)
        return single.to(getattr(torch, str(x.dtype))).requires_grad_()

    return jax.tree.map(tensor, tree)


def beside_groups(shape: forms.Shape, rounds: int) -> Row:
    """Times forward and backward of a layer beside torch's products of groups."""
    import torch

    params, bank, x = forms.drawn(shape)
    calls, programs = forms.calls_of(
        {'layer': (forms.with_gradient(forms.routed(shape)), (params, bank, x))}
    )
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    arrays, tokens = tensors((params, bank), device), tensors(x, device)
    layer = torch_layer(shape, arrays)
    leaves = [*jax.tree.leaves(arrays), tokens]

    def theirs() -> None:
        for leaf in leaves:
            leaf.grad = None
        layer(tokens).float().square().sum().backward()

    return several(
        f'layer, {shape}',
        {**calls, 'torch': theirs},
        CALLS_OF_A_LAYER,
        rounds,
        {'torch': 1 / 1.25},
        {'compiling s': programs['layer'].seconds},
    )


def rows(rounds: int) -> Iterator[Row]:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f'peers: left out, because {missing[0]} is not installed', file=sys.stderr)
        return
    if forms.on_cpu():
        print('peers: left out; these networks are too large for a CPU', file=sys.stderr)
        return
    for shape in SHAPES:
        yield beside_groups(shape, rounds)
    for name, (make, peer, aim) in NETWORKS.items():
        yield beside_timm(name, config_lib.check(imagenet(make)()), peer, aim, rounds)
