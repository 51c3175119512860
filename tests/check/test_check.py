"""What methods must hold: every line of the tables does, and each mistake is told in one line."""

import dataclasses
import os
import subprocess
import sys

import model_cases
import pytest
from slow import except_for

import input_pipeline
from moe_vision.check import routers, transforms, values
from moe_vision.check.__main__ import main
from moe_vision.check.own import check
from moe_vision.common.errors import UserError
from moe_vision.common.paths import ROOT
from moe_vision.common.place import Place
from moe_vision.config import check as config_lib
from moe_vision.config import registry, source
from moe_vision.config.command_line import exit_code
from moe_vision.layers.moe import make_router
from moe_vision.leverage.__main__ import main as leverage
from moe_vision.study.__main__ import main as study
from moe_vision.training import preflight

ROUTERS = ('top_k', 'bias_balanced', 'null_experts', 'expert_choice', 'dynmole', 'rmoe', 'soft')


@pytest.mark.parametrize('name', except_for(ROUTERS, registry.ROUTERS))
def test_routers_of_the_table(name):
    routers.router(name)


@pytest.mark.parametrize(
    'name, args',
    [('ssr', {'probability': 0.5}), ('top_k', {'second_choice': 'random_expert'})],
)
def test_routers_that_draw_more_often_than_they_do_by_default(name, args):
    routers.router(name, args)


@pytest.mark.parametrize('name', registry.LOSSES)
def test_losses_of_the_table(name):
    values.loss(name)


@pytest.mark.parametrize('name', registry.EXPERTS)
def test_experts_of_the_table(name):
    values.expert(name)


@pytest.mark.parametrize('name', except_for(('conv', 'vit'), registry.BACKBONES))
def test_backbones_of_the_table(name):
    values.backbone(name, model_cases.SMALL[name], (8, 8, 3))


TRANSFORM_ARGS = {'freeze_experts': {'experts': (1, 3)}}  # of those that need some


@pytest.mark.parametrize('name', registry.TRANSFORMS)
def test_transforms_of_the_table(name):
    transforms.transform(name, TRANSFORM_ARGS.get(name))


