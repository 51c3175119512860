"""`python -m moe_vision.surgery` writes an ordinary run's folder before its first step."""

import json

import jax
import numpy as np
import pytest
import timm_logits
import train_cases
import weight_files

import moe_vision
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.run_folder import checkpoints
from moe_vision.surgery.__main__ import main
from moe_vision.training import continuing
from moe_vision.training.setup import Setup

SHAPES = json.loads(timm_logits.FILE.read_text())['vit']['shapes'] | {
    'patch_embed.proj.weight': [32, 1, 4, 4],
    'pos_embed': [1, 5, 32],
    'head.weight': [10, 32],
    'head.bias': [10],
}


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    arrays = {n: timm_logits.drawn(n, s) for n, s in SHAPES.items()}
    return weight_files.safetensors(tmp_path_factory.mktemp('w') / 'x.safetensors', arrays)


def flags(data_dir, **more):
    keys = {
        'dataset.data_dir': data_dir,
        'model.name': 'vit',
        'model.args': "{'width':32,'depth':2,'heads':4,'patch_size':4,'pool':'token'}",
        'model.moe.placement': 'none',
        'model.moe.num_experts': 8,
        'train.ema_decay': 0.5,
    }
    return [f'--config.{k}={v}' for k, v in (keys | more).items()]


@pytest.fixture(scope='module')
def made(file, data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp('made') / 'w'
    command = ['import', f'--from={file}', '--config=configs/base.py', f'--workdir={folder}']
    assert main(command + flags(data_dir)) == 0
    return folder


def test_the_result_is_a_run_that_every_command_reads(made, file):
    model = moe_vision.load(str(made))
    assert model.step == 0 and model.config.model.args.activation == 'gelu_erf'
    kernel = np.asarray(model.variables['params']['block_1']['in_kernel'])
    np.testing.assert_array_equal(kernel, timm_logits.drawn('blocks.1.mlp.fc1.weight', (128, 32)).T)
    assert model(np.zeros((2, 8, 8, 1), np.uint8)).probabilities.shape == (2, 10)
    about = json.loads((made / 'surgery.json').read_text())
    assert (about['kind'], about['from']) == ('import', file) and about['args']['head'] == 'keep'
    assert any('took 38 arrays' in line for line in about['told'])


def test_training_goes_on_from_it_and_init_from_reads_it(made):
    config = config_lib.load(str(made))
    setup = Setup(config)
    saved = checkpoints.load_raw(str(made))
    with checkpoints.Checkpoints(str(made), 1) as folder:
        step, state = folder.restore_newest(setup.abstract)
    assert step == 0
    train_cases.assert_same_bits(jax.device_get(state.params), saved['params'])
    train_cases.assert_same_bits(state.ema, state.params)
    continuing.check(str(made), config, setup.info)
    longer = config_lib.from_dict(config_lib.to_dict(config) | {'seed': 3})
    with pytest.raises(UserError, match='holds the run of another config'):
        continuing.check(str(made), longer, setup.info)


def test_mistakes_are_told_before_anything_is_written(made, file, data_dir, tmp_path, capsys):
    folder = tmp_path / 'w'
    rest = ['--config=configs/base.py', f'--workdir={folder}', *flags(data_dir)]

    def refused(*words, kind='import', others=rest, source=file):
        assert main([kind, f'--from={source}', *others]) == 2
        told = capsys.readouterr().err
        for word in words:
            assert word in told, told
        assert not folder.exists()

    refused("unknown kind of surgery 'imports'. Did you mean 'import'?", kind='imports')
    refused('there is no such file', source='/nowhere.safetensors')
    refused("surgery 'import'", others=[*rest, '--mean=a'])
    refused('--workdir is missing', others=rest[:1])
    refused('which holds a run', others=[rest[0], f'--workdir={made}'])
    wide = [a.replace("'depth':2", "'depth':1") for a in rest]
    refused(
        'blocks.1.attn.qkv.weight (96, 32)', '12 arrays do not fit, as the table above', others=wide
    )
