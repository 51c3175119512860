"""A run survives what interrupts it: SIGTERM, a full disk, numbers that are not finite."""

import contextlib
import dataclasses
import errno
import io
import json
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
from etils import epath

from moe_vision import report
from moe_vision.common import files
from moe_vision.common.errors import NotWritten, UserError
from moe_vision.processes import peers
from moe_vision.processes.stop import Stop, Stopped
from moe_vision.run_folder import checkpoints, metrics
from moe_vision.training import feed, loop, step
from moe_vision.training.progress import Progress
from moe_vision.training.run import Diverged
from moe_vision.training.schedule import durations


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


@pytest.mark.parametrize(
    'stops', [(7,), *(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 10), (1, 2)))], ids=str
)
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
    save, write, add = checkpoints.Folder.save, files.write, metrics.Interval.add
    last = [0]  # step

    def save_without_room(folder, step, state):
        with no_room(6000) if step in (5, 8) else contextlib.nullcontext():
            save(folder, step, state)
            folder.wait()

    def write_without_room(path, data):
        if last[0] in (8, 9):
            raise OSError(28, 'No space left on device')
        write(path, data)

    def counting(interval, step, values):
        last[0] = step
        add(interval, step, values)

    monkeypatch.setattr(checkpoints.Folder, 'save', save_without_room)
    monkeypatch.setattr(metrics, 'write', write_without_room)
    monkeypatch.setattr(metrics.Interval, 'add', counting)
    lost = r'or are gone: the best checkpoint of step 8\. .* continues at step 12\.'
    with pytest.raises(NotWritten, match=lost) as e:
        loop.train(config, str(tmp_path), setup=setup, full_report=False)
    assert '\n' not in str(e.value)
    messages = warnings(caplog)
    assert (
        sum('checkpoint 5 cannot be saved' in m and 'training continues' in m for m in messages)
        == 1
    )
    assert sum('rows of metrics cannot be written (No space left' in m for m in messages) == 1
    assert train_cases.steps(tmp_path) == [10, 12]
    assert not list((tmp_path / 'checkpoints').rglob('*orbax-checkpoint-tmp*'))
    assert train_cases.rows(tmp_path) == train_cases.rows(whole)
    train_cases.assert_same_bits(checkpoints.load_raw(str(tmp_path)), train_cases.raw(whole))
    ours, theirs = (train_cases.result(p) for p in (tmp_path, whole))
    assert ours == theirs | {'test_accuracy_selected': None}  # not that of the best one before


def no_space(path):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.fixture
def full_for(monkeypatch):
    """Makes every write of our own fail for files whose path holds a text, after half of it."""

    def arm(part):
        def write(path, data):
            if part in str(path):
                raise no_space(path)
            real(path, data)

        real = files.write
        for module in (files, metrics):
            monkeypatch.setattr(module, 'write', write)
        return monkeypatch.undo

    return arm


@pytest.mark.slow
@pytest.mark.parametrize(
    'part, lost, continues',
    [
        ('evaluation.json', 'evaluation.json (No space left on device)', 12),
        ('result.json', 'result.json (No space left on device)', 12),
        ('/metrics/', 'rows of metrics of steps 4 to 12 (No space left on device)', 0),
        ('/events/', 'rows of metrics of steps 4 to 12 (No space left on device)', 0),
    ],
)
def test_what_cannot_be_written_is_an_error_at_the_end(
    setup, config, whole, tmp_path, full_for, caplog, capsys, part, lost, continues
):
    """One line; the result is printed, and the same command then ends as if nothing had been."""
    undo = full_for(part)
    with pytest.raises(NotWritten) as e:
        loop.train(config, str(tmp_path), setup=setup, full_report=False)
    told = str(e.value)
    assert told.startswith('the run is over, but these could not be written')
    assert lost in told and '\n' not in told
    assert ('the last checkpoint' in told) == (not continues)
    assert (f'continues at step {continues}' if continues else 'begins anew') in told
    assert 'test accuracy' in capsys.readouterr().out
    assert sum('rows of metrics cannot be written' in m for m in warnings(caplog)) == (
        not continues
    )
    undo()
    loop.train(config, str(tmp_path), setup=setup, full_report=False)
    train_cases.assert_same_runs(tmp_path, whole)


@pytest.mark.parametrize('part', ['config.json', '/metrics/until-'])
def test_a_disk_that_is_full_before_work_is_a_mistake(
    setup, config, whole, tmp_path, full_for, part
):
    """Then no work is lost: exit code 2."""
    shutil.copytree(whole, tmp_path / 'run')
    undo = full_for(part)
    with pytest.raises(UserError, match='cannot be written: No space left on device') as e:
        loop.train(config, str(tmp_path / 'run'), setup=setup, full_report=False)
    assert not isinstance(e.value, NotWritten) and '\n' not in str(e.value)
    undo()
    loop.train(config, str(tmp_path / 'run'), setup=setup, full_report=False)
    train_cases.assert_same_runs(tmp_path / 'run', whole)


