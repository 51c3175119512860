"""The rules of routing groups: which sizes fit a micro-batch, an image, and a router.

Letters: B images of a micro-batch, T tokens of a group, t tokens of an image.
"""

import math
from collections.abc import Iterable

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.placement import HEADS
from moe_vision.config.schema import Config


def check_image_size(config: Config, height: int, width: int) -> None:
    """The rules that depend on how many tokens an image of this size has.

    Raises:
      UserError: patches do not cover the image, or groups do not fit.
    """
    least = getattr(config.model.args, 'least_side', 1)
    if min(height, width) < least:
        raise UserError(
            f"images of {height}x{width} shrink to nothing in backbone '{config.model.name}' with "
            f"model.args.padding '{config.model.args.padding}'; set dataset.image_size to {least} "
            'or more.'
        )
    count = getattr(config.model.args, 'tokens', None)
    if count is None:
        return
    try:
        t = count(height, width)
    except UserError as e:
        raise UserError(f'model.args.{e}') from e
    if config.model.moe.placement != 'none' and routes_patches(config):
        _patch_groups(config, t)


def check_groups(config: Config) -> None:
    moe, batch = config.model.moe, _micro_batch(config)
    if routes_patches(config):
        if config.dataset.image_size:  # otherwise `check_with_data` knows the size
            check_image_size(config, config.dataset.image_size, config.dataset.image_size)
    elif batch % moe.group_size:
        raise UserError(
            f'model.moe.group_size is {moe.group_size} but a micro-batch has {batch} '
            'images (train.batch_size / train.micro_batches); '
            f'{fits(batch, moe.group_size)}.'
        )


def _patch_groups(config: Config, t: int) -> None:
    moe, batch = config.model.moe, _micro_batch(config)
    size = moe.group_size
    sizes = {*_divisors(t), *(t * d for d in _divisors(batch))}
    if size not in sizes:
        raise UserError(
            f'model.moe.group_size is {size} but an image has {t} tokens and a '
            f'micro-batch {batch} images; {_near(sizes, size)}.'
        )
    router, why = registry.entry('router', registry.ROUTERS, moe.router), ''
    if 'attention' in router.needs:
        why = f"router '{moe.router}' reads the attention within images"
    if getattr(moe.router_args, 'graph', None) == 'image':
        why = "model.moe.router_args.graph is 'image', which compares the tokens within images"
    if why and size % t:
        raise UserError(
            f'{why} of {t} tokens, but model.moe.group_size {size} cuts images; '
            f'{_near({s for s in sizes if s % t == 0}, size)}.'
        )
    why, _ = one_image(config)
    if why and size != t:
        raise UserError(
            f'{why}, within one image of {t} tokens, but model.moe.group_size is {size}; set it '
            f'to {t}.'
        )
    if getattr(moe.router_args, 'axis', None) == 'batch' and size <= t:
        raise UserError(
            f"model.moe.router_args.axis is 'batch' but a group of {size} tokens is no "
            f'more than one image ({t}); {_near({s for s in sizes if s > t}, size)}.'
        )


def one_image(config: Config) -> tuple[str, str]:
    """Why a group must be the patches of one image, and what to do otherwise; '' if it need not."""
    moe = config.model.moe
    if getattr(moe.router_args, 'axis', None) == 'tokens':
        return "model.moe.router_args.axis is 'tokens'", "use 'batch' or 'none'"
    one = registry.entry('router', registry.ROUTERS, moe.router).one_image
    return f"model.moe.router is '{moe.router}'" if one else '', 'take another router'


def routes_patches(config: Config) -> bool:
    unit = registry.entry('backbone', registry.BACKBONES, config.model.name).unit
    return unit == 'patch' and config.model.moe.placement not in HEADS


def _micro_batch(config: Config) -> int:
    return config.train.batch_size // config.train.micro_batches


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def fits(n: int, given: int) -> str:
    """The divisors of `n` closest to what was given, as 'what fits: 1, 2, 4'."""
    return _near(_divisors(n), given)


def _near(sizes: Iterable[int], given: int) -> str:
    closest = sorted(sorted(sizes, key=lambda d: abs(math.log(d / given)))[:8])
    return f'what fits: {", ".join(map(str, closest))}'
