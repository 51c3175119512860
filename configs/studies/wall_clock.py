"""E7: what does routing cost in time, batch 1 to 512, and what accuracy does it buy?

Run: python -m moe_vision.study run --study=configs/studies/wall_clock.py:digits --workdir=W
"""

from configs.studies import sets
from configs.studies.common import (
    DENSE,
    arm,
    control_arms,
    control_comparisons,
    study,
)
from configs.studies.data_set import DataSet
from moe_vision.study.types import Comparison, Figure, Study


def get_study(data_set: str = '') -> Study:
    return study_of(sets.named(data_set))


def study_of(data: DataSet) -> Study:
    routed = {f'k{k}': arm(data, data.backbone, {'model.moe.k': k}) for k in (1, 2, 4)}
    dense = {
        'dense': arm(data, data.backbone, DENSE),
        'dense_active': arm(data, data.backbone, {'model.twin': 'same_active_flops'}),
    }
    head = {'head': arm(data, data.head), 'head_dense': arm(data, data.head, DENSE)}
    comparisons = {
        'k2_minus_dense': Comparison('k2', 'dense', 'positive', primary=True),
        'k2_minus_dense_active': Comparison('k2', 'dense_active'),
        'k1_minus_dense': Comparison('k1', 'dense'),
        'k4_minus_dense': Comparison('k4', 'dense'),
        'dense_active_minus_dense': Comparison('dense_active', 'dense'),
        'head_gap': Comparison('head', 'head_dense'),
    }
    return study(
        data,
        'wall_clock',
        question='What does routing cost in time on {set}, batch 1 to 512, and '
        'what accuracy does that time buy?',
        hypotheses=(
            'Claim of arXiv 2605.15484 for ImageNet-1K (second-hand), tested here on {set}: with '
            'about 38 % of the compute routed and k = 2 the network is more accurate than its '
            'dense twin. Whether it is worth its time is read from latency and throughput, beside '
            'a dense network of the same active FLOPs.',
        ),
        arms={**dense, **routed, **head, **control_arms(data, data.backbone)},
        comparisons=comparisons | control_comparisons('dense', 'k2'),
        latency_arms=(*dense, *routed, *head),
        figures=(
            Figure(
                'wall_clock',
                'Accuracy against latency and throughput',
                {'dense': tuple(dense), 'routed backbone': tuple(routed), 'head': tuple(head)},
            ),
        ),
    )
