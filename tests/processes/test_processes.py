"""Two real processes of four virtual devices each train as one device does, write once and stop
together; and neither waits for the other when it is gone."""

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import train_cases
import two_processes
from pair import finish, free_port, start

from moe_vision.common.json_values import finite
from moe_vision.processes.watch import SILENT_SECONDS
from moe_vision.run_folder import checkpoints
from moe_vision.training import loop

pytestmark = pytest.mark.slow  # each process compiles for itself


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('two')


@pytest.fixture(scope='module')
def config(data_dir):
    return train_cases.make(data_dir, two_processes.SAME)


@pytest.fixture(scope='module')
def one(folder, config):
    """A finished run on one device; the folder `half` beside it is the same after five steps."""
    loop.train(config, str(folder / 'one'))
    shutil.copytree(folder / 'one', folder / 'half')
    shutil.rmtree(folder / 'half' / 'checkpoints' / 'latest' / '10')
    return folder / 'one'


@pytest.fixture(scope='module')
def ended(one, folder, data_dir, jax_environment):
    script = str(Path(__file__).parents[1] / 'cases' / 'two_processes.py')
    ended = finish(
        start(jax_environment, [script, str(free_port()), '{process}', data_dir, str(folder)])
    )
    for code, _, err in ended:
        assert code == 0, err[-3000:]
    printed = [out.count('test accuracy') for _, out, _ in ended]
    assert printed[0] > 0 == printed[1]  # only the first process prints
    return ended


@pytest.fixture(scope='module')
def seen(ended):
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


@pytest.fixture(scope='module')
def logged(ended):
    return [err for _, _, err in ended]


RUNS = ['expert_4', 'half']


def trained(folder):
    return [r for r in train_cases.rows(folder) if r['split'] == 'train']


@pytest.mark.parametrize('run', RUNS)
def test_two_processes_train_as_one_device_does(seen, one, folder, run):
    """`half` began on one device."""
    assert seen[0]['devices'] == seen[1]['devices'] == [4, 8]
    ours, theirs = trained(folder / run), trained(one)
    assert [r['step'] for r in ours] == [r['step'] for r in theirs] == [2, 4, 5, 6, 8, 10]
    assert max(r['layers']['block_0']['drop_rate'] for r in ours) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a['loss'] / b['loss'] - 1) < 1e-4
        assert a['layers']['block_0']['load'] == pytest.approx(b['layers']['block_0']['load'])
    ours, theirs = (checkpoints.load_raw(str(f)) for f in (folder / run, one))
    for name in ('params', 'batch_stats', 'router_state'):
        for a, b in zip(*map(jax.tree.leaves, (ours[name], theirs[name])), strict=True):
            assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-3), name


@pytest.mark.parametrize('run', RUNS)
def test_evaluation_is_exact_with_a_ragged_last_batch(seen, one, folder, run):
    ours, theirs = (json.loads((f / 'evaluation.json').read_text()) for f in (folder / run, one))
    assert ours['images'] == 360 and 360 % 64
    for name in ('accuracy', 'accuracy_unbounded', 'correct', 'confusion'):
        assert ours[name] == theirs[name], name
    assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-4)
    assert len(ours['samples']) == 24
    for a, b in zip(ours['samples'], theirs['samples'], strict=True):
        assert (a['image_png'], a['label'], a['prediction']) == (
            b['image_png'],
            b['label'],
            b['prediction'],
        )
    scores = {r['step']: r for r in train_cases.rows(folder / run) if r['split'] == 'validation'}
    for row in train_cases.rows(one):
        if row['split'] == 'validation':
            assert scores[row['step']]['accuracy'] == row['accuracy']
            assert scores[row['step']]['images'] == 144


def test_a_checkpoint_of_one_process_is_scored_by_two(seen, one, config):
    """Also at other capacity factors and with another batch size; and only one of them writes."""
    written = one / 'evaluation-validation.json'
    ours = json.loads(written.read_text())
    theirs = finite(
        loop.evaluate(
            dataclasses.replace(
                config, eval=dataclasses.replace(config.eval, **two_processes.SCORED)
            ),
            str(one),
        )
    )
    assert ours['images'] == 144 and ours['at_another_batch_size']['equal']
    for scores in map(finite, (seen[0]['validation'], seen[1]['validation'], ours)):
        for name in ('images', 'accuracy'):
            assert scores[name] == theirs[name]
        assert scores['loss'] == pytest.approx(theirs['loss'], rel=1e-4)
        assert len(scores['capacity_sweep']) == 2
        for a, b in zip(scores['capacity_sweep'], theirs['capacity_sweep'], strict=True):
            assert a | {'loss': 0} == b | {'loss': 0}
            assert a['loss'] == pytest.approx(b['loss'], rel=1e-4)


