"""A run in a bucket trains, stops, continues, is scored and reported as one in a folder."""

import json
import subprocess
import sys
import time
import types

import fsspec
import jax
import numpy as np
import pytest
import train_cases
from bucket import Bucket, serve
from etils import epath

import moe_vision
from moe_vision import report
from moe_vision.common import claims, files
from moe_vision.config import check as config_lib
from moe_vision.export import folder as export_folder
from moe_vision.export import options
from moe_vision.run_folder import checkpoints, metrics
from moe_vision.training import loop

WORKDIR = 'gs://runs/team/one'
pytestmark = pytest.mark.slow  # whole runs, through a server


@pytest.fixture(scope='module')
def bucket():
    server = serve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TENSORSTORE_GCS_HTTP_URL', f'http://127.0.0.1:{server.server_port}')
        patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'token')
        patch.setenv('EPATH_USE_TF', 'false')
        storage = types.SimpleNamespace(Client=lambda: types.SimpleNamespace(get_bucket=str))
        patch.setitem(sys.modules, 'google.cloud.storage', storage)  # for orbax
        fsspec.register_implementation('gcs', Bucket, clobber=True)
        yield Bucket
    server.shutdown()


@pytest.fixture(scope='module')
def small(data_dir):
    return train_cases.make(
        data_dir, {'train.steps': 6, 'eval.every_steps': 3, 'checkpoint.every_steps': 3}
    )


@pytest.fixture(scope='module')
def runs(bucket, small, tmp_path_factory):
    """The same run in a folder and in the bucket; the second one loses its end and continues.

    (the folder, the objects that the first start wrote, those that the second wrote)
    """
    folder = tmp_path_factory.mktemp('folder')
    setup = loop.Setup(small)
    loop.train(small, str(folder), setup=setup)
    loop.train(small, WORKDIR, setup=setup, profile_steps=(2, 3))
    first = list(bucket.written)
    root = epath.Path(WORKDIR)
    (root / 'checkpoints' / 'latest' / '6').rmtree()
    bucket.written.clear()
    loop.train(small, WORKDIR, setup=setup)
    return folder, first, list(bucket.written)


def test_a_run_in_a_bucket_is_the_run_in_a_folder(runs):
    folder, _, _ = runs
    assert train_cases.rows(folder) == [
        {k: v for k, v in r.items() if k != 'timing'} for r in metrics.read(WORKDIR)
    ]
    for kind in ('latest', 'best'):
        train_cases.assert_same_bits(
            checkpoints.load_raw(WORKDIR, kind), checkpoints.load_raw(str(folder), kind)
        )


def test_no_object_of_ours_is_written_twice_by_one_start_of_a_run(runs):
    """But for the lock, whose owner writes it again and again to show that it lives."""
    for written in runs[1:]:
        ours = [p for p in written if '/checkpoints/' not in p and '/lock.json' not in p]
        assert any(p.endswith('/lock.json') for p in written)
        assert len(ours) == len(set(ours)) and any('/events/' in p for p in ours)
        assert any(p.endswith('result.json') for p in ours)


def test_nothing_lands_in_the_working_directory(runs):
    assert not epath.Path('gs:').exists()
    assert files.absolute(epath.Path(WORKDIR)) == epath.Path(WORKDIR)


def test_a_run_is_scored_and_reported_there(runs, small, bucket):
    scores = loop.evaluate(small, WORKDIR)
    assert scores['images'] == 360
    assert config_lib.load(WORKDIR) == small
    page = report.write(WORKDIR)
    assert str(page) == f'{WORKDIR}/report.html' and '<html' in page.read_text()
    assert any('xplane' in p for p in bucket.store)


def test_a_run_starts_from_the_weights_of_one_in_a_bucket(runs, data_dir):
    other = train_cases.make(data_dir, {'init_from': WORKDIR, 'train.steps': 6})
    state = loop.Setup(other).fresh_state()
    scored = checkpoints.scored(checkpoints.load_raw(WORKDIR))
    train_cases.assert_same_bits(jax.device_get(state.params), scored)


def test_a_run_there_is_exported_to_there(runs, bucket):
    out = 'gs://runs/team/out'
    request = options.Request(WORKDIR, out, ('cpu',), ('evaluation',), '', best=False)
    sizes = export_folder.write(request)
    first, last = ([p for p in bucket.written if '/team/out/' in p][n] for n in (0, -1))
    assert first.endswith('model.safetensors') and last.endswith('model.json')  # so it is whole
    assert sizes['evaluation.cpu.jax_export'] > 1000 and len(sizes) == 2
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    ours, theirs = (moe_vision.load(place)(images) for place in (WORKDIR, out))
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


@pytest.fixture
def two(bucket, monkeypatch):
    """Two claimants of one folder in the bucket, who take each other to be on another machine."""
    monkeypatch.setattr(claims, 'SETTLE', 0.05)
    folder = epath.Path('gs://runs/claims')
    with claims.Claims(folder, 0.05, 0.4) as a, claims.Claims(folder, 0.05, 0.4) as b:
        b._machine = 'elsewhere'
        b._owner['host'] = 'elsewhere'
        yield a, b


def test_one_process_trains_in_a_folder_of_a_bucket(two):
    a, b = two
    waited = []
    assert a.take('lock') and not b.take('lock')
    assert not b.take_or_watch('lock', lambda: waited.append(1))  # a gives signs of life
    assert a.holds('lock') and waited == [1]
    a.release('lock')
    assert b.take('lock') and not a.take('lock')


def test_a_lock_in_a_bucket_whose_owner_died_elsewhere_is_taken_over(two):
    a, b = two
    b.take('lock')
    b._held.clear()  # it gives no sign of life any more
    start = time.monotonic()
    assert a.take_or_watch('lock') and time.monotonic() - start > 0.4
    assert a.holds('lock') and not b.holds('lock')


def test_a_lock_in_a_bucket_whose_owner_died_here_is_free(two):
    done = subprocess.Popen([sys.executable, '-c', ''])
    done.wait()
    owner = {'pid': done.pid, 'started': '1', 'host': claims._machine(), 'token': 'x'}
    (epath.Path('gs://runs/claims') / 'lock.json').write_text(json.dumps(owner))
    assert two[0].take('lock') and two[0].holds('lock')


def test_who_wrote_last_holds_a_lock_in_a_bucket(two, monkeypatch):
    """Both have looked before either wrote."""
    a, b = two
    sleep = time.sleep

    def meanwhile(seconds):
        monkeypatch.setattr(claims.time, 'sleep', sleep)
        b._path('lock').write_text(b._own())

    monkeypatch.setattr(claims.time, 'sleep', meanwhile)
    assert not a.take('lock') and not a.holds('lock')