def test_a_last_checkpoint_that_cannot_be_saved_is_tried_again_and_then_an_error(
    setup, config, whole, tmp_path, monkeypatch
):
    tried = []

    def check_room(folder, state):
        if folder.path.name == 'latest' and folder._last_step == 12:
            tried.append(12)
            raise no_space(folder.path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Folder, '_check_room', check_room)
        with pytest.raises(NotWritten, match='the checkpoint of step 12.*continues at step 10'):
            loop.train(config, str(tmp_path), setup=setup, full_report=False)
    assert tried == [12, 12]
    assert train_cases.result(tmp_path) == train_cases.result(whole)
    loop.train(config, str(tmp_path), setup=setup, full_report=False)
    train_cases.assert_same_runs(tmp_path, whole)


def test_a_report_that_cannot_be_written_leaves_the_one_before(
    setup, config, whole, tmp_path, full_for
):
    shutil.copytree(whole, tmp_path / 'run')
    (tmp_path / 'run' / 'report.html').write_text('before')
    full_for('report.html')
    with pytest.raises(NotWritten, match="report.html' cannot be written: No space left") as e:
        loop.train(config, str(tmp_path / 'run'), setup=setup)
    assert '\n' not in str(e.value)
    with pytest.raises(NotWritten):
        report.write(tmp_path / 'run')
    assert (tmp_path / 'run' / 'report.html').read_text() == 'before'


def test_scores_that_cannot_be_written_are_printed(
    setup, config, whole, tmp_path, full_for, capsys, monkeypatch
):
    shutil.copytree(whole, tmp_path / 'run')
    monkeypatch.setattr(loop, 'Setup', lambda *args, **kwargs: setup)
    full_for('evaluation-test.json')
    with pytest.raises(NotWritten, match="evaluation-test.json' cannot be written"):
        loop.evaluate(config, str(tmp_path / 'run'))
    assert 'test accuracy' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    'what, step, lost',
    [
        ('', 7, ['config.json', 'rows of metrics that were written before']),
        ('', 12, ['config.json', 'rows of metrics that were written before']),
        ('metrics', 7, ['rows of metrics that were written before']),
        ('checkpoints', 12, ['checkpoint']),
        ('config.json', 12, ['config.json']),
    ],
)
def test_a_folder_that_vanishes_is_an_error_at_the_end(
    setup, config, tmp_path, monkeypatch, what, step, lost
):
    """Of the whole run or a part of it, after a checkpoint and in the last step."""
    workdir = tmp_path / 'run'
    add = metrics.Interval.add

    def vanishing(self, n, values):
        if n == step:
            (workdir / what).rename(tmp_path / 'gone')
        add(self, n, values)

    monkeypatch.setattr(metrics.Interval, 'add', vanishing)
    with pytest.raises(NotWritten, match='the run is over, but .* same command then ') as e:
        loop.train(config, str(workdir), setup=setup, full_report=False)
    assert all(name in str(e.value) for name in lost) and '\n' not in str(e.value)


@pytest.mark.parametrize('part', ['/metrics/0', '/metrics/pending'])
def test_a_stop_that_cannot_be_saved_names_what_is_lost(
    setup, config, whole, tmp_path, full_for, part
):
    """Nothing is saved whose rows are missing: the run continues from an older checkpoint."""
    with pytest.raises(Stopped):
        loop.train(config, str(tmp_path), setup=setup, stop=train_cases.StopAt(5))
    undo = full_for(part)
    with pytest.raises(
        NotWritten,
        match='^stopped by SIGTERM at step 9, but .*the checkpoint of step 9.*continues at step 5',
    ) as e:
        loop.train(config, str(tmp_path), setup=setup, stop=train_cases.StopAt(9))
    assert '\n' not in str(e.value)
    undo()
    assert train_cases.steps(tmp_path) == [5]
    loop.train(config, str(tmp_path), setup=setup, full_report=False)
    train_cases.assert_same_runs(tmp_path, whole)


@pytest.fixture(scope='module')
def stopped(setup, config, tmp_path_factory):
    """The folder of a run that was stopped between two rows."""
    workdir = tmp_path_factory.mktemp('stopped')
    with pytest.raises(Stopped):
        loop.train(config, str(workdir), setup=setup, stop=train_cases.StopAt(7))
    return workdir


