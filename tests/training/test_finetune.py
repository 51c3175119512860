"""A run that starts from another's weights: rates by layer, and the config that does all of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases

from configs import finetune
from moe_vision.config import check as config_lib
from moe_vision.config.method_args import LayerDecayArgs
from moe_vision.run_folder import checkpoints, record
from moe_vision.training import loop
from moe_vision.training.setup import Setup
from moe_vision.transforms.layer_decay import LayerDecay, scales_of

VIT = [
    'stem/kernel',
    'position',
    'block_0_norm/scale',
    'block_0/in_kernel',
    'block_1/router/kernel',
]
VIT += ['block_1/experts/in_kernel', 'block_1_attention/query/kernel', 'final_norm/bias']
RATES = ('stem', 'classifier')
CONV = ['stem/kernel', 'block_0/a', 'block_1/a', 'down_1/kernel', 'block_2/a', 'block_3/a']


def test_rates_fall_by_hand_from_the_classifier_to_the_stem():
    assert scales_of([*VIT, 'classifier/bias'], 0.5, 0.8) == {
        'classifier/bias': 1.0,
        'final_norm/bias': 0.8,
        'block_1/router/kernel': 0.4,
        'block_1/experts/in_kernel': 0.4,
        'block_1_attention/query/kernel': 0.4,
        'block_0_norm/scale': 0.2,
        'block_0/in_kernel': 0.2,
        'stem/kernel': 0.1,
        'position': 0.1,
    }
    shared = scales_of([*VIT, 'bank_0/experts/in_kernel', 'router/input'], 0.5, 0.8)
    assert shared['bank_0/experts/in_kernel'] == shared['router/input'] == shared['position']
    four = scales_of([*CONV, 'head/router/kernel'], 0.5, 1.0)
    assert four['down_1/kernel'] == four['block_2/a'] == 0.25  # the block that follows it
    assert four['head/router/kernel'] == 1.0 and four['stem/kernel'] == 0.5**5


def test_updates_are_what_the_factors_say():
    params = {'block_0': {'kernel': jnp.ones(2)}, 'classifier': {'kernel': jnp.ones(3)}}
    transform = LayerDecay(LayerDecayArgs(decay=0.5, trunk=0.5), 10)
    updates, state = jax.jit(lambda p: transform.update(p, p, step=jnp.int32(0), state={}))(params)
    assert updates['block_0']['kernel'].tolist() == [0.25, 0.25] and state == {}
    assert updates['classifier']['kernel'].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_the_config_trains_on_from_a_run(data_dir, tmp_path):
    small = {'model.moe.placement': 'head', 'model.args': {'widths': (8,), 'depth': 1}}
    base = Setup(train_cases.make(data_dir, small))
    record.write_config(str(tmp_path / 'w0'), base.config, 'mine.py', base.info, base.cost, 0)
    state = base.fresh_state(7)
    state = dataclasses.replace(state, step=state.step + 6)
    with checkpoints.Checkpoints(str(tmp_path / 'w0'), 1) as saves:
        saves.save(6, state)
    start = jax.device_get(checkpoints.load_raw(str(tmp_path / 'w0'))['params'])

    made = finetune.get_config(str(tmp_path / 'w0'))
    made.train.update({'epochs': 0.2, 'warmup_epochs': 0.0, 'ema_decay': 0.0})
    made.eval.every_steps = 50
    config = config_lib.check(made)
    assert config.model == base.config.model and config.train.steps == 0
    loop.train(config, str(tmp_path / 'w'), full_report=False)
    end = checkpoints.load_raw(str(tmp_path / 'w'))['params']
    moved = {n: np.abs(np.asarray(end[n]['kernel']) - start[n]['kernel']).max() for n in RATES}
    assert moved['stem'] > 0 and moved['classifier'] > 3 * moved['stem'], moved  # AdamW: the rate