RIGHT = [
    ('router', 'Right'),
    ('loss', 'l1'),
    ('router', 'ReadsExperts'),
    ('router', 'Residual'),
    ('loss', 'draws'),
    ('loss', 'of_labels'),
    ('expert', 'Doubled'),
    ('expert', 'Nothing'),
    ('expert', 'Scaled'),
    ('expert', 'StackedOnly'),
    ('transform', 'Damps'),
    ('transform', 'Mixes'),
]
WRONG = [  # kind, name in own_methods, parts of the error
    ('router', 'GateOfWrongRank', ['Changed.choose: gate', 'float32[3, 8]', 'float32[3, 8, 2]']),
    ('router', 'GateOfWrongType', ['gate is bfloat16[3, 8, 2]', 'expected float32']),
    ('router', 'IdsOfWrongRank', ['expert_of_choice is int32[3, 8];', 'int32[3, 8, 2], [G, T, K]']),
    ('router', 'IdsAreFloats', ['expert_of_choice is float32', 'expected int32[3, 8, 2]']),
    ('router', 'ActiveOfOneChoice', ['active is bool[3, 8, 1]', 'expected bool[3, 8, 2]']),
    ('router', 'ProbsOfTooFew', ['probs is float32[3, 8, 3]', '[3, 8, 4]']),
    ('router', 'NoLogits', ['logits is NoneType', 'float32[3, 8, 4]']),
    ('router', 'CarryOfTokens', ['carry has an array of shape [3]', '[3, 8]']),
    ('router', 'ScalarCombine', ['combine is float32[]', '[G, T, E, P]']),
    ('router', 'ReturnsNone', ['ReturnsNone.choose returned NoneType', 'a Routing']),
    ('router', 'Raises', ['KeyError', 'kernle', 'own_methods.py, line']),
    ('router', 'IgnoresValid', ['ignores context.valid', 'active is not False for padding']),
    ('router', 'IgnoresValidSoftly', ['ignores context.valid', 'dispatch is not 0']),
    ('router', 'SeesOtherGroups', ['gate of a group changes', 'another group']),
    ('router', 'IdsBeyondAll', ['expert_of_choice holds 1', 'allowed are 0 to 3']),
    ('router', 'LoopOfUnknownLength', ['FLOPs cannot be counted']),
    ('router', 'NoProbabilities', ['probs are no probabilities']),
    ('router', 'StateGrows', ["update_state: 'bias' is float32[8]", 'float32[4]']),
    ('router', 'StateOfOtherType', ["'bias' is int32[4]", 'expected float32[4]']),
    ('router', 'StateForgotten', ['update_state returned a NoneType', "['bias']"]),
    ('router', 'StateOfOtherNames', ["['bias', 'more']", "expected ['bias']"]),
    ('router', 'PlainArgs', ['Args is no dataclass', '@dataclasses.dataclass(frozen=True)']),
    ('router', 'ArgsWithWrongAnnotation', ['annotation of Args', 'Tensor']),
    ('router', 'MutableArgs', ['Args can be changed', 'frozen=True']),
    ('router', 'ChoosesTwice', ['chooses one expert twice']),
    ('router', 'DrawsWhenSettled', ['gate is drawn where routes are settled', 'unless_settled']),
    ('router', 'ObservesPadding', ["observe: 'sure' changes with padding"]),
    ('router', 'ObservesANumber', ["observe: 'sure' is float32[]", '[G, ...]']),
    ('router', 'TakesTheLength', ['own_methods.py, line', 'x.shape']),
    ('router', 'ForgetsTheSecondLayer', ["KeyError: 'residual'", 'own_methods.py, line']),
    ('router', 'KeepsAnArray', ['UnexpectedTracerError', 'keep no array on self']),
    ('router', 'BranchesOnAValue', ['TracerBoolConversionError', 'jnp.where(']),
    ('router', 'LacksArgs', ["no attribute 'temperature'", 'dataclass Args of the class']),
    (
        'router',
        'LacksTheState',
        ['takes 4 positional', 'choose(self, params, state, features, context).'],
    ),
    ('router', 'ParamsWithoutInitializer', ["params: 'kernel' is (16, 4)", '(shape, initializer)']),
    ('router', 'ParamsOfAList', ['params returned a list', '(shape, initializer)']),
    ('router', 'FailsElsewhere', ["router 'own_methods:FailsElsewhere': KeyError: 'fairness'"]),
    ('router', 'NoRouter', ['class', 'NoRouter', 'subclass of moe_vision.routing.router.Router']),
    ('router', 'l1', ['function l1', 'subclass of']),
    ('router', 'Righ', ["has no 'Righ'", "'Right'"]),
    ('loss', 'scalar', ['float32[]', 'expected float32[3], one value per group, [G]']),
    ('loss', 'per_token', ['float32[3, 8]', 'float32[3]']),
    ('loss', 'integer', ['int32[3]', 'expected float32[3]']),
    ('loss', 'nothing', ['NoneType', 'float32[3]']),
    ('loss', 'counts_padding', ['changes with the routes of padding', 'context.valid']),
    ('loss', 'over_groups', ['another group']),
    ('loss', 'not_finite', ['not finite']),
    ('loss', 'two_arguments', ['takes 2 positional', 'two_arguments(routing, context, view)']),
    ('loss', 'needs_what_nobody_has', ["needs 'banks'", 'supplies', 'bank, labels']),
    ('loss', 'reads_experts_unasked', ["'NoneType' object", 'own_methods.py, line']),
    ('loss', 'not_callable', ['is 3.0', 'a function']),
    ('expert', 'AppliesOtherwise', ['apply', 'apply_stacked', 'agree']),
    ('expert', 'WrongWidth', ['WrongWidth.apply', '[5, 15]', '[5, 16]']),
    ('expert', 'InFloat32', ['InFloat32.apply is float32', 'expected bfloat16']),
    ('expert', 'ShapesWithoutInitializer', ["shapes: 'w' is (16, 16)", '(shape, initializer)']),
    ('expert', 'MixesExperts', ['apply_stacked does not', 'mix experts']),
    ('expert', 'MixesTokens', ['changes with another token']),
    ('expert', 'NoRouter', ['subclass of moe_vision.layers.experts.Expert']),
    ('backbone', 'LogitsAlone', ['returned a', 'expected (logits']),
    ('backbone', 'LogitsInHalf', ['logits is bfloat16', 'expected float32']),
    ('backbone', 'TooManyLogits', ['logits is float32[4, 8]', '[4, 4]']),
    ('backbone', 'ForgetsReports', ['reports no routed layer', 'infos.by_layer']),
    ('backbone', 'NoRouter', ['subclass of flax']),
    ('backbone', 'OddUnit', ["unit is 'patches'", "'image' and 'patch'"]),
    ('backbone', 'NoTokens', ['no tokens(height, width)']),
    ('transform', 'UpdatesOfWrongShape', ['updates: block_0/bias is float32[]', 'float32[6]']),
    ('transform', 'UpdatesOfWrongType', ['block_0/bias is bfloat16[6]', 'as the parameter']),
    ('transform', 'ForgetsAnUpdate', ['updates are a dict', 'which differ in block_0/bias']),
    ('transform', 'ForgetsTheState', ['update returned a dict', '(updates, state)']),
    ('transform', 'TransformStateGrows', ['state: seen is float32[2]', 'float32[1]']),
    ('transform', 'StateOfBools', ['init: done is bool', 'int32']),
    ('transform', 'MovesOfWrongShape', ['moves of block_0/bias is bool[7]', 'broadcast to [6]']),
    ('transform', 'MovesByHalf', ['moves of block_0/bias is float32[6]', 'bools']),
    ('transform', 'MovesForgotten', ['moves of block_0/bias is NoneType', 'expected True']),
    ('transform', 'BranchesOnTheStep', ['TracerBoolConversionError', 'own_methods.py, line']),
    ('transform', 'TakesNoState', ['update(self, updates', 'unexpected keyword']),
    ('transform', 'Unsettles', ['settled is True and then False', 'state']),
    ('transform', 'SettlesByLayer', ['settled is bool[2]', 'expected bool[]']),
    ('transform', 'NotFiniteUpdate', ['not finite after 8 steps']),
    ('transform', 'NoRouter', ['subclass of moe_vision.transforms.types.Transform']),
]
ids = [name for _, name, *_ in WRONG]


