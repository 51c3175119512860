"""Damaged checkpoints are skipped and named in the log; the others are restored exactly."""

import dataclasses
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases

from moe_vision.common.errors import UserError
from moe_vision.run_folder.checkpoints import Checkpoints, load_raw


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    opt_state: tuple
    ema: dict


def state(n: int) -> State:
    w = jax.random.normal(jax.random.key(n), (40, 50))
    return State({'dense': {'kernel': w}}, (jnp.int32(n), {'mu': w * 2}, ()), {})


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
        saved.save(30, state(31))
    step, restored = restore(workdir)
    assert step == 30
    train_cases.assert_same_bits(restored, state(31))


def test_a_best_checkpoint_after_the_restored_step_is_saved_again(workdir):
    truncate(workdir / 'checkpoints' / 'latest' / '30')
    restore(workdir)
    assert train_cases.steps(workdir, 'best') == []
    with Checkpoints(str(workdir), keep=3) as saved:
        saved.save_best(25, state(26))
    train_cases.assert_same_bits(load_raw(str(workdir), 'best')['params'], state(26).params)


def test_a_best_checkpoint_without_any_other_is_replaced(workdir):
    shutil.rmtree(workdir / 'checkpoints' / 'latest')
    assert restore(workdir) is None
    with Checkpoints(str(workdir), keep=3) as saved:
        saved.save_best(25, state(26))
    train_cases.assert_same_bits(load_raw(str(workdir), 'best')['params'], state(26).params)


def test_when_all_are_damaged_the_error_is_one_line(workdir, caplog):
    for step in (10, 20, 30):
        truncate(workdir / 'checkpoints' / 'latest' / str(step))
    with pytest.raises(UserError, match=r'none of the checkpoints \[30, 20, 10\]') as e:
        restore(workdir)
    assert '\n' not in str(e.value)
    assert train_cases.steps(workdir) == [10, 20, 30]  # nothing was deleted
    assert train_cases.steps(workdir, 'best') == [25]


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
    s = State(s, (), {})
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
