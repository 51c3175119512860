"""Damaged checkpoints are skipped and named in the log; the others are restored exactly."""

import dataclasses
import errno
import logging
import os
import random
import shutil
import signal
import sys
import warnings as python_warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases

from moe_vision.common import files
from moe_vision.common.errors import UserError
from moe_vision.run_folder import abandoned, checksum
from moe_vision.run_folder.checkpoints import Checkpoints, load_raw
from moe_vision.training.step import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict


def state(n: int, seed: int = 0) -> State:
    w = jax.random.normal(jax.random.key(n + seed), (40, 50))
    return State(jnp.int32(n), {'dense': {'kernel': w}}, (jnp.int32(n), {'mu': w * 2}, ()), {})


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    jax.eval_shape(lambda: state(0)),
)


@pytest.fixture
def workdir(tmp_path):
    with Checkpoints(str(tmp_path), keep=3) as saved:
        for step in (10, 20, 30):
            saved.save(step, state(step))
        saved.save_best(25, state(25))
    return tmp_path


def biggest(folder):
    return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    file = biggest(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(folder):
    file = biggest(folder)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(255 - b for b in data[middle : middle + 64])
    file.write_bytes(bytes(data))


def delete_largest(folder):
    biggest(folder).unlink()


def delete_metadata(folder):
    next(folder.rglob('_METADATA')).unlink()


def delete_manifests(folder):
    for file in folder.rglob('manifest.ocdbt'):
        file.unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text('not a folder')


DAMAGES = [truncate, garble, delete_largest, delete_metadata, delete_manifests, empty, a_file]


def restore(workdir, abstract=ABSTRACT):
    with Checkpoints(str(workdir), keep=3) as saved:
        return saved.restore_newest(abstract)


def warnings(caplog) -> list[str]:
    """Our own warnings, without those of orbax and asyncio."""
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno >= logging.WARNING and 'moe_vision' in r.pathname
    ]


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(workdir, caplog, damage):
    damage(workdir / 'checkpoints' / 'latest' / '30')
    caplog.clear()
    step, restored = restore(workdir)
    assert step == 20
    train_cases.assert_same_bits(restored, state(20))
    messages = warnings(caplog)
    if damage is not a_file:  # orbax does not take a file for a checkpoint
        assert len(messages) == 1 and 'checkpoint 30 ' in messages[0], messages
    with Checkpoints(str(workdir), keep=3) as saved:  # the run will reach that step again
        assert saved.steps() == [20, 10]
        saved.save(30, state(30, seed=1))
    step, restored = restore(workdir)
    assert step == 30
    train_cases.assert_same_bits(restored, state(30, seed=1))


def test_a_best_checkpoint_after_the_restored_step_is_saved_again(workdir):
    truncate(workdir / 'checkpoints' / 'latest' / '30')
    restore(workdir)
    assert train_cases.steps(workdir, 'best') == []
    with Checkpoints(str(workdir), keep=3) as saved:
        saved.save_best(25, state(25, seed=1))
    train_cases.assert_same_bits(load_raw(str(workdir), 'best')['params'], state(25, seed=1).params)


def test_a_best_checkpoint_without_any_other_is_replaced(workdir):
    shutil.rmtree(workdir / 'checkpoints' / 'latest')
    assert restore(workdir) is None
    with Checkpoints(str(workdir), keep=3) as saved:
        saved.save_best(25, state(25, seed=1))
    train_cases.assert_same_bits(load_raw(str(workdir), 'best')['params'], state(25, seed=1).params)


def test_when_all_are_damaged_the_error_is_one_line(workdir, caplog):
    for step in (10, 20, 30):
        truncate(workdir / 'checkpoints' / 'latest' / str(step))
    with pytest.raises(UserError, match=r'none of the checkpoints \[30, 20, 10\]') as e:
        restore(workdir)
    assert '\n' not in str(e.value)
    assert train_cases.steps(workdir) == [10, 20, 30]  # nothing was deleted
    assert train_cases.steps(workdir, 'best') == [25]


def test_reading_and_saving_leave_the_process_as_it_is(workdir):
    """A notebook that loads a run has loggers and hooks of its own."""

    def hooks():
        loggers = [logging.getLogger(name) for name in ('absl', 'asyncio', '')]
        return [list(x.filters) for x in loggers], list(python_warnings.filters), sys.unraisablehook

    abandoned.hide.cache_clear()  # else an earlier test may have done it already
    before = hooks()
    with Checkpoints(str(workdir), keep=3) as saved:
        saved.save(40, state(40))
    assert int(load_raw(str(workdir))['step']) == 40 and hooks() == before


