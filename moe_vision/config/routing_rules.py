"""The rules of the routed places: experts, losses, soft routing, and the sizes of groups.

Letters: E experts, k choices per token, B images of a micro-batch, T tokens of a group, t tokens of
an image. Every function raises `UserError` for the first rule that is broken.
"""

from moe_vision.common.errors import UserError
from moe_vision.config import kind_rules, registry
from moe_vision.config.fits import divisors, fits, near
from moe_vision.config.kinds import skips
from moe_vision.config.placement import HEADS, routed_blocks
from moe_vision.config.places import moe_at, pools, routed_layers
from moe_vision.config.schema import DROPPING, Config


def check(config: Config) -> None:
    """Every rule of `model.moe` that needs no data set. The placement must not be 'none'.

    Raises:
      UserError: the first rule that is broken, in one line.
    """
    routed_blocks(config.model.moe.placement, getattr(config.model.args, 'blocks', None))
    _experts(config)
    _losses(config)
    _soft(config)
    _groups(config)


def check_classes(config: Config, classes: int) -> None:
    """Raises UserError unless a router's superclasses have one entry for each class."""
    given = getattr(config.model.moe.router_args, 'superclasses', ())
    if given and len(given) != classes:
        raise UserError(
            f'model.moe.router_args.superclasses has {len(given)} entries but '
            f"'{config.dataset.name}' has {classes} classes; give one for each, or () "
            'for class modulo num_experts.'
        )


def check_image_size(config: Config, height: int, width: int) -> None:
    """The rules that depend on how many tokens an image of this size has.

    Raises:
      UserError: patches do not cover the image, or groups do not fit.
    """
    count = getattr(config.model.args, 'tokens', None)
    if count is None:
        return
    try:
        t = count(height, width)
    except UserError as e:
        raise UserError(f'model.args.{e}') from e
    if _routes_patches(config):
        _patch_groups(config, t)


def _experts(config: Config) -> None:
    model, moe = config.model, config.model.moe
    router = registry.entry('router', registry.ROUTERS, moe.router)
    backbone = registry.entry('backbone', registry.BACKBONES, model.name)
    for layer in range(routed_layers(model)):
        _counts(config, layer, router)
    _pools(config)
    second = getattr(moe.router_args, 'second_choice', 'always')
    if second != 'always' and moe.k != 2:
        raise UserError(
            f"model.moe.router_args.second_choice is '{second}', which needs k = 2, "
            f'but model.moe.k is {moe.k}.'
        )
    for expert_of_class in getattr(moe.router_args, 'superclasses', ()):
        if not 0 <= expert_of_class < moe.num_experts:
            raise UserError(
                f'model.moe.router_args.superclasses names {expert_of_class}; allowed: '
                f'0 to {moe.num_experts - 1}, the experts of model.moe.num_experts.'
            )
    for need in router.needs:
        if need == 'domain' and not config.dataset.domains:
            raise UserError(
                f"router '{moe.router}' needs 'domain', but dataset.domains is 0; set it to the "
                f'number of domains, such as {moe.num_experts}.'
            )
        supplies = [n for n in backbone.supplies if moe.placement not in HEADS or n == 'image']
        if need not in (*supplies, 'domain', 'labels'):
            raise UserError(
                f"router '{moe.router}' needs '{need}' but backbone '{model.name}' supplies "
                f"{', '.join(supplies) or 'nothing'} at model.moe.placement '{moe.placement}'; "
                'choose another of them.'
            )
    kind_rules.check(config)


def _counts(config: Config, layer: int, router: registry.Entry) -> None:
    """How many experts there are at a routed layer, and how many each token takes."""
    moe, where = moe_at(config.model, layer), ''
    if config.model.moe.layers:
        where = f' at routed layer {layer}'
    null, skip = getattr(moe.router_args, 'null_experts', 0), skips(moe.kinds)
    ids = moe.num_experts + null + skip
    if moe.k > ids and 'k' not in router.ignores:
        among = f' + null_experts {null}' if null else f' + skip {skip}' if skip else ''
        raise UserError(
            f'model.moe.k is {moe.k} but model.moe.num_experts is {moe.num_experts}'
            f'{among}{where}; k can be 1 to {ids}.'
        )
    if moe.num_experts % config.mesh.expert:
        raise UserError(
            f'model.moe.num_experts {moe.num_experts}{where} is not divisible by mesh.expert '
            f'{config.mesh.expert}; {fits(moe.num_experts, config.mesh.expert)}.'
        )


def _pools(config: Config) -> None:
    """What layers that share their experts must have in common."""
    model = config.model
    blocks = routed_blocks(model.moe.placement, getattr(model.args, 'blocks', None))
    for pool in pools(model):
        if len(pool) == 1:
            continue
        if not hasattr(model.args, 'block_shape'):
            raise UserError(
                f"model.moe.bank is '{model.moe.bank}', but the Args of backbone '{model.name}' "
                "have no block_shape(number), which says how wide blocks are; set it to 'own'."
            )
        at = [moe_at(model, n) for n in pool]
        shapes = [model.args.block_shape(blocks[n]) for n in pool]
        kinds = {(*s, m.num_experts, m.hidden) for s, m in zip(shapes, at, strict=True)}
        if len(kinds) > 1:
            raise UserError(
                f"model.moe.bank is '{model.moe.bank}', but the layers {pool} that would share "
                "experts differ in width, hidden width or num_experts; use 'stage' or 'own'."
            )


