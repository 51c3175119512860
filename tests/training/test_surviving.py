"""A run survives what interrupts it: SIGTERM, a full disk, numbers that are not finite."""

import contextlib
import io
import logging
import os
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases

from moe_vision.common import files
from moe_vision.processes import peers
from moe_vision.processes.stop import Stop, Stopped
from moe_vision.run_folder import checkpoints, metrics
from moe_vision.training import feed, loop, step
from moe_vision.training.progress import Progress
from moe_vision.training.run import Diverged


@pytest.fixture(scope='module')
def config(data_dir):
    return train_cases.make(data_dir)


@pytest.fixture(scope='module')
def setup(config):
    return loop.Setup(config)


@pytest.fixture(scope='module')
def whole(setup, config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    loop.train(config, str(workdir), setup=setup, full_report=False)
    return workdir


def warnings(caplog) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno >= logging.WARNING and 'moe_vision' in r.pathname
    ]


@pytest.mark.parametrize('stops', [(7,), (8, 10), (1, 2)], ids=str)
def test_a_stopped_run_continues_bit_for_bit(setup, config, whole, tmp_path, stops):
    """Stopped between two rows, at a validation, at a checkpoint, and before any of them."""
    for last in stops:
        with pytest.raises(
            Stopped,
            match=f'stopped by SIGTERM at step {last} of 12, saved at step {last}; start again',
        ) as e:
            loop.train(config, str(tmp_path), setup=setup, stop=train_cases.StopAt(last))
        assert '\n' not in str(e.value)
        assert max(train_cases.steps(tmp_path)) == last
    loop.train(config, str(tmp_path), setup=setup, full_report=False)
    train_cases.assert_same_runs(tmp_path, whole)
    assert not list((tmp_path / 'metrics').glob('pending-*'))