def test_a_command_hides_what_orbax_says_of_abandoned_parts(caplog):
    abandoned.hide()
    for message in ('Task exception was never retrieved', 'another thing'):  # the first: by orbax
        logging.getLogger('asyncio').error(message)
    for folder in ('orbax', 'jax'):
        file = os.path.join('site-packages', folder, 'a.py')
        record = logging.LogRecord('absl', logging.ERROR, file, 1, folder, (), None)
        logging.getLogger('absl').handle(record)
    assert caplog.messages == ['another thing', 'jax']


@pytest.mark.parametrize('text', ['[1]', '3', 'null', '', '{"a":', 'a\n' * 99])
def test_what_orbax_says_of_a_file_of_its_own_is_one_line_or_nothing(workdir, text, caplog, capfd):
    abandoned.hide()  # as commands do
    file = workdir / 'checkpoints' / 'latest' / '30' / '_CHECKPOINT_METADATA'
    file.write_text(text)
    try:
        step, _ = restored_for('restore_for_evaluation', workdir)
    except UserError as e:
        assert '\n' not in str(e) and 'delete the damaged _CHECKPOINT_METADATA' in str(e)
        file.unlink()
        step, _ = restored_for('restore_for_evaluation', workdir)
    assert step == 30
    assert 'Traceback' not in capfd.readouterr().err


BEST_IS_WHOLE = 'the best one on validation, of step 25, can: predict takes it with --best'


@pytest.mark.parametrize(
    'damaged, kind, says',
    [
        ('latest', 'latest', BEST_IS_WHOLE),
        ('best', 'best', 'leave out --best to take the last one, of step 30'),
        ('latest best', 'latest', r'can be read.*bring the files back'),
        ('latest best', 'best', r'none of the best checkpoints \[25\] .*bring the files back'),
    ],
)
def test_what_can_still_be_read_is_named(workdir, damaged, kind, says, caplog):
    for name in damaged.split():
        for step in train_cases.steps(workdir, name):
            truncate(workdir / 'checkpoints' / name / str(step))
    errors = []
    with pytest.raises(UserError, match=says) as e:
        load_raw(str(workdir), kind)
    errors.append(str(e.value))
    for name in ('restore_newest', 'restore_for_evaluation') if kind == 'latest' else ():
        with pytest.raises(UserError, match=says) as e:
            restored_for(name, workdir)
        errors.append(str(e.value))
    assert not any('\n' in error for error in errors)
    if damaged == 'latest':  # what the message says helps
        assert int(load_raw(str(workdir), 'best')['step']) == 25
        root = workdir / 'checkpoints'
        assert f"copy '{root}/best/25' to '{root}/latest/25'" in errors[0]
        shutil.copytree(root / 'best' / '25', root / 'latest' / '25')
        assert int(load_raw(str(workdir))['step']) == 25
        assert restored_for('restore_for_evaluation', workdir)[0] == 25


@pytest.mark.parametrize('change', ['shape', 'name', 'more', 'less'])
def test_checkpoints_of_another_network_are_refused_and_kept(workdir, change):
    params = dict(ABSTRACT.params)
    if change == 'shape':
        leaf = params['dense']['kernel']
        params = {
            'dense': {'kernel': jax.ShapeDtypeStruct((41, 50), leaf.dtype, sharding=leaf.sharding)}
        }
    if change == 'name':
        params = {'other': params['dense']}
    if change == 'more':
        params = params | {'other': params['dense']}
    if change == 'less':
        params = {}
    with pytest.raises(UserError, match='--workdir') as e:
        restore(workdir, dataclasses.replace(ABSTRACT, params=params))
    assert '\n' not in str(e.value)
    assert train_cases.steps(workdir) == [10, 20, 30]


def test_leftovers_of_an_interrupted_save_do_no_harm(workdir, caplog):
    latest = workdir / 'checkpoints' / 'latest'
    shutil.copytree(latest / '30', latest / '40.orbax-checkpoint-tmp')
    shutil.copytree(latest / '30', latest / '40.orbax-checkpoint-tmp-17')
    truncate(latest / '40.orbax-checkpoint-tmp')
    caplog.clear()
    step, _ = restore(workdir)
    assert step == 30 and not warnings(caplog)
    with Checkpoints(str(workdir), keep=3) as saved:
        saved.save(40, state(40))
    assert restore(workdir)[0] == 40


