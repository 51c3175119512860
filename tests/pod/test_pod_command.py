"""`python -m moe_vision.pod`: errors of one line, and runs if the TPU compiler is installed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from moe_vision.common.paths import ROOT
from moe_vision.pod import devices
from moe_vision.pod.__main__ import main

CONFIG = '--config=configs/digits_k2.py'


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    'arguments, part',
    [
        ([], '--config is missing'),
        ([CONFIG], '--topology is missing'),
        ([CONFIG, '--topology=v5e:15x16'], "Did you mean 'v5e:16x16'?"),
        ([CONFIG, '--topologie=v5e:2x2'], "Did you mean '--topology'?"),
        ([CONFIG, 'v5e:2x2'], "unexpected argument 'v5e:2x2'"),
        ([CONFIG, '--topology=v5e:2x2', '--slices=0'], '--slices is 0; allowed: 1 or more'),
        ([CONFIG, '--topology=v5e:2x2', '--slices=two'], '--slices'),
        ([CONFIG, '--topology=v5e:2x2', '--config.mesh.expart=2'], "'--config.mesh.expert'"),
        (
            [CONFIG, '--topology=v5e:2x2', '--config.mesh.expert=3'],
            'num_experts 8 is not divisible by mesh.expert 3',
        ),
        (['--config=configs/digits_k3.py', '--topology=v5e:2x2'], "'configs/digits_k2.py'"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, part):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and part in err and err.startswith('error: ') and err.count('\n') == 1


def test_without_the_compiler_the_error_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert main([CONFIG, '--topology=v5e:2x2']) == 2
    assert "pip install '.[pod]'" in capsys.readouterr().err


def test_another_compiler_than_jax_wants_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    versions = {'libtpu': '0.0.1', 'jax': '0.10.2'}
    monkeypatch.setattr(importlib.metadata, 'version', versions.__getitem__)
    monkeypatch.setattr(
        importlib.metadata,
        'requires',
        lambda name: ['numpy>=2.0', 'libtpu==0.0.42.*; extra == "tpu"'],
    )
    with pytest.raises(devices.UserError, match=r'libtpu 0\.0\.1 .* needs libtpu 0\.0\.42;'):
        devices.check_installed()
    versions['libtpu'] = '0.0.42.1'
    devices.check_installed()


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs the extra pod')
class TestCompiled:
    """Each run has its own process: jax must be set up before it is imported."""

    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, '-m', 'moe_vision.pod', CONFIG, '--topology=v5e:2x2', *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {'JAX_PLATFORMS': ''},
        )

    def test_slices_exchange_nothing_but_sums(self):
        done = self.run(
            '--json',
            '--slices=2',
            '--config.mesh.expert=2',
            '--config.model.moe.group_size=8',
            '--config.model.args={"widths": (16,), "depth": 2}',
        )
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record['problems'] == [] and record['mesh'] == {'data': 4, 'expert': 2}
        kinds = {c['kind'] for c in record['collectives']}
        assert 'all-reduce of slices' in kinds
        assert kinds <= {
            'all-reduce of slices',
            'all-reduce',
            'reduce-scatter',
            'all-gather',
            'all-to-all',
        }
        exchanged = [c for c in record['collectives'] if c['kind'] == 'all-to-all']
        assert len(exchanged) == 4 and {c['group'] for c in exchanged} == {2}

    def test_a_tiny_network(self):
        done = self.run(
            '--json',
            '--config.mesh.expert=2',
            '--config.model.moe.group_size=8',
            '--config.model.args={"widths": (16,), "depth": 2}',
        )
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record['problems'] == [] and record['mesh'] == {'data': 2, 'expert': 2}
        # one routed layer: slots go out and outputs come back, forward and backward
        assert record['exchanges']['expected'] == {'all-to-all': 4}
        kinds = [c['kind'] for c in record['collectives']]
        assert kinds.count('all-to-all') == 4 and set(kinds) == {'all-to-all', 'all-reduce'}
        exchanged = [
            t for c in record['collectives'] if c['kind'] == 'all-to-all' for t in c['tensors']
        ]
        assert {t['layer'] for t in exchanged} == {'block_1'}
        used = record['memory']
        assert 0 < record['state']['parameters'] < used['arguments'] < used['used'] < record['hbm']

    @pytest.mark.parametrize(
        'override, part',
        [
            (
                '--config.mesh.expert=8',
                'mesh.expert is 8, but there are 4 devices; allowed: 1, 2, 4.',
            ),
            ('--config.train.batch_size=192', 'train.batch_size gives each of 4 devices 48 images'),
        ],
    )
    def test_a_mesh_or_batch_that_does_not_divide_is_refused(self, override, part):
        done = self.run(override)
        assert done.returncode == 2 and part in done.stderr, done.stderr
        assert done.stderr.count('\n') == 1
