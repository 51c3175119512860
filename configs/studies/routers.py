"""Which router or loss helps, beside plain top-k routing and the dense networks?

Exploratory: every comparison is judged by itself, and six seeds show large differences alone. All
arms take two of eight experts with the slots of capacity factor 1.25, so their experts do equal
work, but for those named in DIFFERENT_WORK; the report gives each arm's rho. Its argument is the
part:

  digits: every router and every loss of docs/methods.md that reads no domains, at one learning
    rate. Three networks, each with a top-k router and dense twins of its own: `conv` routes images
    once, `deep` in two neighbouring layers, `vit` routes patches. A name says the network it has,
    if it is not `conv`.
  digits_check: the same at a third of the learning rate. What turns with the rate is no finding.
  fashion_mnist_14: the twelve of TWELVE in the networks and images of `campaign`.

Run: python -m moe_vision.study run --study=configs/studies/routers.py:digits --workdir=W
"""

from collections.abc import Mapping
from typing import Any

from configs.studies import campaign, sets
from configs.studies.beside_confirm import rate_of
from configs.studies.common import CONTROLS, DENSE
from configs.studies.data_set import Overrides
from moe_vision.config import source
from moe_vision.study.types import Arm, Comparison, Study

SEEDS = tuple(range(1000, 1006))
RATES = {'digits': 3e-2, 'digits_check': 1e-2}
TWINS: Mapping[str, Overrides] = {
    'dense': DENSE,
    'dense_active': {'model.twin': 'same_active_flops'},
}
# Chosen from the report of `digits` by this rule: of the arms of `conv` that are no control and do
# equal work, those twelve whose interval of the gap to `top_k` reaches highest, mean over `digits`
# and `digits_check`. Until both have run it is empty. `default` takes part anyway, so it is no
# candidate.
TWELVE: tuple[str, ...] = ()
DIFFERENT_WORK = (  # of `conv`
    'shared_expert',
    'soft',
    'soft_batch',
    'splits',
    'large_and_small',
    'duo',
    'spectral',
)


def get_study(part: str = '') -> Study:
    parts = (digits, digits_check, fashion_mnist_14)
    return source.chosen('part', part, {p.__name__: p for p in parts})()


def routed(router: str, losses: Mapping[str, float] | None = None, **args: Any) -> Overrides:
    """A router with these arguments, and losses with these weights."""
    return {
        'model.moe.router': router,
        'model.moe.router_args': args,
        'model.moe.losses': dict(losses or {}),
    }