@pytest.mark.parametrize('kind, name', RIGHT)
def test_right_methods_pass(kind, name):
    module = {'transform': transforms, 'router': routers}.get(kind, values)
    getattr(module, kind)(f'own_methods:{name}')


@pytest.mark.parametrize('kind, name, parts', WRONG, ids=ids)
def test_the_command_tells_a_mistake_in_one_line(kind, name, parts, capsys):
    args = "--args={'axis': 'batch'}" if name == 'IgnoresValidSoftly' else None
    if kind == 'backbone':
        args = "--args={'widths': (8,), 'depth': 1}" if name != 'NoRouter' else None
    assert main([f'--{kind}=own_methods:{name}', *([args] if args else [])]) == 2
    out = capsys.readouterr()
    assert out.out == '' and out.err.count('\n') == 1 and out.err.startswith('error: '), out.err
    for part in parts:
        assert part in out.err, out.err


def test_the_command_says_that_a_method_is_right(capsys):
    assert main(['--router=top_k', "--args={'noise': 'gaussian'}"]) == 0
    assert capsys.readouterr().out == "router 'top_k' holds what it must\n"


@pytest.mark.parametrize(
    'name, kind', [('own_methods:l1', 'loss'), ('own_methods:Right', 'router'), ('z', 'loss')]
)
def test_the_command_sees_what_kind_of_method_it_is(name, kind, capsys):
    assert main([name]) == 0
    assert capsys.readouterr().out == f"{kind} '{name}' holds what it must\n"


