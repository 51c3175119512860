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
from moe_vision.surgery import runs
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
    assert any('took 40 arrays' in line for line in about['told'])


def test_training_goes_on_from_it_with_its_config_alone(made):
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


def test_help_shows_the_arguments_of_a_kind(capsys):
    for arguments, words in (
        (['--help'], ['docs/surgery.md describes them all', 'Kinds: import, upcycle']),
        (['upcycle', '--help'], ['--router_scale', 'default 1.0', '--workdir']),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        told = capsys.readouterr().out
        assert all(word in told for word in words)


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
    refused("mean is 'a'; it must be a list", others=[*rest, '--mean=a'])
    refused('--workdir is missing', others=rest[:1])
    refused('which holds a run', others=[rest[0], f'--workdir={made}'])
    wide = [a.replace("'depth':2", "'depth':1") for a in rest]
    refused(
        'blocks.1.attn.qkv.weight (96, 32)', '12 arrays do not fit, as the table above', others=wide
    )


ROUTED = {
    'model.moe.placement': 'every_2',
    'model.moe.num_experts': 4,
    'model.moe.group_size': 5,
    'model.moe.losses': {},
    'model.moe.router_args': "{'renormalize':True}",
}


@pytest.fixture(scope='module')
def upcycled(made, data_dir, tmp_path_factory):
    """(folder, what was printed is in surgery.json) of an upcycled import, with carried moments."""
    folder = tmp_path_factory.mktemp('upcycled') / 'w'
    command = ['upcycle', f'--from={made}', '--config=configs/base.py', f'--workdir={folder}']
    assert main([*command, '--optimizer=carried', *flags(data_dir, **ROUTED)]) == 0
    return folder


def test_an_upcycled_import_predicts_as_the_import(made, upcycled):
    """It has the gelu of the import, which its own config file does not name."""
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    dense, routed = moe_vision.load(str(made)), moe_vision.load(str(upcycled))
    assert routed.config.model.moe.expert_args.activation == 'gelu_erf'
    before, after = (m(images).probabilities for m in (dense, routed))
    np.testing.assert_allclose(after, before, atol=1e-6)
    saved = checkpoints.load_raw(str(upcycled))
    assert saved['params']['block_1']['experts']['in_kernel'].shape == (4, 32, 128)
    train_cases.assert_same_bits(saved['ema'], saved['params'])


@pytest.mark.slow
def test_experts_and_checkpoints_go_on_from_there(upcycled, data_dir, tmp_path):
    more = flags(data_dir, **ROUTED | {'model.moe.num_experts': 8, 'model.moe.k': 4})
    rest = ['--config=configs/base.py', *more]
    wide = tmp_path / 'wide'
    kind = ['expand', f'--from={upcycled}', f'--workdir={wide}', '--frozen=True']
    assert main([*kind, *rest]) == 0
    config = config_lib.load(str(wide))
    assert config.train.transforms['freeze_experts'].experts == (0, 1, 2, 3)
    mean = tmp_path / 'mean'
    keys = ['--config=configs/base.py', *flags(data_dir, **ROUTED)]
    assert main(['average', f'--from={upcycled},{upcycled}', f'--workdir={mean}', *keys]) == 0
    one, two = (checkpoints.load_raw(str(w)) for w in (upcycled, mean))
    train_cases.assert_same_bits(one['params'], two['params'])


PARTS = ROUTED | {
    'model.moe.k': 4,
    'model.moe.hidden': 32,
    'model.moe.router_args': "{'gate':'top_k_softmax','gate_scale':4.0}",
}


def test_a_block_is_split_by_what_fires_on_images_and_compressed(made, data_dir, tmp_path):
    """Parts add up to their block, and experts of full rank are what they were."""
    split, low = tmp_path / 'split', tmp_path / 'low'
    rest = ['--config=configs/base.py', *flags(data_dir, **PARTS)]
    args = ['--by=coactivation', '--samples=40', '--router_scale=0.0']
    assert main(['split', f'--from={made}', f'--workdir={split}', *args, *rest]) == 0
    full = "{'parameter_ratio':9.0,'columns':0.0}"
    rest += ['--config.model.moe.expert=low_rank_mlp', f'--config.model.moe.expert_args={full}']
    assert main(['compress', f'--from={split}', f'--workdir={low}', '--samples=8', *rest]) == 0
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    before, parts, after = (
        moe_vision.load(str(w))(images).probabilities for w in (made, split, low)
    )
    np.testing.assert_allclose(parts, before, atol=1e-5)
    np.testing.assert_allclose(after, before, atol=1e-5)
    about = json.loads((split / 'surgery.json').read_text())
    assert about['args']['samples'] == 40 and 'block_1: 4 experts of 32' in about['told'][0]


def test_networks_that_compute_otherwise_have_no_mean(data_dir, tmp_path, capsys):
    for name, activation in (('a', 'gelu'), ('b', 'gelu_erf')):
        args = {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4, 'activation': activation}
        changes = {'model.name': 'vit', 'model.args': args, 'model.moe.placement': 'none'}
        train_cases.saved(train_cases.make(data_dir, changes, start={}), tmp_path / name)
    sources = f'--from={tmp_path}/a,{tmp_path}/b'
    command = ['average', sources, '--config=configs/base.py', f'--workdir={tmp_path}/w']
    assert main(command + flags(data_dir)) == 2
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and not (tmp_path / 'w').exists()
    assert "model.args.activation 'gelu' -> 'gelu_erf'" in told


def test_experts_are_chosen_by_validation_images(data_dir, tmp_path):
    """At the last validation of training, or where there was none, by a file that scored them."""
    train_cases.saved(train_cases.make(data_dir), tmp_path)
    load = {'split': 'test', 'layers': {'head': {'load': [0.9, 0.1]}}}
    (tmp_path / 'evaluation.json').write_text(json.dumps(load))
    assert runs.read(str(tmp_path)).scored.about['validation'] == {}
    own = load | {'split': 'validation'}
    (tmp_path / 'evaluation-validation.json').write_text(json.dumps(own))
    assert runs.read(str(tmp_path)).scored.about['validation'] == load['layers']
    (tmp_path / 'metrics').mkdir()
    row = {'step': 3, 'split': 'validation', 'layers': {'head': {'load': [0.2, 0.8]}}}
    rows = [row, row | {'step': 2, 'layers': {}}, row | {'step': 9, 'split': 'train'}]
    text = '\n'.join(json.dumps(r | {'epoch': 1.0, 'loss': 1.0, 'accuracy': 0.5}) for r in rows)
    (tmp_path / 'metrics/000000000-until-000000009.jsonl').write_text(text + '\n')
    assert runs.read(str(tmp_path)).scored.about['validation'] == row['layers']


def test_a_config_names_the_kind(made, upcycled, data_dir):
    """What the arm of a study does: `init_from` with a kind begins as the command's result."""
    start = {
        'dataset.data_dir': data_dir,
        'model.name': 'vit',
        'model.args': {
            'width': 32,
            'depth': 2,
            'heads': 4,
            'patch_size': 4,
            'pool': 'token',
            'activation': 'gelu_erf',
            'exact_variance': True,
        },
        'model.moe.expert_args': {'activation': 'gelu_erf'},
        **ROUTED,
        'model.moe.router_args': {'renormalize': True},
        'init_from': str(made),
        'init_kind': 'upcycle',
        'init_args': {'router_scale': 0.5},
    }
    config = train_cases.make(data_dir, start, start={})
    assert config.init_args.router_scale == 0.5
    state = Setup(config).fresh_state()
    theirs = checkpoints.load_raw(str(upcycled))['params']
    train_cases.assert_same_bits(
        jax.device_get(state.params['block_1']['experts']), theirs['block_1']['experts']
    )
    ours = np.asarray(state.params['block_1']['router']['kernel'])
    np.testing.assert_allclose(ours, theirs['block_1']['router']['kernel'] / 2, rtol=1e-6)

    def refused(match, **changes):
        with pytest.raises(UserError, match=match):
            changed = train_cases.make(data_dir, start | changes, start={})
            Setup(changed).fresh_state()

    args = {n: v for n, v in start['model.args'].items() if n != 'activation'}
    refused("needs model.args.activation 'gelu' -> 'gelu_erf'", **{'model.args': args})
    refused('reads a file; python -m moe_vision.surgery import', init_kind='import', init_args={})
    refused('init_from names no run', init_from='')
    refused("init_kind is ''", init_kind='')
    refused("unknown kind of surgery \\(init_kind\\) 'upcycled'", init_kind='upcycled')
    plain = {
        'init_kind': '',
        'init_args': {},
        'model.moe.placement': 'none',
        'model.moe.num_experts': 8,
        'model.moe.group_size': 64,
        'model.moe.expert_args': {},
        'model.moe.losses': {'importance': 0.005, 'load': 0.005},
        'model.moe.router_args': {'noise': 'gaussian'},
    }
    refused(
        'was made with model.args.activation=gelu_erf, and here it is gelu; add',
        **plain | {'model.args': args},
    )