def test_sigterm_waits_for_the_end_of_a_step_and_otherwise_stops_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        with stop.later():
            assert not stop.at(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.at(2)
        with pytest.raises(Stopped, match='same command'):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_processes_agree_on_the_number_of_calls(monkeypatch):
    """It keeps growing, as jax's service needs it; each run of a study begins at step 1 again."""
    from jax.experimental import multihost_utils

    calls = []
    monkeypatch.setattr(peers, 'joined', lambda: True)
    monkeypatch.setattr(
        multihost_utils, 'reached_preemption_sync_point', lambda n: calls.append(n) or n == 6
    )
    with Stop() as stop:
        assert [stop.at(step) for step in (1, 2, 1, 2)] == [False] * 4
        with pytest.raises(Stopped, match='same command'):
            stop.sleep(0.0)
            stop.sleep(0.0)
    assert calls == [1, 2, 3, 4, 5, 6]


def test_sigterm_during_a_save_does_not_count_as_a_failed_save(tmp_path, monkeypatch):
    folder = checkpoints.Folder(tmp_path / 'latest', keep=1)
    with monkeypatch.context() as patch, Stop(), pytest.raises(Stopped):
        patch.setattr(
            folder._manager, 'wait_until_finished', lambda: os.kill(os.getpid(), signal.SIGTERM)
        )
        folder.wait()
    folder.close()


@contextlib.contextmanager
def no_room(size: int):
    """Limits the files that this process writes to `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_training_continues_while_the_disk_is_full(
    setup, config, whole, tmp_path, monkeypatch, caplog
):
    save, write = checkpoints.Folder.save, files.write
    full = []

    def save_without_room(folder, step, state):
        full[:] = [1] if step in (5, 8) else []
        if not full:
            save(folder, step, state)
            return
        with no_room(6000):
            save(folder, step, state)
            folder.wait()

    def write_without_room(path, data):
        if full:
            raise OSError(28, 'No space left on device')
        write(path, data)

    monkeypatch.setattr(checkpoints.Folder, 'save', save_without_room)
    monkeypatch.setattr(metrics, 'write', write_without_room)
    loop.train(config, str(tmp_path), setup=setup, full_report=False)
    messages = warnings(caplog)
    assert (
        sum('checkpoint 5 cannot be saved' in m and 'training continues' in m for m in messages)
        == 1
    )
    assert sum('rows of metrics cannot be written (No space left' in m for m in messages) >= 1
    for message in ('Task exception was never retrieved', 'another thing'):  # the first: by orbax
        logging.getLogger('asyncio').error(message)
    assert [r.getMessage() for r in caplog.records if r.name == 'asyncio'] == ['another thing']
    assert train_cases.steps(tmp_path) == [10, 12]
    assert not list((tmp_path / 'checkpoints').rglob('*orbax-checkpoint-tmp*'))
    assert train_cases.rows(tmp_path) == train_cases.rows(whole)
    train_cases.assert_same_bits(
        checkpoints.load_raw(str(tmp_path)), checkpoints.load_raw(str(whole))
    )


def test_a_save_without_room_leaves_the_checkpoints_before_it(setup, tmp_path, caplog):
    state = setup.fresh_state(0)
    with checkpoints.Checkpoints(str(tmp_path), keep=1) as saved:
        saved.save(1, state)
        saved.wait()
        with no_room(6000):
            saved.save(2, state)
            assert saved.steps() == [1]
        assert train_cases.steps(tmp_path) == [1]
        saved.save(2, state)
        assert saved.steps() == [2]
        assert train_cases.steps(tmp_path) == [2]
    assert len(warnings(caplog)) == 1
    train_cases.assert_same_bits(checkpoints.load_raw(str(tmp_path))['params'], state.params)


@pytest.fixture(scope='module')
def poisoned():
    """Makes the loss NaN for a batch of white images, whatever the weights."""
    normalize = step.normalize_images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            step,
            'normalize_images',
            lambda x, *args: jnp.where(jnp.all(x == 255), jnp.nan, normalize(x, *args)),
        )
        yield


@pytest.fixture(scope='module')
def skipping(poisoned, data_dir):
    return loop.Setup(
        train_cases.make(
            data_dir,
            {
                'train.skip_nonfinite': 2,
                'train.mixup': 0.0,
                'log.every_steps': 6,
                'eval.every_steps': 12,
            },
        )
    )


def white(monkeypatch, *steps: int) -> None:
    """Makes the images of these steps white."""
    on_host = feed.on_host

    @contextlib.contextmanager
    def some_white(config, seed, rows, start, stop):
        with on_host(config, seed, rows, start, stop) as batches:
            yield (
                {
                    n: np.full_like(x, 255) if n == 'image' and step in steps else x
                    for n, x in batch.items()
                }
                for step, batch in enumerate(batches, start + 1)
            )

    monkeypatch.setattr(feed, 'on_host', some_white)


def test_the_update_of_a_step_that_is_not_finite_is_skipped(skipping, tmp_path, monkeypatch):
    white(monkeypatch, 4, 6, 7)
    states = {}
    step_fn = skipping.step

    def watched(state, batch):
        before = jax.device_get(state)
        state, out = step_fn(state, batch)
        states[int(state.step)] = before, jax.device_get(state)
        return state, out

    monkeypatch.setattr(skipping, 'step', watched)
    loop.train(skipping.config, str(tmp_path), setup=skipping, full_report=False)
    for number, (before, after) in states.items():
        moved = not all(
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True)
        )
        assert moved == (number not in (1, 4, 6, 7))  # a warm-up's first step moves nothing
        if number in (4, 6, 7):
            for name in ('params', 'opt_state', 'batch_stats', 'router_state', 'ema'):
                train_cases.assert_same_bits(getattr(before, name), getattr(after, name))
            assert after.step == before.step + 1
    rows = {r['step']: r for r in train_cases.rows(tmp_path) if r['split'] == 'train'}
    assert {s: (r['skipped'], r['skipped_in_a_row']) for s, r in rows.items()} == {
        5: (1, 0),
        6: (1, 1),
        10: (1, 0),
        12: (0, 0),
    }
    assert rows[6]['loss'] is None and np.isfinite(rows[5]['loss'])
    shown = io.StringIO()
    Progress(12, 0, 32, shown).show(rows[5] | {'timing': {'images_per_second': 1.0}})
    assert 'skipped 1' in shown.getvalue()


def test_one_more_in_a_row_than_allowed_stops_the_run(skipping, tmp_path, monkeypatch):
    """Although a row ends and a checkpoint is saved between them."""
    white(monkeypatch, 4, 5, 6)
    with pytest.raises(Diverged, match='loss is not finite at step 6, in 3 steps in a row') as e:
        loop.train(skipping.config, str(tmp_path), setup=skipping)
    assert '\n' not in str(e.value)
    shutil.rmtree(tmp_path / 'checkpoints' / 'best', ignore_errors=True)
    with pytest.raises(Diverged, match='step 6, in 3 steps'):  # continued from step 5
        loop.train(skipping.config, str(tmp_path), setup=skipping)


def test_a_program_checks_for_finite_numbers_only_if_steps_may_be_skipped(setup, skipping):
    def program(setup):
        micro = {
            'image': ((1, 32, 8, 8, 1), np.uint8),
            'label': ((1, 32), np.int32),
            'valid': ((1, 32), bool),
        }
        batch = {n: jax.ShapeDtypeStruct(*x) for n, x in micro.items()}
        return str(jax.make_jaxpr(setup.step_of(setup.network))(setup.shapes, batch))

    assert 'is_finite' not in program(setup)
    assert program(skipping).count('is_finite') == 2