def test_each_image_is_seen_once_in_an_epoch(seen):
    places = dict(seen[0]['indices']) | dict(seen[1]['indices'])
    assert len(places) == len(seen[0]['indices']) + len(seen[1]['indices'])  # no image twice
    assert sorted(places[p] for p in range(1293)) == list(range(1293))
    assert abs(len(seen[0]['indices']) - len(seen[1]['indices'])) == 0


def test_a_run_continues_on_another_mesh_and_from_two_processes_on_one(seen, one, folder, config):
    """8 x 1 up to step 4, 4 x 2 up to step 7, then one device; each time between two rows."""
    assert max(train_cases.steps(folder / 'moved')) == 7
    loop.train(config, str(folder / 'moved'))
    assert len(trained(one)) == 6
    for a, b in zip(trained(folder / 'moved'), trained(one), strict=True):
        assert abs(a['loss'] / b['loss'] - 1) < 1e-4


def test_a_checkpoint_that_one_process_cannot_read_is_skipped_by_both(seen):
    assert [s['fallback'] for s in seen] == [5, 5]


def test_a_disk_that_is_full_for_one_process_costs_all_only_that_checkpoint(seen, logged):
    assert [s['full'] for s in seen] == [[[1], [1], [1], [4, 1]]] * 2
    lines = {
        step: [
            [x for x in err.splitlines() if f'checkpoint {step} cannot be saved' in x]
            for err in logged
        ]
        for step in (2, 3)
    }
    assert [len(x) for x in lines[2]] == [1, 1]
    assert 'another process cannot write' in lines[2][0][0] and 'No space left' in lines[2][1][0]
    assert lines[3] == [[], []]  # a save that fails right after another one is not named again


def test_processes_that_differ_are_refused_in_both(seen):
    for each in seen:
        configs, folders = each['refused']
        assert 'run different configs' in configs
        assert 'not the same folder for every process' in folders


ARGS = [
    '--config=configs/digits_k2.py',
    '--config.model.args.widths=8',
    '--config.model.args.depth=1',
    '--config.model.moe.num_experts=4',
    '--config.model.moe.group_size=8',
    '--config.train.batch_size=64',
    '--config.dataset.cache',
    '--config.train.steps=100000',
    '--config.eval.every_steps=50000',
    '--config.checkpoint.every_steps=20',
    '--config.log.every_steps=7',
    '--config.mesh.expert=2',
]


@pytest.fixture(scope='module')
def stopped(folder, data_dir, jax_environment):
    """How both ended and what the folder held: after SIGTERM to 1, then after SIGKILL to 0.

    ({signal: (exit code, stdout and stderr of each; seconds that it took)}, [newest step])
    """
    command = [
        'main.py',
        *ARGS,
        f'--config.dataset.data_dir={data_dir}',
        f'--workdir={folder / "long"}',
        f'--coordinator=127.0.0.1:{free_port()}',
        '--processes=2',
        '--process={process}',
    ]

    def steps() -> int:
        return (
            max(train_cases.steps(folder / 'long'))
            if (folder / 'long' / 'checkpoints' / 'latest').exists()
            else 0
        )

    ends, newest = {}, []
    for number in (signal.SIGTERM, signal.SIGKILL):
        pair, before = start(jax_environment, command), steps() if newest else 0
        until = time.monotonic() + 600
        while time.monotonic() < until and not (
            (folder / 'long' / 'checkpoints' / 'latest').exists()
            and max(train_cases.steps(folder / 'long'), default=0) > before
        ):
            time.sleep(0.1)
        pair[0 if number == signal.SIGKILL else 1].send_signal(number)
        sent = time.monotonic()
        ends[number] = finish(pair, 240), time.monotonic() - sent
        newest.append(max(train_cases.steps(folder / 'long')))
    return ends, newest