def test_a_router_that_draws_for_all_groups_at_once_is_told_on_a_mesh():
    """Its routes would depend on how many groups a device has. One CPU plays four devices."""
    done = subprocess.run(
        [sys.executable, '-m', 'moe_vision.check', 'own_methods:DrawsForAllGroups'],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests" / "cases"}'},
    )
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert 'are others on a mesh' in done.stderr


@pytest.mark.parametrize(
    'args, parts',
    [
        ([], ['0 methods', '--router', '--backbone']),
        (['--expert=mlp', '--backbone=vit'], ['2 methods', 'a --router and an --expert beside']),
        (['--router=top_k', '--backbone=vit'], ['2 methods']),
        (['--router=topk'], ["'top_k'"]),
        (['--router=top_k', '--args=3'], ['a dictionary']),
        (['--loss=z', '--args={"c": 1}'], ["unknown argument of loss 'z'"]),
        (['--router=top_k', "--args={'nose': 1}"], ["nose'", "'noise'"]),
        (['--router=nowhere.mine:Router'], ["'nowhere'", 'PYTHONPATH']),
        (['--rooter=top_k'], ["'--router'"]),
        (['conv'], ['several kinds: expert, backbone', '--expert=conv or --backbone=conv']),
        (['top_kk'], ["'top_k'", 'package.module:Class']),
        (['own_methods:not_callable'], ['is 3.0', 'Router']),
        (['top_k', '--router=random'], ['the router is named twice', "'top_k' and 'random'"]),
        (['z', '--router=tp_k'], ["'top_k'"]),
        (['--backbone=conv', "--args={'foo': 1}"], ['_args.foo', 'widths']),
        (['--expert=conv', "--args={'norm_groups': 3}"], ["expert 'conv' cannot be run", '16']),
        (['--loss=switch', '--router=soft'], ["needs choices, but router 'soft' makes none"]),
    ],
)
def test_mistakes_in_the_command_are_one_line(args, parts, capsys):
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    for part in parts:
        assert part in err, err


def model(kind, name):
    """A small routed model with one method of the user's own."""
    own = f'own_methods:{name}'
    if kind == 'backbone':
        made = model_cases.config('conv')
        return dataclasses.replace(made, name=own)
    if kind == 'loss':
        return model_cases.config('conv', losses={own: 0.1})
    if kind == 'expert':
        args = registry.entry('expert', registry.EXPERTS, own).args()
        made = model_cases.config('vit', group_size=4)
        return dataclasses.replace(
            made, moe=dataclasses.replace(made.moe, expert=own, expert_args=args)
        )
    args = registry.entry('router', registry.ROUTERS, own).args()
    return model_cases.config('conv', router=own, router_args=args, losses={})


SHAPES = [
    case
    for case in WRONG
    if case[1] not in ('InFloat32', 'IgnoresValidSoftly', 'ForgetsTheSecondLayer')
    and case[1] not in ('not_callable', 'PlainArgs', 'ArgsWithWrongAnnotation', 'NoRouter', 'l1')
    and case[1] not in ('Righ', 'OddUnit', 'NoTokens')
    and case[0] != 'transform'
]
QUICK = {'GateOfWrongRank', 'ReturnsNone', 'Raises', 'IgnoresValid', 'StateGrows', 'scalar'}
QUICK |= {'ParamsWithoutInitializer', 'LacksTheState', 'counts_padding', 'MixesExperts'}
QUICK |= {'WrongWidth', 'LogitsAlone'}  # at least one of each check