def test_only_the_newest_are_kept_and_one_best(workdir):
    with Checkpoints(str(workdir), keep=2) as saved:
        saved.save(50, state(50))
        saved.save_best(50, state(50))
    assert train_cases.steps(workdir) == [30, 50]
    assert train_cases.steps(workdir, 'best') == [50]


def test_reading_for_evaluation_changes_nothing(workdir):
    truncate(workdir / 'checkpoints' / 'latest' / '30')
    before = sorted(p for p in workdir.rglob('*'))
    with Checkpoints(str(workdir), keep=1) as saved:
        step, restored = saved.restore_for_evaluation(ABSTRACT)
    assert step == 20
    train_cases.assert_same_bits(restored, state(20))
    assert sorted(p for p in workdir.rglob('*')) == before


def test_a_save_is_not_changed_by_steps_that_reuse_its_memory(tmp_path):
    """The next steps get the same buffers while the save is still being written."""
    from moe_vision.training.run import _own

    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    s = {f'w{i}': jnp.full((300, 300), 7.0) for i in range(8)}
    s = State(jnp.int32(1), s, (), {})
    want = jax.tree.map(lambda x: np.array(x), s.params)
    with Checkpoints(str(tmp_path), keep=1) as saved:
        saved.save(1, _own(s))
        for _ in range(50):
            s = step(s)
    train_cases.assert_same_bits(load_raw(str(tmp_path))['params'], want)


def test_unfinished_saves_are_deleted_by_the_run_and_not_by_scoring(workdir, caplog):
    """Because a run may be saving while another process scores it."""
    left = [
        workdir / 'checkpoints' / kind / '40.orbax-checkpoint-tmp' for kind in ('latest', 'best')
    ]
    for folder in left:
        shutil.copytree(workdir / 'checkpoints' / 'latest' / '30', folder)
    with Checkpoints(str(workdir), keep=3) as saved:
        assert saved.restore_for_evaluation(ABSTRACT)[0] == 30
        assert all(folder.exists() for folder in left)
        assert saved.restore_newest(ABSTRACT)[0] == 30
        assert not any(folder.exists() for folder in left)
        saved.save(40, state(40))
        assert saved.steps()[0] == 40
    assert 'already exists' not in caplog.text


def restored_for(function, workdir, abstract=ABSTRACT):
    """(step, state) that a function reads, or None."""
    with Checkpoints(str(workdir), keep=3) as saved:
        return getattr(saved, function)(abstract)


def raw(workdir, abstract=ABSTRACT):
    state = load_raw(str(workdir))
    return int(state['step']), State(
        **{f.name: state.get(f.name) for f in dataclasses.fields(State)}
    )


READERS = {
    'raw': raw,
    **{
        name: lambda workdir, name=name: restored_for(name, workdir)
        for name in ('restore_newest', 'restore_for_evaluation', 'restore_best')
    },
}
KINDS = {
    '_CHECKPOINT_METADATA': 2,
    'default/_METADATA': 6,
    'default/_sharding': 4,
    'default/array_metadatas/process_0': 3,
    'default/manifest.ocdbt': 4,
    'default/d/': 4,
    'default/ocdbt.process_0/d/': 12,
    'default/ocdbt.process_0/manifest.ocdbt': 3,
}


