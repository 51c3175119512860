"""The profile of chosen steps is written, however the run ends."""

import contextlib
import tempfile
from pathlib import Path

import jax
import pytest
import train_cases

from moe_vision.processes.stop import Stopped
from moe_vision.training import loop, profiling
from moe_vision.training.profiling import Profile


def test_a_run_that_ends_in_profiled_steps_leaves_their_profile(setup, config, tmp_path):
    """And the next run can profile, too: only one profile runs at a time."""
    for name in ('one', 'two'):
        folder = tmp_path / name
        with pytest.raises(Stopped):
            loop.train(
                config,
                str(folder),
                profile_steps=(2, 9),
                setup=setup,
                stop=train_cases.StopAt(2),
            )
        assert list((folder / 'profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize('ends', ['after its last step', 'before it', 'without a place'])
def test_what_is_profiled_for_a_bucket_is_copied_and_deleted(tmp_path, monkeypatch, caplog, ends):
    local, workdir = tmp_path / 'local', tmp_path / 'bucket'
    local.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(local))
    monkeypatch.setattr(profiling, 'in_bucket', lambda path: True)
    running = []

    def write():
        folder = Path(running.pop()) / 'plugins' / 'profile'
        folder.mkdir(parents=True)
        (folder / 'host.xplane.pb').write_bytes(b'steps')

    monkeypatch.setattr(jax.profiler, 'start_trace', running.append)
    monkeypatch.setattr(jax.profiler, 'stop_trace', write)
    if ends == 'without a place':
        workdir.write_text('a file')
    with contextlib.suppress(Stopped), Profile((2, 3), str(workdir), 0, 9) as profile:
        for step in (1, 2, 3, 4):
            profile.before(step)
            if step == 3 and ends == 'before it':
                raise Stopped
            profile.after(step, ())
    assert not running and not list(local.iterdir())
    if ends == 'without a place':
        assert 'no profile' in caplog.text
    else:
        copied = workdir / 'profile' / 'plugins' / 'profile' / 'host.xplane.pb'
        assert copied.read_bytes() == b'steps'
