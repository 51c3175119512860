"""E3: k = 1, 2, 4 with nothing else changed; E4: the controls of that ablation."""

from configs.studies.data_set import DataSet, Overrides
from configs.studies.experiments.common import (
    DENSE,
    arm,
    control_arms,
    control_comparisons,
    study,
)
from moe_vision.study.types import Arm, Comparison, Figure, Study

CAPACITY, EVAL_CAPACITY = 1.25, 2.0  # factors of `configs/base.py`; slots follow factor * k
EXPERTS = 8  # E of `configs/base.py`
SUPERVISION = 0.3  # weight of the loss of a supervised router, inside the 0.1 to 1 of its authors
_UNBOUNDED: Overrides = {'model.moe.capacity_factor': float('inf'),
                         'model.moe.eval_capacity_factor': float('inf')}
_NOISE: Overrides = {'noise': 'gaussian'}  # as in `configs/base.py`


def study_of(data: DataSet) -> Study:
    ks = {f'k{k}': _k(k) for k in (1, 2, 4)}
    arms = {'dense': arm(data, data.backbone, DENSE)}
    arms |= {name: arm(data, data.backbone, change)
             for name, change in (ks | _capacities() | _gates() | _routers(data)).items()}
    arms |= _twins(data)
    comparisons = {
        'k2_minus_dense': Comparison('k2', 'dense', 'positive', primary=True),
        'k1_minus_dense': Comparison('k1', 'dense', 'negative', primary=True),
        'k2_minus_k1': Comparison('k2', 'k1', 'positive', primary=True),
        'k4_minus_dense': Comparison('k4', 'dense'),
        'k4_minus_k2': Comparison('k4', 'k2')}
    comparisons |= {f'{name}_minus_dense': Comparison(name, 'dense') for name in arms
                    if name.startswith(('k1_', 'k2_', 'k4_', 'dense_'))}
    comparisons |= {
        **{f'k2_minus_{twin}': Comparison('k2', twin)
           for twin in ('dense_active', 'dense_drops_k2', 'dense_longer', 'dense_longest')},
        'k1_minus_dense_drops_k1': Comparison('k1', 'dense_drops_k1'),
        'k2_minus_k1_same_c': Comparison('k2', 'k1_same_c'),
        'k2_unbounded_minus_k1_unbounded': Comparison('k2_unbounded', 'k1_unbounded'),
        'k2_top_k_softmax_minus_k1_top_k_softmax': Comparison('k2_top_k_softmax',
                                                              'k1_top_k_softmax'),
        'k2_scaled_minus_k1_scaled': Comparison('k2_scaled', 'k1_scaled'),
        'k2_half_width_minus_k1_same_c': Comparison('k2_half_width', 'k1_same_c'),
        'k1_plus_random_minus_k1_same_c': Comparison('k1_plus_random', 'k1_same_c'),
        'k2_minus_k1_plus_random': Comparison('k2', 'k1_plus_random'),
        'k1_supervised_minus_k1_unbounded': Comparison('k1_supervised', 'k1_unbounded')}
    arms |= control_arms(data, data.backbone)
    comparisons |= control_comparisons('dense', 'k2')
    return study(
        data, 'top_k', question='With architecture, initial weights and the routed share fixed, '
        'does the gap on {set} turn from positive to negative when k falls from 2 to 1, and why?',
        hypotheses=(
            'Claim of arXiv 2605.15484 for ImageNet-1K, tested here on {set}: with about 38 % of '
            'the compute routed, k = 2 gains against the dense twin.',
            'With nothing but k changed, k = 1 loses against the same twin.',
            'k = 2 is better than k = 1.'),
        arms=arms, comparisons=comparisons,
        patterns={'reversal': ('k2_minus_dense', 'k1_minus_dense', 'k2_minus_k1')},
        mechanism=True,
        figures=(
            Figure('k_ablation', 'Gap against k', {
                'slots follow k': ('k1_minus_dense', 'k2_minus_dense', 'k4_minus_dense'),
                'the same slots': ('k1_same_c_minus_dense', 'k2_minus_dense',
                                   'k4_same_c_minus_dense')}),
            Figure('k_ablation', 'Gap against k: unbounded capacity, other gates', {
                'unbounded': ('k1_unbounded_minus_dense', 'k2_unbounded_minus_dense'),
                'top-k, then softmax': ('k1_top_k_softmax_minus_dense',
                                        'k2_top_k_softmax_minus_dense'),
                'gates times E/k': ('k1_scaled_minus_dense', 'k2_scaled_minus_dense')})))


def _k(k: int) -> Overrides:
    return {'model.moe.k': k}


def _capacities() -> dict[str, Overrides]:
    """Room for all; and for every k as many slots as k = 2 has."""
    of = lambda k, train, test: _k(k) | {  # noqa: E731
        'model.moe.capacity_factor': train, 'model.moe.eval_capacity_factor': test}
    return {**{f'k{k}_unbounded': _k(k) | _UNBOUNDED for k in (1, 2)},
            **{f'k{k}_same_c': of(k, 2 * CAPACITY / k, 2 * EVAL_CAPACITY / k) for k in (1, 4)}}


def _gates() -> dict[str, Overrides]:
    """Softmax of the chosen logits alone (what dividing the raw gates by their sum gives, too: at
    k = 1 the gate is 1 and the task loss does not reach the router), and raw gates times E/k."""
    of = lambda k, **args: _k(k) | {'model.moe.router_args': {**_NOISE, **args}}  # noqa: E731
    return {**{f'k{k}_top_k_softmax': of(k, gate='top_k_softmax') for k in (1, 2)},
            **{f'k{k}_scaled': of(k, gate_scale=EXPERTS / k) for k in (1, 2)}}


def _routers(data: DataSet) -> dict[str, Overrides]:
    return {
        'k2_half_width': _k(2) | {'model.moe.hidden': data.half_hidden},
        'k1_plus_random': _k(2) | {
            'model.moe.router_args': {**_NOISE, 'second_choice': 'random_expert'}},
        # classes share experts unevenly where E does not divide their number: room for all
        'k1_supervised': _k(1) | _UNBOUNDED | {'model.moe.router': 'supervised',
                                               'model.moe.losses': {'supervised': SUPERVISION}}}


def _twins(data: DataSet) -> dict[str, Arm]:
    """Dense networks that cost, drop, or train as the routed ones do.

    `dense_longer` trains for the FLOPs of k2's active experts, `dense_longest` for those of its
    padded buffers: what stands in for equal wall-clock, which no file can fix for every machine.
    """
    made = lambda *changes: arm(data, data.backbone, *changes)  # noqa: E731
    rho = data.backbone.rho
    epochs = lambda passes: {'train.epochs': data.epochs * (1 + (passes - 1) * rho)}  # noqa: E731
    return {
        'dense_active': made({'model.twin': 'same_active_flops'}),
        'dense_drops_k1': made(_k(1), {'model.twin': 'same_drops'}),
        'dense_drops_k2': made({'model.twin': 'same_drops'}),
        'dense_longer': made(DENSE, epochs(2)),
        'dense_longest': made(DENSE, epochs(2 * CAPACITY))}
