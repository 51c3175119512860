"""E5: does Soft MoE fail because its slots mix the images of a batch?

Run: python -m moe_vision.study run --study=configs/studies/soft.py:digits --workdir=W
"""

from configs.studies import sets
from configs.studies.common import (
    DENSE,
    Direction,
    arm,
    control_arms,
    control_comparisons,
    study,
)
from configs.studies.data_set import DataSet, Overrides
from moe_vision.study.types import Comparison, Figure, Study


def get_study(data_set: str = '') -> Study:
    return study_of(sets.named(data_set))


def study_of(data: DataSet) -> Study:
    per_sample = {f'per_sample_{e}': _soft(e, {'axis': 'none'}) for e in data.soft_per_sample}
    batch = {
        f'batch_{e}x{p}': _soft(e, {'axis': 'batch', 'slots_per_expert': p})
        | {'model.moe.group_size': data.soft_group}
        for e, p in data.soft_batch
    }
    arms = {'dense': arm(data, data.backbone, DENSE), 'k2': arm(data, data.backbone)}
    arms |= {
        name: arm(data, data.backbone, change) for name, change in (per_sample | batch).items()
    }
    fewest, most = [*batch][0], [*batch][-1]
    unmixed, unmixed_most = (f'per_sample_{data.soft_batch[i][0]}' for i in (0, -1))  # the same E
    expected: dict[str, Direction] = {fewest: 'negative', unmixed: 'positive'}
    comparisons = {
        f'{name}_gap': Comparison(
            name, 'dense', expected.get(name, 'none'), primary=name in expected
        )
        for name in (*per_sample, *batch)
    }
    comparisons |= {
        'axis': Comparison(unmixed, fewest, 'positive', primary=True),
        'axis_with_many_slots': Comparison(unmixed_most, most),
        'many_slots_minus_few': Comparison(most, fewest),
        'k2_minus_dense': Comparison('k2', 'dense'),
    }
    arms |= control_arms(data, data.backbone)
    comparisons |= control_comparisons('dense', 'k2')
    return study(
        data,
        'soft',
        question='Does Soft MoE fail on {set} because its slots mix images, and do '
        'more slots than classes mend that?',
        hypotheses=(
            'Claim of arXiv 2605.15484, tested here on {set}: dispatch over the batch is what '
            'fails, so with fewer slots (E times slots per expert) than classes it loses against '
            'the dense twin.',
            'Claim of arXiv 2605.15484 for CIFAR-100, tested here on {set}: a softmax over the '
            'experts of each image alone gains against the dense twin.',
            'With as many experts, per-sample dispatch, where each expert sees each image, is '
            'better than dispatch over the batch with fewer slots than classes.',
        ),
        arms=arms,
        comparisons=comparisons,
        patterns={'rescue': (f'{fewest}_gap', f'{unmixed}_gap', 'axis')},
        figures=(
            Figure(
                'soft_axis',
                'Soft MoE: gap against E times slots per expert',
                {
                    'batch': tuple(f'{name}_gap' for name in batch),
                    'per sample': tuple(f'{name}_gap' for name in per_sample),
                },
            ),
        ),
    )


def _soft(num_experts: int, router_args: Overrides) -> Overrides:
    """Nothing is dropped in soft routing, so no balance loss is used."""
    return {
        'model.moe.num_experts': num_experts,
        'model.moe.router': 'soft',
        'model.moe.router_args': dict(router_args),
        'model.moe.losses': {},
    }