def bits(read) -> list[bytes]:
    step, state = read
    return [
        np.int32(step).tobytes(),
        *(np.asarray(x).tobytes() for x in jax.tree.leaves(state) if x is not None),
    ]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """A folder with one checkpoint of each kind."""
    folder = tmp_path_factory.mktemp('one')
    with Checkpoints(str(folder), keep=1) as saved:
        saved.save(10, state(10))
        saved.save_best(10, state(10))
    return folder


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('kind', KINDS)
def test_a_flipped_bit_never_changes_what_is_read(kind, name, one, tmp_path, caplog):
    """Either the checkpoint is refused and named, or the byte does not matter."""
    shutil.copytree(one, tmp_path, dirs_exist_ok=True)
    root = tmp_path / 'checkpoints' / ('best' if name == 'restore_best' else 'latest') / '10'
    files = [
        p for p in root.rglob('*') if p.is_file() and str(p.relative_to(root)).startswith(kind)
    ]
    rng, want = random.Random(kind), bits((10, state(10)))
    assert files
    for _ in range(KINDS[kind]):
        file = rng.choice(files)
        data = file.read_bytes()
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(flipped))
        caplog.clear()
        try:
            read = READERS[name](tmp_path)
        except UserError as e:
            assert '\n' not in str(e)
            read = None
        if read is None:
            assert sum('checkpoint 10 cannot be read (' in m for m in warnings(caplog)) == 1
            shutil.rmtree(root)  # `restore_newest` may have deleted it
            shutil.copytree(one / root.relative_to(tmp_path), root)
        else:
            assert bits(read) == want, (file, data, bytes(flipped))
            file.write_bytes(data)


def pipe(file):
    file.unlink()
    os.mkfifo(file)


def device(file):
    file.unlink()
    file.symlink_to('/dev/zero')


def linked_folder(file):
    folder = file.parent
    folder.rename(folder.with_name('elsewhere'))
    folder.symlink_to(folder.with_name('elsewhere'))


def holes(file):
    """A file that claims a terabyte, which takes no room on the disk."""
    os.truncate(file, 2**40)


@pytest.mark.parametrize('name', ['raw', 'restore_newest'])
@pytest.mark.parametrize('make', [pipe, device, linked_folder, holes], ids=lambda f: f.__name__)
def test_what_is_no_file_of_a_checkpoint_is_not_waited_for(make, name, workdir, caplog):
    def late(*_):
        raise TimeoutError('it waits')

    before = signal.signal(signal.SIGALRM, late)
    try:
        for step, file in ((30, 'default/_METADATA'), (20, 'default/manifest.ocdbt')):
            make(workdir / 'checkpoints' / 'latest' / str(step) / file)
            caplog.clear()
            signal.alarm(20)
            assert bits(READERS[name](workdir)) == bits((step - 10, state(step - 10)))
            told = [m for m in warnings(caplog) if f'checkpoint {step} cannot be read' in m]
            assert len(told) == 1 and ' in it ' in told[0]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize('place', ['30/_CHECKPOINT_METADATA', 'odd/file'])
@pytest.mark.parametrize('make', [pipe, device, holes], ids=lambda f: f.__name__)
def test_what_is_no_file_beside_the_arrays_is_one_line(make, place, workdir):
    """orbax reads it of every checkpoint when it opens their folder, and would wait for ever."""
    file = workdir / 'checkpoints' / 'latest' / place
    file.parent.mkdir(exist_ok=True)
    file.touch()
    make(file)
    with pytest.raises(UserError, match='is no file, or a huge one; remove it') as e:
        restore(workdir)
    assert '\n' not in str(e.value)


def flip_weights(folder):
    """Flips a bit in every kilobyte of the largest file, where the arrays are."""
    file = biggest(folder)
    data = bytearray(file.read_bytes())
    for at in range(512, len(data), 1024):
        data[at] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize('name', READERS)
def test_flipped_weights_are_refused_and_the_checkpoint_before_is_taken(name, workdir, caplog):
    kind, step = ('best', 25) if name == 'restore_best' else ('latest', 30)
    flip_weights(workdir / 'checkpoints' / kind / str(step))
    caplog.clear()
    read = READERS[name](workdir)
    assert any(f'checkpoint {step} cannot be read (' in m for m in warnings(caplog))
    if name == 'restore_best':
        assert read is None
    else:
        assert bits(read) == bits((20, state(20)))


@pytest.mark.parametrize('name', READERS)
def test_the_state_of_another_step_is_refused(name, workdir, caplog):
    """The folder of step 20 under the name of step 40, whole as it is."""
    kind, step = ('best', 25) if name == 'restore_best' else ('latest', 20)
    folder = workdir / 'checkpoints' / kind
    shutil.copytree(folder / str(step), folder / '40')
    read = READERS[name](workdir)
    assert read[0] == (25 if name == 'restore_best' else 30)
    assert [
        m
        for m in warnings(caplog)
        if f'it holds the state of step {step}' in m and 'checkpoint 40 cannot be read' in m
    ]


class Moments(NamedTuple):
    """Its fields are not in alphabetical order, unlike the keys of a dictionary."""

    nu: dict
    mu: dict
    count: jax.Array
    nothing: tuple = ()