@pytest.mark.parametrize(
    'kind, name, parts',
    [
        pytest.param(*case, id=case[1], marks=[] if case[1] in QUICK else pytest.mark.tables)
        for case in SHAPES
    ],
)
def test_a_config_with_such_a_method_is_refused_before_anything_runs(kind, name, parts):
    with pytest.raises(UserError) as error:
        check(model(kind, name), model_cases.IMAGE, model_cases.CLASSES)
    line = str(error.value)
    field = parts[0].split(' is ')[0].split(':')[-1].strip().split()[0]
    assert '\n' not in line and (field in line or f'own_methods:{name}' in line), line


NETWORKS = [(kind, name) for kind, name in RIGHT if kind != 'transform']


@pytest.mark.parametrize(
    'kind, name',
    [
        *NETWORKS[:2],
        ('backbone', 'SubConv'),
        *(pytest.param(*case, marks=pytest.mark.tables) for case in NETWORKS[2:]),
    ],
)
def test_a_config_with_a_right_method_passes(kind, name):
    check(model(kind, name), model_cases.IMAGE, model_cases.CLASSES)


def test_a_router_that_needs_what_a_backbone_has_is_judged_by_its_state_alone():
    class Needs(registry.load('own_methods:StateGrows')):
        needs = ('attention',)

    made = make_router('bias_balanced', None, Place(4, 2))
    assert made.init_state()['bias'].shape == (4,)
    with pytest.raises(UserError, match=r"'bias' is float32\[8\]"):
        from moe_vision.check import shapes

        shapes.state(Needs(registry.BiasBalancedArgs(), Place(4, 2)), {})


def test_training_refuses_before_anything_is_written(tmp_path):
    """From the command line on: one line, exit code 2, and no file of a run."""
    done = subprocess.run(
        [
            *(
                sys.executable,
                'main.py',
                f'--workdir={tmp_path}/w',
                '--config=configs/digits_k2.py',
            ),
            '--config.model.moe.router=own_methods:StateGrows',
            *('--config.model.moe.router_args={}', '--config.model.moe.losses={}'),
        ],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests/cases')])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "error: StateGrows.update_state: 'bias' is float32[16]; expected float32[8]"
    )
    assert 'Traceback' not in done.stderr
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]


ROUTER = {
    'model.moe.router': 'own_methods:IgnoresValid',
    'model.moe.losses': {},
    'model.moe.router_args': {},
}
TRANSFORM = {'train.transforms': {'own_methods:MovesByHalf': {}}}


@pytest.mark.parametrize(
    'command, keys, part',
    [
        ('leverage', ROUTER, 'ignores context.valid'),
        ('study', ROUTER, 'ignores context.valid'),
        ('leverage', TRANSFORM, 'moves of block_0/conv1/kernel is float32'),
        ('study', TRANSFORM, 'moves of block_0/conv1/kernel is float32'),
        ('summary', TRANSFORM, 'moves of block_0/conv1/kernel is float32'),
    ],
)
def test_other_commands_refuse_too(command, keys, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = ['--config=configs/digits_k2.py', *[f'--config.{k}={v}' for k, v in keys.items()]]
    if command == 'leverage':
        code = leverage([*flags, '--training'])
    elif command == 'summary':
        config = config_lib.check(source.load(flags[0][9:], *source.take_overrides(flags)[:2]))
        code = exit_code(lambda: preflight.summary(config, input_pipeline.info(config.dataset)))
    else:
        (tmp_path / 'mine.py').write_text(
            'from moe_vision.study.types import Arm, Study\n\n\ndef get_study():\n'
            f'    arm = Arm("configs/digits_k2.py", {keys!r})\n'
            '    return Study(name="mine", question="?", hypotheses=(), comparisons={},\n'
            '                 arms={"a": arm}, seeds=(0,), margin=1.0)\n'
        )
        code = study(['run', f'--study={tmp_path}/mine.py', f'--workdir={tmp_path}/w'])
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and part in line and line.startswith('error: '), line
    assert not [
        p for p in tmp_path.rglob('*') if p.is_file() and p.suffix != '.py' and p.suffix != '.pyc'
    ]