@pytest.mark.parametrize('line', [b'{"step": 3, "split": "train\xff"}', b'{"step": {}}'])
def test_lines_that_cannot_be_read_are_set_aside_and_the_run_goes_on(
    setup, config, whole, stopped, tmp_path, caplog, line
):
    workdir = tmp_path / 'run'
    shutil.copytree(stopped, workdir)
    file = workdir / 'metrics' / '000000000-until-000000005.jsonl'
    file.write_bytes(line + b'\n' + file.read_bytes() + line)
    for last in (8, None):  # the second start finds nothing to set aside
        caplog.clear()
        stop = train_cases.StopAt(last) if last else None
        with pytest.raises(Stopped) if last else contextlib.nullcontext():
            loop.train(config, str(workdir), setup=setup, full_report=False, stop=stop)
        aside = [m for m in warnings(caplog) if 'set_aside' in m]
        assert len(aside) == bool(last)
    train_cases.assert_same_runs(workdir, whole)
    (kept,) = (workdir / 'metrics').glob('*.set_aside_*')
    assert kept.name == f'{file.name}.set_aside_1'
    assert kept.read_bytes() == line + b'\n' + line + b'\n'


def pending_of(workdir):
    return workdir / 'metrics' / 'pending-000000007.json'


def of_pending(change):
    def damage(data):
        pending = json.loads(data)
        change(pending)
        return json.dumps(pending).encode()

    return damage


def at(*path, value):
    def change(pending):
        holder = pending
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value

    return of_pending(change)


