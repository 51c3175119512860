"""E3 and E4: does the gap turn when k falls from 2 to 1 and nothing else changes, and why?

Run: python -m moe_vision.study run --study=configs/studies/top_k.py:digits --workdir=W
"""

from configs.studies import sets
from configs.studies.common import (
    DENSE,
    arm,
    control_arms,
    control_comparisons,
    study,
)
from configs.studies.data_set import DataSet, Overrides
from moe_vision.study.types import Comparison, Figure, Study

CAPACITY = 1.25  # the capacity factor of training in `configs/base.py`
_UNBOUNDED: Overrides = {
    'model.moe.capacity_factor': float('inf'),
    'model.moe.eval_capacity_factor': float('inf'),
}


def get_study(data_set: str = '') -> Study:
    return study_of(sets.named(data_set))


def changes(data: DataSet) -> dict[str, Overrides]:
    """The arms of the ablation: name -> the keys that it changes in the routed network of `data`.

    The study below is made from this table, and so is `configs/imagenet_ablation.py`, which trains
    one arm at ImageNet scale. The network has two of eight experts per image; slots per expert
    follow capacity factor * k. 'k1' in a name means that the arm is `k1` with more changes.
    """

    def longer(passes: float) -> Overrides:
        """The dense twin, trained for the FLOPs of so many expert passes per image."""
        return DENSE | {'train.epochs': data.epochs * (1 + (passes - 1) * data.backbone.rho)}

    def router_args(**args: object) -> Overrides:
        return {'model.moe.router_args': {'noise': 'gaussian', **args}}  # noise as in `base`

    k1: Overrides = {'model.moe.k': 1}
    k2: Overrides = {'model.moe.k': 2}
    k4: Overrides = {'model.moe.k': 4}
    return {
        # What does the dense network do in the same places?
        'dense': DENSE,
        # What happens when k alone changes?
        'k1': k1,
        'k2': k2,
        'k4': k4,
        # Do dropped images explain the gap? These arms have room for all.
        'k1_unbounded': k1 | _UNBOUNDED,
        'k2_unbounded': k2 | _UNBOUNDED,
        # Is it the slots or the choices? These arms have as many slots as k2.
        'k1_same_c': k1 | {'model.moe.capacity_factor': 2.5, 'model.moe.eval_capacity_factor': 4.0},
        'k4_same_c': k4
        | {'model.moe.capacity_factor': 0.625, 'model.moe.eval_capacity_factor': 1.0},
        # Does k = 1 fail because its gate is no softmax over the chosen experts? At k = 1 that gate
        # is 1, so the task loss does not reach the router. Dividing the raw gates by their sum
        # gives the same.
        'k1_top_k_softmax': k1 | router_args(gate='top_k_softmax'),
        'k2_top_k_softmax': k2 | router_args(gate='top_k_softmax'),
        # Is it that gates begin near 1/E? These gates are multiplied by E/k.
        'k1_scaled': k1 | router_args(gate_scale=8.0),
        'k2_scaled': k2 | router_args(gate_scale=4.0),
        # Is it the number of experts or their compute? Two experts cost what one of k1 costs.
        'k2_half_width': k2 | {'model.moe.hidden': data.half_hidden},
        # Does a second expert help that nobody chose?
        'k1_plus_random': k2 | router_args(second_choice='random_expert'),
        # Does k = 1 work where labels teach the router? The class modulo E names the expert, and
        # there is room for all, because E need not divide the number of classes. The weight is
        # inside the 0.1 to 1 of Mobile V-MoE.
        'k1_supervised': k1
        | _UNBOUNDED
        | {'model.moe.router': 'supervised', 'model.moe.losses': {'supervised': 0.3}},
        # Would the FLOPs of two experts do the same in a dense block?
        'dense_active': {'model.twin': 'same_active_flops'},
        # What do drops alone cost? The dense twin drops as many images as random routes would.
        'dense_drops_k1': k1 | {'model.twin': 'same_drops'},
        'dense_drops_k2': {'model.twin': 'same_drops'},
        # Would longer training do the same? The dense twin trains for the FLOPs of k2's active
        # experts, or for those of its padded buffers. These arms stand in for equal wall-clock
        # time, which no file can fix for every machine.
        'dense_longer': longer(2),
        'dense_longest': longer(2 * CAPACITY),
    }


