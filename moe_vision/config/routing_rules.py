"""The rules of the routed places: experts, losses, soft routing, and the sizes of groups.

Letters: E experts, k choices per token, B images of a micro-batch, T tokens of a group, t tokens of
an image. Every function raises `UserError` for the first rule that is broken.
"""

from moe_vision.common.errors import UserError
from moe_vision.config import kind_rules, registry
from moe_vision.config.group_rules import check_groups, fits, one_image, routes_patches
from moe_vision.config.kinds import skips
from moe_vision.config.placement import HEADS, routed_blocks
from moe_vision.config.places import key_at, moe_at, pools, routed_layers
from moe_vision.config.schema import DROPPING, Config, Moe


def check(config: Config) -> None:
    """Every rule of `model.moe` that needs no data set. The placement must not be 'none'.

    Raises:
      UserError: the first rule that is broken, in one line.
    """
    routed_blocks(config.model.moe.placement, getattr(config.model.args, 'blocks', None))
    _experts(config)
    _losses(config)
    _soft(config)
    check_groups(config)


def check_classes(config: Config, classes: int) -> None:
    """Raises UserError unless a router's superclasses have one entry for each class."""
    given = getattr(config.model.moe.router_args, 'superclasses', ())
    if given and len(given) != classes:
        raise UserError(
            f'model.moe.router_args.superclasses has {len(given)} entries but '
            f"'{config.dataset.name}' has {classes} classes; give one for each, or () "
            'for class modulo num_experts.'
        )


def _experts(config: Config) -> None:
    model, moe = config.model, config.model.moe
    router = registry.entry('router', registry.ROUTERS, moe.router)
    backbone = registry.entry('backbone', registry.BACKBONES, model.name)
    _schedule(moe)
    for layer in range(routed_layers(model)):
        _counts(config, layer, router)
    _splits(config)
    _pools(config)
    fewest = min(moe_at(model, layer).num_experts for layer in range(routed_layers(model)))
    for expert_of_class in getattr(moe.router_args, 'superclasses', ()):
        if not 0 <= expert_of_class < fewest:
            raise UserError(
                f'model.moe.router_args.superclasses names {expert_of_class}; allowed: '
                f'0 to {fewest - 1}, the experts of model.moe.num_experts.'
            )
    for need in router.needs:
        if need == 'domain' and not config.dataset.domains:
            raise UserError(
                f"router '{moe.router}' needs 'domain', but dataset.domains is 0; set it to the "
                f'number of domains, such as {moe.num_experts}.'
            )
        if need == 'bank' and config.mesh.expert > 1:
            raise UserError(
                f"router '{moe.router}' reads all experts, but mesh.expert is "
                f'{config.mesh.expert} and lays them over devices; set it to 1.'
            )
        supplies = [n for n in backbone.supplies if moe.placement not in HEADS or n == 'image']
        if need not in (*supplies, 'bank', 'domain', 'labels'):
            raise UserError(
                f"router '{moe.router}' needs '{need}' but backbone '{model.name}' supplies "
                f"{', '.join(supplies) or 'nothing'} at model.moe.placement '{moe.placement}'; "
                'choose another of them.'
            )
    kind_rules.check(config)


def _schedule(moe: Moe) -> None:
    """The rules of how the number of experts varies; `moe_at` has that of the layers."""
    if moe.schedule == 'uniform':
        if moe.schedule_least:
            raise UserError(
                f'model.moe.schedule_least is {moe.schedule_least} but is not read: '
                "model.moe.schedule is 'uniform'."
            )
        return
    for name, at in moe.layers.items():
        if at.num_experts is not None:
            raise UserError(
                f"model.moe.layers sets num_experts {at.num_experts} for layer '{name}' and "
                f"model.moe.schedule is '{moe.schedule}'; let one of them say it."
            )