def test_a_failed_save_that_fails_again_while_closing_is_no_other_error(tmp_path, monkeypatch):
    """orbax raises the error of a background save at each wait; the run has told of it by then."""

    def fails():
        raise ValueError('RESOURCE_EXHAUSTED: No space left on device')

    def full(step):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    saved, closed = Checkpoints(str(tmp_path), keep=1), []
    close = saved._best._manager.close
    saved._latest._given_up.add(10)
    monkeypatch.setattr(saved._latest, 'clear', full)
    monkeypatch.setattr(saved._latest._manager, 'close', fails)
    monkeypatch.setattr(saved._best._manager, 'close', lambda: closed.append(close()))
    saved.close()
    assert closed


def test_arrays_that_no_memory_holds_are_not_read(workdir, caplog, monkeypatch):
    """A description of a few bytes can claim any shape; what is not stored is filled with zeros."""
    assert raw(workdir)[0] == 30
    monkeypatch.setattr(files, 'memory', lambda: 12_000)  # a state has two arrays of 8,000 bytes
    with pytest.raises(UserError, match='can be read'):
        raw(workdir)
    assert 'its arrays would take 16,' in caplog.text


def test_the_host_computes_the_checksum_of_the_devices(tmp_path):
    """Of any optimizer's state: named tuples, tuples of more than ten, dictionaries, nothing."""
    keys = iter(jax.random.split(jax.random.key(0), 99))

    def array(*shape, dtype=jnp.float32):
        return (jax.random.normal(next(keys), shape) * 1000).astype(dtype)

    tree = {'b': array(3, 4), 'a': {'z': array(), 'c': array(2, 3, 5, dtype=jnp.bfloat16)}}
    optimizer = (
        Moments(tree, {'x': array(7)}, jnp.int32(5)),
        None,
        (),
        tuple(array(2) for _ in range(12)),
        {'kept': {}, 'trained': [array(3, dtype=jnp.int32)]},
    )
    s = TrainState(
        step=jnp.int32(3),
        seed_key=jnp.arange(2, dtype=jnp.uint32),
        params=tree,
        batch_stats={},
        router_state={'l': array(4, dtype=jnp.int8)},
        opt_state=optimizer,
        ema={},
    )
    with Checkpoints(str(tmp_path), keep=1) as saved:
        saved.save(3, s)
    read = load_raw(str(tmp_path))
    train_cases.assert_same_bits(read['params'], tree)
    assert (
        int(read['checksum'])
        == int(checksum.of_state(s))
        == checksum.of_arrays(np.asarray(x) for x in jax.tree.leaves(s))
    )


def test_the_checksum_goes_through_the_fields_of_the_state_in_their_order():
    assert checksum.FIELDS == tuple(f.name for f in dataclasses.fields(TrainState))


def test_the_checksum_is_what_it_always_was():
    """The bits times 2 place + 1, each array's sum times 31 to the power of those after it."""
    arrays = [np.array([[1, 2], [3, 4]], np.int32), np.float32(1.0)]
    by_hand = (1 * 1 + 2 * 3 + 3 * 5 + 4 * 7) * 31 + 0x3F800000
    assert checksum.of_arrays(arrays) == int(checksum.of_state(arrays)) == by_hand
    long = np.arange(2**23 + 5, dtype=np.uint32)
    assert checksum.of_arrays([long]) == int(checksum.of_state([long]))


def test_odd_names_among_the_checkpoints_are_passed_over(workdir):
    latest = workdir / 'checkpoints' / 'latest'
    for name in ('²', '٣', '007', '-5', '1e9', '9' * 30):
        (latest / name).mkdir()
    assert int(load_raw(str(workdir))['step']) == 30
    shutil.rmtree(latest)
    latest.write_text('a file')
    with pytest.raises(UserError, match='there is no checkpoint in .* of step 25'):
        load_raw(str(workdir))
    with pytest.raises(UserError, match='no checkpoint in') as e:
        restored_for('restore_for_evaluation', workdir)
    assert '\n' not in str(e.value)
    shutil.rmtree(workdir / 'checkpoints')
    (workdir / 'checkpoints').write_text('a file')
    with pytest.raises(UserError, match='cannot be used') as e:
        Checkpoints(str(workdir), keep=3)
    assert '\n' not in str(e.value)