BALANCE = {'importance': 0.005}
NOISY = {'importance': 0.005, 'load_v_moe': 0.005}
CONV: Mapping[str, Overrides] = {  # router or loss -> the keys that differ from the set's network
    'top_k': routed('top_k', BALANCE),
    'default': {},  # top-k as configs/base.py has it: noise, and losses of importance and load
    # what the controls do without
    'random': CONTROLS['random'],
    'frozen_random': routed('frozen_random', BALANCE),
    'shuffled': routed('shuffled', BALANCE),
    'hash': routed('hash'),
    'supervised': routed('supervised', {'supervised': 0.3, **BALANCE}),
    # losses, and settings of top-k
    'no_loss': routed('top_k'),
    'importance_and_load': routed(
        'top_k', {'importance': 0.1, 'load': 0.1}, noise='learned', gate='top_k_softmax'
    ),
    'v_moe': routed('top_k', NOISY, noise='gaussian'),
    'batch_priority': {**routed('top_k', NOISY, noise='gaussian'), 'model.moe.priority': 'gate'},
    'switch': routed('top_k', {'switch': 0.01}),
    'gshard': routed('top_k', {'switch_top_1': 0.01}, second_choice='random', renormalize=True),
    'z': routed('top_k', {'switch': 0.01, 'z': 0.001}),
    'erc': routed('top_k', {**BALANCE, 'erc': 1.0}),
    'orthogonality': routed('top_k', {**BALANCE, 'orthogonality': 0.01}),
    'simbal': routed('top_k', {'simbal': 0.01}),
    'linear': routed('top_k', BALANCE, normalize_inputs=False),
    # routers
    'bias_balanced': routed('bias_balanced'),
    'complementary': routed('bias_balanced', {'complementary': 0.0001}),
    'shared_expert': {**routed('bias_balanced'), 'model.moe.shared_hidden': 28},
    'cosine': routed('cosine', BALANCE),
    'sinkhorn': routed('sinkhorn'),
    'base': routed('base'),
    'ssr': routed('ssr', noise='gaussian', renormalize=True),
    'null_experts': {
        **routed('null_experts', {'switch': 0.01}, null_experts=8),
        'model.moe.k': 4,
        'model.moe.capacity_factor': 0.625,
        'model.moe.eval_capacity_factor': 1.0,
    },
    'remoe': routed('remoe', {'remoe': 1.0}),
    'dynmole': routed('dynmole', {'tsallis': 0.01, 'switch': 0.001}),
    'dynamoe': routed('dynamoe'),
    'top_p': routed('dynamoe', rule='top_p', level=0.7),
    'dselect_k': routed('dselect_k', {'selector_entropy': 0.01}),
    'expert_choice': routed('expert_choice'),
    'soft': routed('soft'),
    'soft_batch': routed('soft', axis='batch'),
    'similarity_aware': routed('similarity_aware', BALANCE, graph='group'),
    'frequency': routed('frequency', BALANCE),
    'image_frequency': routed('image_frequency', BALANCE),
    'uncertain': routed('uncertain', BALANCE),
    # experts of other kinds, or several kinds of them
    'splits': {**routed('top_k', BALANCE), 'model.moe.splits': 2},
    'large_and_small': {
        **routed('top_k', BALANCE),
        'model.moe.kinds': ({'count': 4}, {'count': 4, 'divide': 7}),
    },
    'duo': {
        **routed('duo', {'budget': 1.0}),
        'model.moe.loss_args': {'budget': {'target': 0.5}},
        'model.moe.num_experts': 2,
        'model.moe.k': 3,
        'model.moe.kinds': ({}, {'divide': 7}, {'expert': 'skip'}),
    },
    'spectral': {
        **routed('top_k', BALANCE),
        'model.moe.shared_hidden': 28,
        'model.moe.kinds': ({'expert': 'spectral', 'count': 8},),
    },
}
DEEP: Mapping[str, Overrides] = {
    'top_k': routed('top_k', BALANCE),
    'rmoe': routed('rmoe', {'switch': 0.001}, width=32),
    'bank': {**routed('top_k', BALANCE), 'model.moe.bank': 2},
    'rexmoe': {
        **routed('rexmoe', BALANCE),
        'model.moe.bank': 2,
        'model.moe.num_experts': 16,
        'model.moe.capacity_factor': 2.5,
    },
    'descending': {**routed('top_k', BALANCE), 'model.moe.schedule': 'descending'},
}
VIT: Mapping[str, Overrides] = {
    'top_k': routed('top_k', BALANCE),
    'attention_aware': routed('attention_aware', BALANCE),
    'similarity_aware': routed('similarity_aware', BALANCE),
    'expert_choice': routed('expert_choice'),
    'pmoe': {**routed('pmoe'), 'model.moe.group_size': 16},
    'film': {
        **routed('uncertain'),
        'model.moe.expert': 'film',
        'model.moe.expert_args': {},
    },
}
NETWORKS: Mapping[str, tuple[Overrides, Mapping[str, Overrides]]] = {
    '': (sets.DIGITS.backbone.overrides, CONV),
    'deep_': (
        sets.DIGITS.backbone.overrides
        | {'model.args': {'widths': (16, 28), 'depth': 2}, 'model.moe.placement': 'last_2'},
        DEEP,
    ),
    'vit_': (
        {
            'model.name': 'vit',
            'model.args': {'width': 32, 'depth': 2, 'heads': 2, 'patch_size': 2},
            'model.moe.placement': 'last_1',
            'model.moe.group_size': 256,
        },
        VIT,
    ),
}


def digits() -> Study:
    return _digits('digits')


def digits_check() -> Study:
    return _digits('digits_check')


def _digits(part: str) -> Study:
    data = sets.DIGITS
    recipe = data.recipe | {'train.learning_rate': RATES[part], 'train.epochs': data.epochs}
    arms = {
        prefix + name: Arm(data.config, {**recipe, **network, **changes})
        for prefix, (network, methods) in NETWORKS.items()
        for name, changes in {**methods, **TWINS}.items()
    }
    return Study(
        name=f'routers_{part}',
        question='Which router or loss gains over top-k routing on 8x8 digits?',
        hypotheses=(),
        arms=arms,
        seeds=SEEDS,
        comparisons=_comparisons({prefix: tuple(m) for prefix, (_, m) in NETWORKS.items()}),
        margin=data.margin,
        tuning='None: one learning rate for all arms, and a third of it as a check; the length of '
        'training is that of `top_k:digits`.',
    )


def fashion_mnist_14() -> Study:
    names = tuple(n for n in ('top_k', 'default', *TWELVE, 'random') if n in CONV)
    arms = {name: campaign.scored(rate_of('k2'), CONV[name]) for name in names}
    arms |= {name: campaign.scored(rate_of(name), twin) for name, twin in TWINS.items()}
    return Study(
        name='routers_fashion_mnist_14',
        question='Which router or loss gains over top-k routing where the network lacks capacity?',
        hypotheses=(),
        arms=arms,
        seeds=SEEDS,
        comparisons=_comparisons({'': names}),
        margin=campaign.MARGIN,
        tuning='All routers take the learning rate that `confirm` chose for top-k routing, and the '
        'dense networks those that it chose for them.',
        reads=('../fashion_mnist_14/confirm',),  # which lends `default` and the dense networks
    )


def _comparisons(methods: Mapping[str, tuple[str, ...]]) -> dict[str, Comparison]:
    """Each method against top-k and the dense twins of its network, prefix -> methods."""
    return {
        f'{prefix}{name}_minus_{prefix}{other}': Comparison(prefix + name, prefix + other)
        for prefix, names in methods.items()
        for name in names
        for other in ('top_k', *TWINS)
        if name != other
    }
