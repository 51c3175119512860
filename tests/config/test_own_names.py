"""Names like 'package.module:Class' of a user's own: where they may stand, and what goes wrong."""

import json

import pytest
from ml_collections import ConfigDict

from configs import digits_k2, workdir
from moe_vision.common.errors import UserError
from moe_vision.config import check as config_lib
from moe_vision.config import registry, source, trust

CONFIG = 'configs/digits_k2.py'
LOSS = 'own_losses.sums:l1'
OWN_TRANSFORM = """
import dataclasses

from moe_vision.transforms.types import Transform


class Mine(Transform):
    @dataclasses.dataclass(frozen=True)
    class Args:
        rate: float = 1.0
        name: str = 'x'
"""


@pytest.fixture(autouse=True)
def own_package(tmp_path, monkeypatch):
    """A package without jax on the path: a loss, and modules that fail."""
    folder = tmp_path / 'own_losses'
    folder.mkdir()
    for name, text in {
        '__init__': '',
        'sums': 'def l1(routing, context, num_experts):\n    return 0\n',
        'lacks': 'import no_such_dependency\n',
        'fails': 'x = 1\nraise ValueError("no such luck\\nat all")\n',
        'typo': 'def f(:\n',
        'mine': OWN_TRANSFORM,
    }.items():
        (folder / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


def of_command_line(*args):
    common, opened, others = source.take_overrides(args)
    assert not others
    return config_lib.check(source.load(CONFIG, common, opened))


def of_file(tmp_path, losses):
    (tmp_path / 'mine.py').write_text(
        'from configs import digits_k2\n\n\ndef get_config():\n    c = digits_k2.get_config()\n'
        f'    c.model.moe.losses = {losses!r}\n    return c\n'
    )
    return config_lib.check(source.load(str(tmp_path / 'mine.py')))


@pytest.mark.parametrize(
    'args',
    [
        [f"--config.model.moe.losses={{'{LOSS}': 0.5}}"],
        ["--config.model.moe.losses={'own_losses/sums:l1': 0.5}"],
        ['--config.model.moe.losses={}', f'--config.model.moe.losses.{LOSS}=0.5'],
    ],
)
def test_the_command_line_takes_a_loss_by_its_path(args):
    assert of_command_line(*args).model.moe.losses == {LOSS: 0.5}


def test_arguments_of_a_transform_are_set_one_by_one():
    own = 'own_losses.mine:Mine'
    config = of_command_line(
        f'--config.train.transforms.{own}.rate=0.5',
        '--config.train.transforms.freeze_router.fraction=0.25',
    )
    found = config.train.transforms
    assert found[own].rate == 0.5 and found[own].name == 'x'
    assert found['freeze_router'] == registry.FreezeRouterArgs(fraction=0.25)
    assert config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config)))) == config


def test_a_config_file_writes_slashes_and_is_told_so(tmp_path):
    losses = of_file(tmp_path, {'own_losses/sums:l1': 0.5, 'z': 0.1}).model.moe.losses
    assert losses == {LOSS: 0.5, 'z': 0.1}
    with pytest.raises(UserError, match=r"line 6: .*accept dots.*slashes.*'my/losses:l1'"):
        of_file(tmp_path, {LOSS: 0.5})


def test_a_run_with_such_a_loss_is_read_again_if_its_module_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, '_trusted', set())
    config = of_command_line(f"--config.model.moe.losses={{'{LOSS}': 0.5}}")
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'config.json').write_text(json.dumps({'config': config_lib.to_dict(config)}))
    with pytest.raises(UserError, match='--trust=own_losses.sums'):
        config_lib.load(str(run))
    trust.allow('own_losses.sums')
    assert config_lib.check(workdir.get_config(str(run))) == config


@pytest.mark.parametrize('name', ['own_losses/sums:l1', 'own_losses/fails:x', '../own_losses:x'])
def test_slashes_in_a_folders_config_import_nothing(name, tmp_path):
    """They are turned into dots only where the config is code."""
    c = digits_k2.get_config().to_dict()
    c['model']['moe']['losses'] = {name: 0.5}
    (tmp_path / 'config.json').write_text(json.dumps({'config': c}))
    with pytest.raises(UserError, match='unknown loss|must be written|may not import'):
        config_lib.load(str(tmp_path))


@pytest.mark.parametrize(
    'path, parts',
    [
        ('nowhere:Such', ["no module 'nowhere'", 'PYTHONPATH']),
        ('nowhere.deep.down:Such', ["no module 'nowhere'", 'PYTHONPATH']),
        ('own_losses.nothing:x', ["no module 'own_losses.nothing'", 'PYTHONPATH']),
        ('own_losses.lacks:x', ["needs the module 'no_such_dependency'"]),
        ('own_losses.fails:x', ['ValueError: no such luck', 'fails.py, line 2']),
        ('own_losses.typo:f', ['SyntaxError', 'typo.py, line 1']),
        ('own_losses.sums:l2', ["has no 'l2'", "'l1'"]),
        ('own_losses.sums', ['unknown loss']),
    ],
)
def test_a_module_that_cannot_be_had_is_one_line(path, parts):
    with pytest.raises(UserError) as error:
        registry.entry('loss', registry.LOSSES, path)
    assert '\n' not in str(error.value)
    for part in parts:
        assert part in str(error.value), error.value


@pytest.mark.parametrize(
    'override', ["router_args={'a.b': 1}", 'losses={1: 2}', "losses={'a.b': 1}", 'router_args=3']
)
def test_what_a_config_cannot_hold_is_one_line(override):
    with pytest.raises(UserError) as error:
        of_command_line(f'--config.model.moe.{override}')
    assert override[:4] in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'kind, table, name, base',
    [
        ('backbone', registry.BACKBONES, 'SubConv', 'conv'),
        ('backbone', registry.BACKBONES, 'SubVit', 'vit'),
        ('expert', registry.EXPERTS, 'Doubled', 'mlp'),
        ('router', registry.ROUTERS, 'IgnoresValid', 'top_k'),
        ('router', registry.ROUTERS, 'IgnoresValidSoftly', 'soft'),
    ],
)
def test_a_subclass_has_what_its_base_has_in_the_table(kind, table, name, base):
    found = registry.entry(kind, table, f'own_methods:{name}')
    for field in ('args', 'needs', 'ignores', 'supplies', 'unit', 'expert', 'remat'):
        assert getattr(found, field) == getattr(table[base], field)


def test_names_come_back_as_they_were():
    values = {'a': {'x.y:z': 1, 'b/c': 2}, 'k': [1], 'p.q:r': {'x:y': 3}}
    assert source.unescaped(ConfigDict(source.escaped(values)).to_dict()) == values