def _losses(config: Config) -> None:
    moe = config.model.moe
    if moe.router not in registry.ROUTERS:
        return  # the user's own router: the loss itself reports what it lacks
    offers = list(registry.ROUTERS[moe.router].supplies)
    if 'k' not in registry.ROUTERS[moe.router].ignores:
        offers.append('choices')
    if 'large' in offers and not moe.kinds:
        offers.remove('large')  # without kinds of experts all are
    if getattr(moe.router_args, 'noise', 'none') in ('gaussian', 'learned'):
        offers.append('noise')
    todo = {
        'noise': "set model.moe.router_args.noise to 'gaussian' or 'learned', or",
        'choices': 'take a router that chooses, or',
        'superclass': "set model.moe.router to 'supervised', or",
        'large': "set model.moe.router to 'duo' and name model.moe.kinds, or",
    }
    for name, weight in moe.losses.items():
        for need in registry.entry('loss', registry.LOSSES, name).needs:
            if weight and need not in offers:
                raise UserError(
                    f"model.moe.losses.{name} is {weight} but router '{moe.router}' "
                    f'has no {need}; {todo[need]} set the loss to 0.'
                )
    if getattr(moe.router_args, 'superclasses', ()) and not moe.losses.get('supervised'):
        raise UserError(
            'model.moe.router_args.superclasses is set but is not read: '
            "model.moe.losses has no 'supervised'."
        )


def _soft(config: Config) -> None:
    axis = getattr(config.model.moe.router_args, 'axis', None)
    if axis == 'tokens' and not _routes_patches(config):
        raise UserError(
            "model.moe.router_args.axis is 'tokens', which needs patches, but what is "
            f"routed here are images (model.name '{config.model.name}', placement "
            f"'{config.model.moe.placement}'); use 'batch' or 'none'."
        )
    router = registry.entry('router', registry.ROUTERS, config.model.moe.router)
    of_k = {
        'same_active_flops': 'the FLOPs',
        'same_drops': 'the drops',
        'same_measured_drops': 'the drops',
        'ensemble': 'the mean',
    }
    if config.model.twin in of_k and 'k' in router.ignores:
        raise UserError(
            f"model.twin is '{config.model.twin}', {of_k[config.model.twin]} of k "
            f"experts, but router '{config.model.moe.router}' has no k; use "
            "'same_width', 'same_executed_flops' or 'same_params'."
        )
    if config.model.twin in DROPPING and config.model.moe.k > config.model.moe.num_experts:
        raise UserError(
            f"model.twin is '{config.model.twin}', which draws k of the experts, but "
            f'model.moe.k is {config.model.moe.k} of num_experts '
            f'{config.model.moe.num_experts}.'
        )
    measured, drops = config.model.twin == 'same_measured_drops', config.model.measured_drops
    if measured != bool(drops) or len(drops) == 1:
        raise UserError(
            f'model.measured_drops is {drops} and model.twin {config.model.twin!r}; give two '
            "shares or more, the last of evaluation, with twin 'same_measured_drops', and none "
            'otherwise: `python -m moe_vision.report.drops --workdir=W` prints those of a run.'
        )


def _groups(config: Config) -> None:
    moe, batch = config.model.moe, _micro_batch(config)
    if _routes_patches(config):
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
    sizes = {*divisors(t), *(t * d for d in divisors(batch))}
    if size not in sizes:
        raise UserError(
            f'model.moe.group_size is {size} but an image has {t} tokens and a '
            f'micro-batch {batch} images; {near(sizes, size)}.'
        )
    router = registry.entry('router', registry.ROUTERS, moe.router)
    if 'attention' in router.needs and size % t:
        raise UserError(
            f"router '{moe.router}' reads the attention within images of {t} tokens, but "
            f'model.moe.group_size {size} cuts images; '
            f'{near({s for s in sizes if s % t == 0}, size)}.'
        )
    axis = getattr(moe.router_args, 'axis', None)
    if axis == 'tokens' and size != t:
        raise UserError(
            f"model.moe.router_args.axis is 'tokens', within one image of {t} tokens, "
            f'but model.moe.group_size is {size}; set it to {t}.'
        )
    if axis == 'batch' and size <= t:
        raise UserError(
            f"model.moe.router_args.axis is 'batch' but a group of {size} tokens is no "
            f'more than one image ({t}); {near({s for s in sizes if s > t}, size)}.'
        )


def _routes_patches(config: Config) -> bool:
    unit = registry.entry('backbone', registry.BACKBONES, config.model.name).unit
    return unit == 'patch' and config.model.moe.placement not in HEADS


def _micro_batch(config: Config) -> int:
    return config.train.batch_size // config.train.micro_batches
