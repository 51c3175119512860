"""All commands read their command lines in the same way, and refuse and end in the same way."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from input_pipeline import DataError
from moe_vision.common import command_line as common_line
from moe_vision.common.errors import UserError
from moe_vision.config.command_line import OverridesParser, exit_code

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {  # command: (a flag misspelt and all else missing, the flag that is meant)
    'leverage': ('--swep=a=1', '--sweep'),
    'pod': ('--topologie=v5e:2x2', '--topology'),
    'predict': ('--wrokdir=W', '--workdir'),
    'report': ('--wrokdir=W', '--workdir'),
    'study': ('--keep_run', '--keep_runs'),
}
WITH_OVERRIDES = ('leverage', 'pod', 'study')


def module(command: str):
    return importlib.import_module(f'moe_vision.{command}.__main__')


def refused(capsys, command: str, *args: str) -> str:
    """The one line that a command answers."""
    assert module(command).main(args) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith('error: ') and err.count('\n') == 1, err
    return err


def helped(capsys, command: str) -> str:
    with pytest.raises(SystemExit) as end:
        module(command).main(['--help'])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize('command', COMMANDS)
def test_help_prints_the_docstring_and_the_flags(capsys, command):
    text = helped(capsys, command)
    assert text.startswith(f'usage: python -m moe_vision.{command} ')
    assert module(command).__doc__.strip() in text and COMMANDS[command][1] in text


@pytest.mark.parametrize('command', COMMANDS)
def test_an_unknown_flag_is_told_first_with_the_nearest_and_all_that_help_shows(capsys, command):
    wrong, meant = COMMANDS[command]
    line = refused(capsys, command, wrong)
    assert f"unknown flag '{wrong.partition('=')[0]}'. Did you mean '{meant}'?" in line
    shown = re.findall(r'^  (?:-h, )?(--\w+)', helped(capsys, command), re.MULTILINE)
    assert len(shown) >= 2
    more = ['--config.KEY'] if command in WITH_OVERRIDES else []
    assert line.rstrip().endswith(f'Allowed: {", ".join(shown + more)}.')


@pytest.mark.parametrize('command', WITH_OVERRIDES)
@pytest.mark.parametrize('wrong', ['--train.epochs=3', '--epochs=3', '--config.trian.epochs=3'])
def test_a_flag_that_is_like_a_key_names_the_key(capsys, command, wrong):
    assert "Did you mean '--config.train.epochs'?" in refused(capsys, command, wrong)


def test_mistakes_are_told_without_jax():
    code = (
        'import sys, importlib\n'
        f'for name in {[*COMMANDS]}:\n'
        '    command = importlib.import_module(f"moe_vision.{name}.__main__")\n'
        '    assert command.main(["--nonsense"]) == 2\n'
        'assert "jax" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count('\n') == len(COMMANDS), done.stderr


def parser() -> OverridesParser:
    made = OverridesParser('moe_vision.some', 'Does something.')
    made.add_argument('--number', type=float)
    made.add_argument('--switch', action='store_true')
    return made


def test_flags_and_overrides_may_stand_in_any_order():
    args, common, opened = parser().parse_with_overrides(
        [
            '--config.train.epochs',
            '5',
            '--number',
            '-0.5',
            '--config.model.moe.router_args.x=1,2',
            '--switch',
            '--noconfig.dataset.cache',
        ]
    )
    assert (args.number, args.switch) == (-0.5, True)
    assert common == ['--config.train.epochs=5', '--config.dataset.cache=False']
    assert opened == {'model.moe.router_args.x': (1, 2)}


@pytest.mark.parametrize(
    'arguments, told',
    [
        (['--num=1'], "unknown flag '--num'. Did you mean '--number'?"),  # nothing is abbreviated
        (['-number=1'], "unknown flag '-number'. Did you mean '--number'?"),
        (['--number=x', '--swich'], "unknown flag '--swich'. Did you mean '--switch'?"),
        (['stray'], "unexpected argument 'stray'; flags are written --name=value."),
        (['--number=x'], "invalid float value: 'x'; python -m moe_vision.some --help"),
        (['--number'], 'expected one argument'),
        (['--switch=1'], '--switch'),
        (['--config.train.epochs'], "'--config.train.epochs' has no value"),
        (['--noconfig.dataset.cache=True'], "has 'no' and a value; write --config.dataset.cache="),
    ],
)
def test_a_mistake_raises_a_user_error(arguments, told):
    with pytest.raises(UserError) as error:
        parser().parse_with_overrides(arguments)
    assert told in str(error.value) and '\n' not in str(error.value)


def test_after_two_dashes_nothing_is_a_flag():
    files = common_line.Parser('moe_vision.some', '')
    files.add_argument('files', nargs='+')
    assert files.parse(['a.png', '--', '--b.png']).files == ['a.png', '--b.png']


def fails(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    'error, code, line',
    [
        (UserError('two\n  lines'), 2, 'error: two lines\n'),
        (DataError('no set'), 2, 'error: no set\n'),
        (KeyboardInterrupt(), 130, 'interrupted\n'),
    ],
)
def test_a_command_ends_with_a_line_and_a_code(capsys, error, code, line):
    assert exit_code(fails(error)) == code
    assert capsys.readouterr() == ('', line)


def test_a_command_ends_with_its_own_code_or_an_error_that_nobody_expected(capsys):
    assert [exit_code(lambda n=n: n) for n in (0, 1)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        exit_code(fails(ZeroDivisionError()))
    with pytest.raises(DataError):  # a command that reads no data knows nothing of these
        common_line.exit_code(fails(DataError('no set')))
    assert capsys.readouterr() == ('', '')
