"""Configs with methods of the user's own: unusual ones pass, and the right one is blamed."""

import dataclasses
import re

import model_cases
import pytest
from slow import except_for

from moe_vision.check import inputs, routers, values
from moe_vision.check.__main__ import main
from moe_vision.check.own import check
from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.kinds import SKIP, Kind
from moe_vision.config.method_args import ConvArgs, MlpArgs


def unusual(name):
    return f'unusual_methods:{name}'


def with_router(name, network='conv', losses=(), **changes):
    args = registry.entry('router', registry.ROUTERS, unusual(name)).args()
    losses = {unusual(n): 1.0 for n in losses}
    return model_cases.config(
        network, router=unusual(name), router_args=args, losses=losses, **changes
    )


def with_expert(name, network='conv', args=None, losses=()):
    args = args or registry.entry('expert', registry.EXPERTS, unusual(name)).args()
    made = model_cases.config(network)
    own = {'expert': unusual(name), 'expert_args': args}
    losses = {unusual(n): 1.0 for n in losses}
    return dataclasses.replace(made, moe=dataclasses.replace(made.moe, **own, losses=losses))


TWO_KINDS = (Kind('mlp', 2, args=MlpArgs()), Kind('mlp', 2, hidden=8, args=MlpArgs()))


def kinds():
    moe = {'num_experts': 4, 'group_size': 4, 'kinds': (*TWO_KINDS, Kind(SKIP))}
    return with_router('ReadsKinds', 'vit', **moe)


WIDE = {'widths': (32, 64), 'depth': 1}  # the smallest widths that 32 groups divide
RIGHT = {
    'tokens that are maps': lambda: with_router('ReadsTokens'),
    'tokens that are vectors': lambda: with_router('ReadsTokens', 'vit', group_size=4),
    'a bank of kinds': kinds,
    'tokens that are observed': lambda: with_router('ObservesTokens', 'vit', group_size=4),
    'a program of its own': lambda: with_router('Jits', 'vit', group_size=4),
    'one null expert twice': lambda: with_router('NullTwice'),
    'a carry of all layers': lambda: with_router('CarriesAll'),
    'kinds of a place': lambda: with_router(
        'OfKinds', 'vit', num_experts=4, group_size=4, kinds=TWO_KINDS
    ),
    'a state of a router of the table': lambda: model_cases.config(
        'conv',
        router='bias_balanced',
        router_args=registry.BiasBalancedArgs(),
        losses={unusual('balance_of_state'): 1.0},
    ),
    'one choice alone': lambda: with_router('OnlyOne', k=1, losses=['size']),
    'soft routing and a loss': lambda: with_router('OwnSoft', losses=['size']),
    'noise for a loss': lambda: with_router('DrawsForItsLoss'),
    'loops in training': lambda: with_router('LoopsInTraining'),
    'an expert of any tokens': lambda: with_expert('AnyTokens', losses=['of_units']),
    'an expert of positions': lambda: with_expert('Positions'),
    'an expert in float32': lambda: with_expert('NoCast', 'vit'),
    'norms of wide experts': lambda: dataclasses.replace(
        with_expert('OwnDepthwise', 'depthwise', ConvArgs(norm_groups=32)),
        args=dataclasses.replace(model_cases.config('depthwise').args, **WIDE),
    ),
}


# One that reads tokens, one of kinds, one of soft routing, one with an expert of its own.
QUICK = (
    'tokens that are vectors',
    'a bank of kinds',
    'kinds of a place',
    'a state of a router of the table',
    'soft routing and a loss',
    'an expert of positions',
)


@pytest.mark.parametrize('case', except_for(QUICK, RIGHT))
def test_unusual_methods_pass(case):
    check(RIGHT[case](), model_cases.IMAGE, model_cases.CLASSES)


def test_the_same_experts_and_choices_are_judged_once(monkeypatch):
    judged = []
    monkeypatch.setattr(routers, 'router', lambda *given: judged.append(given))
    monkeypatch.setattr(values, 'one_expert', lambda *given: judged.append(given))
    check(with_router('Plain', placement='every_1', k=1), model_cases.IMAGE, model_cases.CLASSES)
    assert len(judged) == 1
    made = with_expert('NoCast', 'vit')
    twice = dataclasses.replace(made, moe=dataclasses.replace(made.moe, placement='every_1'))
    check(twice, model_cases.IMAGE, model_cases.CLASSES)
    assert len(judged) == 2


def test_a_router_is_judged_with_the_experts_of_its_config():
    with pytest.raises(KeyError, match='kind_0_in_kernel'):
        routers.router(unusual('ReadsKinds'))
    routers.router(unusual('ReadsKinds'), given=inputs.Given(kinds=(Kind('mlp', 4),)))


def both():
    return with_router('Plain', losses=['forgets'])


def through_a_backbone():
    return dataclasses.replace(with_router('Forgets'), name=unusual('OwnNet'))


BLAMED = {  # config -> who is blamed, and for what
    'a loss beside a router': (both, "model.moe.losses.unusual_methods:forgets: KeyError: 'c'"),
    'a router in a backbone': (through_a_backbone, "router 'unusual_methods:Forgets': KeyError"),
    'an inherited signature': (
        lambda: with_router('Derived'),
        r"'unusual_methods:Derived': TypeError: WrongSignature.choose\(\) takes 4 .*"
        r'called as choose\(self, params, state, features, context\)\.$',
    ),
    'an inherited mistake': (
        lambda: with_router('FromElsewhere'),
        r"'unusual_methods:FromElsewhere': KeyError: 'fairness' \(.*own_helper.py, line \d+\)",
    ),
    'a property': (lambda: with_router('Property'), r"'unusual_methods:Property': TypeError: "),
    'soft routing that does not say so': (
        lambda: with_router('UncountedSoft'),
        "'unusual_methods:UncountedSoft' returns a SoftRouting; .* `ignores` names 'k'",
    ),
    'soft routing of unknown size': (
        lambda: with_router('SoftOfUnknownSize'),
        r"'unusual_methods:SoftOfUnknownSize': its routing has 3 slots per token, but .* "
        r'says 3/8; define room\(capacity\)',
    ),
    'a state': (lambda: with_router('StateOfAList'), 'StateOfAList.init_state returned a list'),
}


@pytest.mark.parametrize('case', BLAMED)
def test_the_method_whose_fault_it_is_is_blamed(case):
    make, said = BLAMED[case]
    with pytest.raises(UserError) as error:
        check(make(), model_cases.IMAGE, model_cases.CLASSES)
    assert '\n' not in str(error.value) and re.search(said, str(error.value)), error.value


def test_what_is_no_tuple_of_names_is_refused():
    with pytest.raises(UserError, match=r"needs is 'bank'; write a tuple, \('bank',\)"):
        registry.entry('router', registry.ROUTERS, unusual('NeedsAWord'))


def test_the_command_checks_a_loss_with_its_router_and_a_router_with_its_experts(capsys):
    assert main([unusual('size'), f'--router={unusual("OwnSoft")}']) == 0
    assert main([unusual('of_units'), f'--expert={unusual("AnyTokens")}']) == 0
    assert main([unusual('ReadsTokens'), '--expert=conv']) == 0
    assert capsys.readouterr().out.count('holds what it must') == 3
    assert main([unusual('forgets'), f'--router={unusual("Plain")}']) == 2
    assert "loss 'unusual_methods:forgets': KeyError: 'c'" in capsys.readouterr().err
    assert main([unusual('of_units')]) == 2
    assert "needs 'own_units', which nothing supplies" in capsys.readouterr().err