def _counts(config: Config, layer: int, router: registry.Entry) -> None:
    """How many experts there are at a routed layer, and how many each token takes."""
    moe, where = moe_at(config.model, layer), ''
    if config.model.moe.layers or config.model.moe.schedule != 'uniform':
        where = f' at routed layer {layer}'
    null, skip = getattr(moe.router_args, 'null_experts', 0), skips(moe.kinds)
    ids = moe.num_experts + null + skip
    if moe.k > ids and 'k' not in router.ignores:
        among = f' + null_experts {null}' if null else f' + skip {skip}' if skip else ''
        raise UserError(
            f'model.moe.k is {moe.k} but model.moe.num_experts is {moe.num_experts}'
            f'{among}{where}; k can be 1 to {ids}.'
        )
    if config.model.twin in DROPPING and moe.k > moe.num_experts:
        raise UserError(
            f"model.twin is '{config.model.twin}', which draws k of the experts, but model.moe.k "
            f'is {moe.k} of num_experts {moe.num_experts}{where}.'
        )
    second = getattr(moe.router_args, 'second_choice', 'always')
    if second != 'always' and moe.k != 2:
        raise UserError(
            f"model.moe.router_args.second_choice is '{second}', which needs k = 2, but "
            f'model.moe.k is {moe.k}{where}.'
        )
    if check := getattr(moe.router_args, 'check_experts', None):
        check(moe.num_experts)
    bound = getattr(moe.router_args, 'max_choices', 0)
    if 0 < bound < moe.k:
        raise UserError(
            f'model.moe.router_args.max_choices is {bound} but model.moe.k is {moe.k}{where}; '
            'set it to k or more, or to 0 for all experts.'
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
    if isinstance(model.moe.router_args, registry.RexmoeArgs):
        _unlocking(config)
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


def _unlocking(config: Config) -> None:
    """What layers need of a pool whose experts they get to choose from by and by."""
    model = config.model
    if all(len(pool) == 1 for pool in pools(model)):
        raise UserError(
            f"router '{model.moe.router}' chooses among experts that layers share, but "
            f"model.moe.bank is '{model.moe.bank}' for {routed_layers(model)} routed layers; set "
            "it to 'stage' or to a number of layers above 1, and route that many."
        )
    for pool in pools(model):
        moe = moe_at(model, pool[0])
        own, rest = divmod(moe.num_experts, len(pool))
        k = max(moe_at(model, n).k for n in pool)
        if rest or k > own:
            raise UserError(
                f"router '{moe.router}': the layers {pool} share model.moe.num_experts "
                f'{moe.num_experts}, of which each owns {moe.num_experts / len(pool):g}; that must '
                f'be a whole number, and at least model.moe.k {k}.'
            )


def _splits(config: Config) -> None:
    """Whether the channels of each routed place can be split."""
    model, splits = config.model, config.model.moe.splits
    if splits == 1:
        return
    if 'large' in registry.entry('router', registry.ROUTERS, model.moe.router).supplies:
        raise UserError(
            f"model.moe.splits is {splits}, but router '{model.moe.router}' has one budget for "
            'whole tokens, and each part would keep to one of its own; set it to 1.'
        )
    if model.moe.bank != 'own':
        raise UserError(
            f'model.moe.splits is {splits}, parts with experts of their own, but model.moe.bank is '
            f"'{model.moe.bank}'; set it to 'own'."
        )
    if not hasattr(model.args, 'block_shape'):
        raise UserError(
            f"model.moe.splits is {splits}, but the Args of backbone '{model.name}' have no "
            'block_shape(number), which says how wide blocks are; set it to 1.'
        )
    for layer in range(routed_layers(model)):
        key = key_at(model, layer, 'shared_hidden')
        if layer % splits and key != 'model.moe.shared_hidden':
            raise UserError(
                f'{key} is not read: the {splits} parts of a place have one shared expert, that of '
                f"layer '{layer - layer % splits}'; set it there."
            )
    blocks = routed_blocks(model.moe.placement, getattr(model.args, 'blocks', None))
    for number in blocks or [model.args.blocks - 1]:
        for key, size in zip(
            ('width', 'hidden width'), model.args.block_shape(number), strict=True
        ):
            if size % splits:
                raise UserError(
                    f'model.moe.splits is {splits}, which does not divide the {key} {size} of '
                    f'block {number}; {fits(size, splits)}.'
                )


# What losses may need, and where it comes from.
REMEDIES = {
    'noise': "set model.moe.router_args.noise to 'gaussian' or 'learned', or",
    'choices': 'take a router that chooses, or',
    'superclass': "set model.moe.router to 'supervised', or",
    'selectors': "set model.moe.router to 'dselect_k', or",
    'kernel': "take a router that is linear and learns, such as 'top_k', or",
    'coefficient': "set model.moe.router to 'remoe', or",
    'large': "set model.moe.router to 'duo' and name model.moe.kinds, or",
    'first_matrix': "take an expert that names one, such as 'mlp' or 'conv', or",
    'units': "take an expert that shows its hidden units, such as 'mlp' or 'convnext', or",
    'bank': '',  # it has a message of its own
    'labels': '',  # always there
}
_OF_EXPERTS = {'first_matrix': 'first matrices', 'units': 'hidden units'}


def _losses(config: Config) -> None:
    moe = config.model.moe
    router = registry.entry('router', registry.ROUTERS, moe.router)
    expert = registry.entry('expert', registry.EXPERTS, moe.expert)
    offers = [*router.supplies, 'labels']
    offers += () if moe.kinds else expert.supplies
    if moe.expert not in registry.EXPERTS and not moe.kinds:
        offers += _OF_EXPERTS  # one of the user's own tells by itself
    if 'k' not in router.ignores:
        offers.append('choices')
    if 'large' in offers and not moe.kinds:
        offers.remove('large')  # without kinds of experts all are
    if getattr(moe.router_args, 'noise', 'none') in ('gaussian', 'learned'):
        offers.append('noise')
    if config.mesh.expert == 1:
        offers.append('bank')
    if moe.router not in registry.ROUTERS:  # for one's own router the loss itself tells
        offers += set(REMEDIES) - {'bank'}
    for name, weight in moe.losses.items():
        for need in registry.entry('loss', registry.LOSSES, name).needs:
            if weight and need not in offers:
                if need == 'bank':
                    raise UserError(
                        f'model.moe.losses.{name} is {weight}, which runs all experts on every '
                        f'token, but mesh.expert is {config.mesh.expert} and lays them over '
                        'devices; set it to 1, or set the loss to 0.'
                    )
                if need in _OF_EXPERTS and moe.kinds:
                    raise UserError(
                        f'model.moe.losses.{name} is {weight}, which compares the '
                        f'{_OF_EXPERTS[need]} of all experts, but those of model.moe.kinds differ; '
                        'leave kinds out, or set the loss to 0.'
                    )
                of = 'expert' if need in _OF_EXPERTS else 'router'
                raise UserError(
                    f"model.moe.losses.{name} is {weight} but {of} '{getattr(moe, of)}' "
                    f'has no {need}; {REMEDIES.get(need, "take one that supplies it, or")} set the '
                    'loss to 0.'
                )
    if getattr(moe.router_args, 'superclasses', ()) and not moe.losses.get('supervised'):
        raise UserError(
            'model.moe.router_args.superclasses is set but is not read: '
            "model.moe.losses has no 'supervised'."
        )


def _soft(config: Config) -> None:
    why, instead = one_image(config)
    if getattr(config.model.moe.router_args, 'graph', None) == 'image':
        why, instead = "model.moe.router_args.graph is 'image'", "use 'group'"
    if why and not routes_patches(config):
        raise UserError(
            f'{why}, which needs patches, but what is routed here are images (model.name '
            f"'{config.model.name}', placement '{config.model.moe.placement}'); {instead}."
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
    if config.model.twin in DROPPING and registry.keeps_capacity(config.model.moe.router):
        raise UserError(
            f"model.twin is '{config.model.twin}', but router '{config.model.moe.router}' drops "
            "nothing; use 'same_width', 'same_active_flops' or 'same_params'."
        )
    measured, drops = config.model.twin == 'same_measured_drops', config.model.measured_drops
    if measured != bool(drops) or len(drops) == 1:
        raise UserError(
            f'model.measured_drops is {drops} and model.twin {config.model.twin!r}; give two '
            "shares or more, the last of evaluation, with twin 'same_measured_drops', and none "
            'otherwise: `python -m moe_vision.report.drops --workdir=W` prints those of a run.'
        )
