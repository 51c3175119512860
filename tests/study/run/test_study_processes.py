"""Two real processes of one mesh write the rows that one process writes, also after a stop."""

import json
import signal
import time

import pytest
from pair import finish, free_port, start
from study_fakes import tables

STUDY = """
from moe_vision.study.types import Arm, Comparison, Study

SMALL = {'model.args.widths': (8,), 'model.args.depth': 1, 'model.moe.num_experts': 4,
         'model.moe.placement': 'head', 'model.moe.group_size': 16, 'train.batch_size': 64,
         'model.moe.eval_capacity_factor': float('inf'), 'train.steps': 6, 'train.warmup_steps': 1,
         'eval.every_steps': 3, 'checkpoint.every_steps': 3, 'mesh.expert': 2}

def get_study():
    return Study(
        name='pair', question='Do two experts gain?', hypotheses=(), seeds=(0, 1), margin=0.3,
        arms={'dense': Arm('configs/digits_k2.py', {**SMALL, 'model.twin': 'same_width'}),
              'k2': Arm('configs/digits_k2.py', SMALL)},
        comparisons={'k2': Comparison('k2', 'dense')})
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('pair')
    (path / 'pair_study.py').write_text(STUDY)
    return path


def command(folder, name: str, *more: str) -> list[str]:
    return [
        '-m',
        'moe_vision.study',
        'run',
        f'--study={folder / "pair_study.py"}',
        f'--workdir={folder / name}',
        f'--config.dataset.data_dir={folder / "data"}',
        '--only=k2',
        *more,
    ]


def pair(folder, name: str, *more: str) -> list[str]:
    return command(
        folder,
        name,
        f'--coordinator=127.0.0.1:{free_port()}',
        '--processes=2',
        '--process={process}',
        *more,
    )


@pytest.fixture(scope='module')
def one(folder, jax_environment):
    """Rows of the routed arm from one process with as many devices as the two have."""
    ended = finish(start(jax_environment, command(folder, 'one'), devices=2, processes=1))
    assert ended[0][0] == 0, ended[0][2][-3000:]
    return tables(folder / 'one')


@pytest.fixture(scope='module')
def runs(one, folder, jax_environment):
    """(what both printed, the rows afterwards) of three starts: the first is stopped in its first
    cell, the second continues, the third finds nothing to do."""
    seen = []
    for number in range(3):
        started = start(jax_environment, pair(folder, 'two'), devices=1)
        if number == 0:
            until = time.monotonic() + 200
            begun = folder / 'two' / 'runs' / 'k2' / 'seed_0' / 'config.json'
            while not begun.exists() and time.monotonic() < until:
                time.sleep(0.05)
            started[1].send_signal(signal.SIGTERM)
        seen.append((finish(started), tables(folder / 'two')))
        assert not list((folder / 'two' / 'claims').iterdir())
    return seen


def test_sigterm_to_one_ends_both_and_gives_the_claims_back(runs):
    ended, rows = runs[0]
    assert [code for code, _, _ in ended] == [143, 143], ended
    assert not rows
    for _, _, stderr in ended:
        assert 'stopped by SIGTERM at step ' in stderr and 'Traceback' not in stderr


def test_the_same_command_continues_to_the_rows_of_one_process(runs, one):
    ended, rows = runs[1]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert list(rows) == ['k2/seed_0.json', 'k2/seed_1.json'] and rows == one  # to the bit
    assert json.loads(rows['k2/seed_1.json'])['mechanism']['ablation']['head']
    assert 'k2 seed 0: continues' in ended[0][2]
    assert ended[0][2].endswith('study pair: 2 of 2 cells are done\n')
    assert 'pair' not in ended[1][2] and 'accuracy' not in ended[1][1]  # only the first prints


def test_a_start_after_the_end_does_nothing(runs):
    ended, rows = runs[2]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert rows == runs[1][1] and ended[0][2].endswith('2 of 2 cells are done\n')
    assert 'starts' not in ended[0][2] and 'continues' not in ended[0][2]
