"""`python -m moe_vision.pod`: mistakes in one line; where the TPU compiler is, a real program."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_vision.pod import devices
from moe_vision.pod.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = '--config=configs/digits_k2.py'


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize('arguments, told', [
    ([], '--config is missing'), ([CONFIG], '--topology is missing'),
    ([CONFIG, '--topology=v5e:15x16'], "Did you mean 'v5e:16x16'?"),
    ([CONFIG, '--topologie=v5e:2x2'], "Did you mean '--topology'?"),
    ([CONFIG, 'v5e:2x2'], "unexpected argument 'v5e:2x2'"),
    ([CONFIG, '--topology=v5e:2x2', '--slices=0'], '--slices is 0; allowed: 1 or more'),
    ([CONFIG, '--topology=v5e:2x2', '--slices=two'], '--slices'),
    ([CONFIG, '--topology=v5e:2x2', '--config.mesh.expart=2'], "'--config.mesh.expert'"),
    ([CONFIG, '--topology=v5e:2x2', '--config.mesh.expert=3'],
     'num_experts 8 is not divisible by mesh.expert 3'),
    (['--config=configs/digits_k3.py', '--topology=v5e:2x2'], "'configs/digits_k2.py'")])
def test_mistakes_are_told_in_one_line(capsys, arguments, told):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and told in err and err.startswith('error: ') and err.count('\n') == 1


def test_without_the_compiler_the_command_that_installs_it_is_told(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert main([CONFIG, '--topology=v5e:2x2']) == 2
    assert "pip install '.[pod]'" in capsys.readouterr().err


def test_another_compiler_than_jax_wants_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    versions = {'libtpu': '0.0.1', 'jax': '0.10.2'}
    monkeypatch.setattr(importlib.metadata, 'version', versions.__getitem__)
    monkeypatch.setattr(importlib.metadata, 'requires', lambda name: [
        'numpy>=2.0', 'libtpu==0.0.42.*; extra == "tpu"'])
    with pytest.raises(devices.UserError, match=r'libtpu 0\.0\.1 .* belongs to libtpu 0\.0\.42;'):
        devices.check_installed()
    versions['libtpu'] = '0.0.42.1'
    devices.check_installed()


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs the extra pod')
class TestCompiled:
    """In processes of their own: jax is set up before it is imported."""

    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, '-m', 'moe_vision.pod', CONFIG, '--topology=v5e:2x2', *arguments],
            capture_output=True, text=True, env=os.environ | {'JAX_PLATFORMS': ''})

    def test_slices_exchange_nothing_but_sums(self):
        done = self.run('--json', '--slices=2', '--config.mesh.expert=2',
                        '--config.model.moe.group_size=8',
                        '--config.model.args={"widths": (16,), "depth": 2}')
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found['problems'] == [] and found['mesh'] == {'data': 4, 'expert': 2}
        kinds = {c['kind'] for c in found['collectives']}
        assert 'all-reduce of slices' in kinds
        assert kinds <= {'all-reduce of slices', 'all-reduce', 'reduce-scatter', 'all-gather',
                         'all-to-all'}
        exchanged = [c for c in found['collectives'] if c['kind'] == 'all-to-all']
        assert len(exchanged) == 4 and {c['group'] for c in exchanged} == {2}

    def test_a_tiny_network(self):
        done = self.run('--json', '--config.mesh.expert=2', '--config.model.moe.group_size=8',
                        '--config.model.args={"widths": (16,), "depth": 2}')
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found['problems'] == [] and found['mesh'] == {'data': 2, 'expert': 2}
        # one routed layer: slots out and outputs back, and the same backward
        assert found['exchanges']['expected'] == {'all-to-all': 4}
        kinds = [c['kind'] for c in found['collectives']]
        assert kinds.count('all-to-all') == 4 and set(kinds) == {'all-to-all', 'all-reduce'}
        exchanged = [t for c in found['collectives'] if c['kind'] == 'all-to-all'
                     for t in c['tensors']]
        assert {t['layer'] for t in exchanged} == {'block_1'}
        used = found['memory']
        assert 0 < found['state']['parameters'] < used['arguments'] < used['used'] < found['hbm']

    @pytest.mark.parametrize('override, told', [
        ('--config.mesh.expert=8', 'mesh.expert is 8, but there are 4 devices; allowed: 1, 2, 4.'),
        ('--config.train.batch_size=192', 'train.batch_size gives each of 4 devices 48 images')])
    def test_what_does_not_divide(self, override, told):
        done = self.run(override)
        assert done.returncode == 2 and told in done.stderr, done.stderr
        assert done.stderr.count('\n') == 1
