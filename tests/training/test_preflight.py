"""The summary of a config shows its sizes, schedule, leverages and mesh."""

import pytest
import train_cases

import input_pipeline
from moe_vision.leverage import measure
from moe_vision.training import preflight, schedule

CONV = {'model.args': {'widths': (8, 16), 'depth': 1}}


def test_the_preflight_shows_sizes_schedule_and_leverages(data_dir):
    config = train_cases.make(data_dir, CONV)
    info = input_pipeline.info(config.dataset)
    cost = measure(config, info)
    text = preflight.text(
        config, info, {'data': 1, 'expert': 1}, cost, schedule.durations(config, 1293)
    )
    for part in (
        'mesh data 1 × expert 1',
        '1,293 train, 144 validation, 360 test; 10 classes',
        f'{cost.params_total:,} total, {cost.params_active:,} active',
        '12 steps of 32 images (0.3 epochs), adamw, peak learning rate 0.003',
        f'rho_place {cost.rho_place:.4f}',
        f'rho_active {cost.rho_active:.4f}',
        f'rho_executed {cost.rho_executed:.4f}',
        'block_1 *',
        'groups of 16 tokens, 10 slots per expert (asked 1.25, effective 1.250)',
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ('changes', 'share'),
    [
        ({}, '28%'),  # 0.9^12
        ({'train.micro_batches': 2}, '8%'),  # 0.9^24
        ({'train.steps': 50}, '1%'),
        ({'train.steps': 51}, ''),
        ({'model.args': {'widths': (8, 16), 'depth': 1, 'norm': 'group'}}, ''),
        ({'init_from': 'elsewhere'}, ''),
        (train_cases.VIT, ''),
    ],
    ids=str,
)
def test_the_preflight_warns_of_too_few_updates_for_batch_norm(data_dir, changes, share):
    config = train_cases.make(data_dir, CONV | changes)
    lines = preflight._short_for_batch_norm(config, schedule.durations(config, 1293))
    assert len(lines) == bool(share)
    assert not share or f'still hold {share} of their initial values' in lines[0]


def test_a_summary_shows_a_mesh_that_this_machine_does_not_have(data_dir, capsys):
    changes = {'mesh.expert': 4, 'model.moe.group_size': 16}
    config = train_cases.make(data_dir, CONV | changes)
    preflight.summary(config, input_pipeline.info(config.dataset))
    printed = capsys.readouterr().out
    assert 'mesh.expert is 4, which does not fit the 1 device(s) of this machine' in printed
    assert 'mesh data 1 × expert 4' in printed
    assert 'block_1: 8 tokens on a device, groups span the expert axis' in printed
    odd = {'model.moe.group_size': 17, 'train.batch_size': 34}
    config = train_cases.make(data_dir, CONV | changes | odd)
    preflight.summary(config, input_pipeline.info(config.dataset))
    assert 'no training on this mesh: 34 tokens' in capsys.readouterr().out