PENDING = {
    'half': lambda data: data[: len(data) // 2],
    'empty': lambda data: b'',
    'a byte': lambda data: data.replace(b'loss', b'lo\xffs', 1),
    'no list': lambda data: b'{}',
    'deep': lambda data: b'[' * 10_000 + b']' * 10_000,
    'no pair': at(0, value=[1]),
    'step': at(0, 0, value='6'),
    'other step': at(0, 0, value=2),
    'values': at(0, 1, value=[]),
    'text': at(0, 1, 'loss', value='2.0'),
    'null': at(0, 1, 'grad_norm', value=None),
    'huge': at(0, 1, 'loss', value=10**400),
    'layers': at(0, 1, 'layers', value=[]),
    'ragged': at(0, 1, 'layers', value={'x': [[1], [1, 2]]}),
    'lacks a key': of_pending(lambda pending: pending[0][1].pop('loss')),
    'another layer': at(0, 1, 'layers', value={'head': {'count': 1.0}}),
    'another shape': at(0, 1, 'loss', value=[1.0, 2.0]),
}


MISFITS = ('lacks a key', 'another layer', 'another shape')  # they are noticed when a row ends


@pytest.mark.parametrize('damage', PENDING)
def test_damaged_pending_steps_are_not_read(stopped, tmp_path, damage):
    pending_of(tmp_path).parent.mkdir()
    assert metrics.read_pending(str(tmp_path), 7) == ([], [])
    whole = pending_of(stopped).read_bytes()
    pending_of(tmp_path).write_bytes(whole)
    steps, damaged = metrics.read_pending(str(tmp_path), 7)
    assert [s for s, _ in steps] == [6, 7] and not damaged
    data = PENDING[damage](whole)
    pending_of(tmp_path).write_bytes(data)
    steps, damaged = metrics.read_pending(str(tmp_path), 7)
    if damage in MISFITS:
        assert [s for s, _ in steps] == [6, 7] and not damaged
    else:
        assert not steps and [(d.file, d.data) for d in damaged] == [
            (pending_of(tmp_path).name, data)
        ]


@pytest.mark.slow
@pytest.mark.parametrize('damage', ['half', *MISFITS])
def test_damaged_pending_steps_cost_no_more_than_their_part_of_a_row(
    setup, config, whole, stopped, tmp_path, caplog, damage
):
    workdir = tmp_path / 'run'
    shutil.copytree(stopped, workdir)
    data = PENDING[damage](pending_of(workdir).read_bytes())
    pending_of(workdir).write_bytes(data)
    loop.train(config, str(workdir), setup=setup, full_report=False)
    assert (
        sum(
            'pending-000000007.json' in m or 'are not those of this config' in m
            for m in warnings(caplog)
        )
        == 1
    )
    for kept in (workdir / 'metrics').glob('pending*'):
        assert kept.read_bytes() in (data + b'\n', b'')
    ours, theirs = (train_cases.rows(p) for p in (workdir, whole))
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    assert [a['step'] for a, equal in zip(ours, same, strict=True) if not equal] == [8]
    train_cases.assert_same_bits(checkpoints.load_raw(str(workdir)), train_cases.raw(whole))
    assert train_cases.result(workdir) == train_cases.result(whole)


DOCUMENTS = {
    'half': b'{"config": {',
    'byte': b'{"a": "\xff"}',
    'list': b'[]',
    'number': b'5',
    'deep': b'[' * 10_000 + b']' * 10_000,
    'huge': b'{"images_per_second": 1' + b'0' * 400 + b'}',
    'text': b'{"images_per_second": "fast", "config": "x", "dataset": 3}',
}


@pytest.mark.slow
@pytest.mark.parametrize('first', range(0, len(DOCUMENTS), 2))
def test_a_finished_run_whose_documents_are_damaged_writes_them_anew(
    setup, config, whole, tmp_path, first
):
    """Each file in another way, and each way in two files or more."""
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    damages = [*DOCUMENTS.values()] * 2
    names = ('config.json', 'result.json', 'evaluation.json', 'mechanism.json')
    for name, data in zip(names, damages[first:], strict=False):
        (workdir / name).write_bytes(data)
    loop.train(config, str(workdir), setup=setup, full_report=False)
    train_cases.assert_same_runs(workdir, whole)
    for name in ('config.json', 'evaluation.json'):
        ours, theirs = (json.loads((p / name).read_text()) for p in (workdir, whole))
        assert ours == theirs


def test_a_save_without_room_leaves_the_checkpoints_before_it(setup, tmp_path, caplog):
    fresh = setup.fresh_state(0)
    state = dataclasses.replace(fresh, step=jnp.int32(2))
    with checkpoints.Checkpoints(str(tmp_path), keep=1) as saved:
        saved.save(1, dataclasses.replace(fresh, step=jnp.int32(1)))
        saved.wait()
        with no_room(6000):
            saved.save(2, state)
            assert saved.steps() == [1] and saved.lost() == ['the checkpoint of step 2']
        assert train_cases.steps(tmp_path) == [1]
        saved.save(2, state)
        assert saved.steps() == [2]
        assert train_cases.steps(tmp_path) == [2] and not saved.lost()
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
    skipped = (4, 6, 7, 11, 12)
    white(monkeypatch, *skipped)
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
        assert moved == (number not in (1, *skipped))  # a warm-up's first step moves nothing
        if number in skipped:
            for name in ('params', 'opt_state', 'batch_stats', 'router_state', 'ema'):
                train_cases.assert_same_bits(getattr(before, name), getattr(after, name))
            assert after.step == before.step + 1
    rows = {r['step']: r for r in train_cases.rows(tmp_path) if r['split'] == 'train'}
    assert {s: (r['skipped'], r['skipped_in_a_row']) for s, r in rows.items()} == {
        5: (1, 0),
        10: (2, 0),
        12: (2, 2),
    }
    assert rows[12]['loss'] is None and np.isfinite(rows[5]['loss'])
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


def test_a_stop_saves_no_state_that_has_diverged(poisoned, data_dir, tmp_path, monkeypatch):
    """SIGTERM between two rows, after a step whose loss is NaN: a restart called it finite."""
    setup = loop.Setup(
        train_cases.make(data_dir, {'train.mixup': 0.0, 'log.every_steps': 6, 'train.steps': 14})
    )
    white(monkeypatch, 7)
    said = 'loss is not finite at step 7; the last finite checkpoint is step 5. Try'
    for stop in (train_cases.StopAt(7), None):
        with pytest.raises(Diverged, match=said):
            loop.train(setup.config, str(tmp_path), setup=setup, stop=stop)
        assert train_cases.steps(tmp_path) == [5]


def test_looking_for_what_is_not_finite_changes_no_row():
    """Two steps that may be skipped, looked at in between, then one too many."""
    interval = metrics.Interval(may_skip=2)
    for number, loss in enumerate((1.0, np.nan, np.nan), 1):
        interval.add(number, {'loss': loss, 'grad_norm': 1.0, 'layers': {}})
        interval.check()
    assert len(interval.pending()) == 3 and interval.in_a_row == 0
    interval.add(4, interval.pending()[1][1])
    for _ in range(2):
        with pytest.raises(metrics.NonFiniteStep, match='step 4, in 3 steps in a row'):
            interval.check()
    with pytest.raises(metrics.NonFiniteStep, match='step 4, in 3 steps in a row'):
        interval.row(1.0)
    metrics.Interval().check()  # nothing is pending


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


def test_a_run_in_which_more_is_due_than_memory_holds_is_refused(data_dir):
    config = train_cases.make(data_dir, {'train.steps': 2**31 - 1, 'eval.every_steps': 1})
    with pytest.raises(UserError, match='Make them rarer'):
        durations(config, 1_000)


def test_what_a_given_up_save_writes_late_is_deleted_when_the_run_ends(tmp_path):
    folder = checkpoints.Folder(epath.Path(tmp_path / 'latest'), keep=1)
    folder._last_step = 5
    folder._give_up(OSError(errno.ENOSPC, 'full'))
    late, other = (tmp_path / 'latest' / f'{s}.orbax-checkpoint-tmp' for s in (5, 6))
    for part in (late, other):
        part.mkdir()
    folder.close()
    assert not late.exists() and other.exists()  # another process may be writing that one