def test_sigterm_to_one_stops_both_at_the_same_step_saved(stopped):
    (ends, took), newest = stopped[0][signal.SIGTERM], stopped[1]
    assert [code for code, _, _ in ends] == [143, 143], ends
    for _, _, err in ends:
        line = [x for x in err.splitlines() if 'stopped by SIGTERM' in x]
        assert len(line) == 1 and f'saved at step {newest[0]};' in line[0]
    assert took < 30


def test_it_continues_where_it_was_stopped(stopped):
    (_, _, err), _ = stopped[0][signal.SIGKILL][0]
    assert f'continuing at step {stopped[1][0]} of' in err


def ends_alone(code: int, err: str, dead: int) -> None:
    line = [x for x in err.splitlines() if x.startswith('error: ')]
    assert (code, line) == (
        1,
        [
            f'error: process {dead} of 2 has died; start all processes again with the same '
            'command: the run continues from its newest checkpoint.'
        ],
    )


def test_when_process_0_dies_the_other_ends_with_a_message(stopped):
    """Unless the runtime, which has lost its service, aborts before."""
    ((killed, _, _), (code, _, err)), took = stopped[0][signal.SIGKILL]
    assert killed == -signal.SIGKILL and took < SILENT_SECONDS
    if code != -signal.SIGABRT:
        ends_alone(code, err, dead=0)


def test_when_another_process_dies_process_0_ends_with_a_message(jax_environment):
    code = (
        'import os, signal, time; from moe_vision.processes import peers as p; '
        f'p.start(p.Given("127.0.0.1:{free_port()}", 2, {{process}})); '
        'os.kill(os.getpid(), signal.SIGKILL) if {process} else p.barrier("x")'
    )
    began = time.monotonic()
    (code, _, err), (killed, _, _) = finish(start(jax_environment, ['-c', code]))
    assert killed == -signal.SIGKILL and time.monotonic() - began < 2 * SILENT_SECONDS
    ends_alone(code, err, dead=1)


def answers(greeting: bytes) -> socket.socket:
    """Something else than jax that listens at the coordinator's port."""
    server = socket.create_server(('127.0.0.1', 0))

    def serve() -> None:
        links = []
        with contextlib.suppress(OSError):  # until the test closes it
            while True:
                links.append(server.accept()[0])
                links[-1].sendall(greeting)

    threading.Thread(target=serve, daemon=True).start()
    return server


@pytest.mark.parametrize(
    'greeting',
    [
        None,
        b'',
        b'SSH-2.0-OpenSSH_9.6\r\n',
        b'\0' * 100_000,
        b'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n',
    ],
)
def test_a_coordinator_that_does_not_answer_as_one_is_an_error_of_one_line(
    jax_environment, greeting
):
    with contextlib.nullcontext() if greeting is None else answers(greeting) as server:
        port = free_port() if server is None else server.getsockname()[1]
        code = (
            'from moe_vision.processes import peers as p; p.CONNECT_SECONDS = 3.0; '
            f'p.start(p.Given("127.0.0.1:{port}", 2, 1))'
        )
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            env=jax_environment | {'JAX_PLATFORMS': 'cpu'},
            timeout=60,
        )
    assert done.returncode == 2
    assert re.fullmatch(
        r'error: process 1: the coordinator 127.0.0.1:\d+ \(process 0\) does not '
        r'answer, or another program does, after 3 s; .*\n',
        done.stderr,
    ), done.stderr
    assert time.monotonic() - began < 20


def test_a_port_that_another_run_has_is_an_error_of_one_line(jax_environment, data_dir, folder):
    """Without the check both runs would listen there, and take each other's processes."""
    port = free_port()
    code = (
        f'from moe_vision.processes import peers as p; p.start(p.Given("127.0.0.1:{port}", 2, 0))'
    )
    other = start(jax_environment, ['-c', code], processes=1)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with socket.socket() as s:
                if not s.connect_ex(('127.0.0.1', port)):
                    break
            time.sleep(0.1)
        command = [
            'main.py',
            *ARGS,
            f'--config.dataset.data_dir={data_dir}',
            f'--workdir={folder / "taken"}',
            f'--coordinator=127.0.0.1:{port}',
            '--processes=2',
            '--process=0',
        ]
        ((code, _, err),) = finish(start(jax_environment, command, processes=1), 100)
    finally:
        other[0].kill()
    assert code == 2
    assert err.splitlines()[-1].startswith(
        f"error: --coordinator is '127.0.0.1:{port}', but port {port} is in use on this machine"
    )
    assert 'add_port' not in err  # the runtime has not tried it