def study_of(data: DataSet) -> Study:
    arms = {name: arm(data, data.backbone, change) for name, change in changes(data).items()}
    comparisons = {
        'k2_minus_dense': Comparison('k2', 'dense', 'positive', primary=True),
        'k1_minus_dense': Comparison('k1', 'dense', 'negative', primary=True),
        'k2_minus_k1': Comparison('k2', 'k1', 'positive', primary=True),
        'k4_minus_dense': Comparison('k4', 'dense'),
        'k4_minus_k2': Comparison('k4', 'k2'),
    }
    comparisons |= {
        f'{name}_minus_dense': Comparison(name, 'dense')
        for name in arms
        if name.startswith(('k1_', 'k2_', 'k4_', 'dense_'))
    }
    comparisons |= {
        **{
            f'k2_minus_{twin}': Comparison('k2', twin)
            for twin in ('dense_active', 'dense_drops_k2', 'dense_longer', 'dense_longest')
        },
        'k1_minus_dense_drops_k1': Comparison('k1', 'dense_drops_k1'),
        'k2_minus_k1_same_c': Comparison('k2', 'k1_same_c'),
        'k2_unbounded_minus_k1_unbounded': Comparison('k2_unbounded', 'k1_unbounded'),
        'k2_top_k_softmax_minus_k1_top_k_softmax': Comparison(
            'k2_top_k_softmax', 'k1_top_k_softmax'
        ),
        'k2_scaled_minus_k1_scaled': Comparison('k2_scaled', 'k1_scaled'),
        'k2_half_width_minus_k1_same_c': Comparison('k2_half_width', 'k1_same_c'),
        'k1_plus_random_minus_k1_same_c': Comparison('k1_plus_random', 'k1_same_c'),
        'k2_minus_k1_plus_random': Comparison('k2', 'k1_plus_random'),
        'k1_supervised_minus_k1_unbounded': Comparison('k1_supervised', 'k1_unbounded'),
    }
    arms |= control_arms(data, data.backbone)
    comparisons |= control_comparisons('dense', 'k2')
    return study(
        data,
        'top_k',
        question='With architecture, initial weights and the routed share fixed, '
        'does the gap on {set} turn from positive to negative when k falls from 2 to 1, and why?',
        hypotheses=(
            'Claim of arXiv 2605.15484 for ImageNet-1K, tested here on {set}: with about 38 % of '
            'the compute routed, k = 2 gains against the dense twin.',
            'With nothing but k changed, k = 1 loses against the same twin.',
            'k = 2 is better than k = 1.',
        ),
        arms=arms,
        comparisons=comparisons,
        patterns={'reversal': ('k2_minus_dense', 'k1_minus_dense', 'k2_minus_k1')},
        mechanism=True,
        figures=(
            Figure(
                'k_ablation',
                'Gap against k',
                {
                    'slots follow k': ('k1_minus_dense', 'k2_minus_dense', 'k4_minus_dense'),
                    'the same slots': (
                        'k1_same_c_minus_dense',
                        'k2_minus_dense',
                        'k4_same_c_minus_dense',
                    ),
                },
            ),
            Figure(
                'k_ablation',
                'Gap against k: unbounded capacity, other gates',
                {
                    'unbounded': ('k1_unbounded_minus_dense', 'k2_unbounded_minus_dense'),
                    'top-k, then softmax': (
                        'k1_top_k_softmax_minus_dense',
                        'k2_top_k_softmax_minus_dense',
                    ),
                    'gates times E/k': ('k1_scaled_minus_dense', 'k2_scaled_minus_dense'),
                },
            ),
        ),
    )
