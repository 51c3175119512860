"""Exploratory studies beside `confirm`: arms with the rates that it chose, and its own arms."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from configs.studies import confirm
from configs.studies.campaign import CHOSEN, DENSE_ACTIVE, K1, MARGIN, SEEDS, scored
from configs.studies.common import DENSE
from configs.studies.confirm import BLOCK, ROUTED
from configs.studies.data_set import Overrides
from moe_vision.study.types import Arm, Comparison, FamilyDifference, Figure, Study

FOUR: Mapping[str, Overrides] = {
    'k2': {},
    'dense_active': DENSE_ACTIVE,
    'dense': DENSE,
    'k1': K1,
}
GAPS = (('k2', 'dense_active'), ('k2', 'dense'), ('k1', 'dense'), ('dense_active', 'dense'))


def rate_of(name: str) -> Overrides:
    """The rate that `confirm` chose for this arm of its."""
    chosen = {n: CHOSEN[arm] for arm, others in confirm.TUNED.items() for n in (arm, *others)}
    return {'train.learning_rate': chosen[name]}


def tuned(network: str, *changes: Overrides, seed_offset: int = 0) -> Arm:
    """One of the four networks with the rate that `confirm` chose for it, and these changes."""
    return scored(rate_of(network), FOUR[network], *changes, seed_offset=seed_offset)


def lent(*names: str) -> dict[str, Arm]:
    """Arms of `confirm` with the rates that it chose: their cells are there already."""
    arms = confirm.get_study().arms
    return {
        n: dataclasses.replace(arms[n], overrides={**arms[n].overrides, **rate_of(n)})
        for n in names
    }


def gaps(*pairs: tuple[str, str]) -> dict[str, Comparison]:
    return {f'{arm}_minus_{baseline}': Comparison(arm, baseline) for arm, baseline in pairs}


def study(
    part: str,
    question: str,
    arms: Mapping[str, Arm],
    comparisons: Mapping[str, Comparison],
    **more: Any,
) -> Study:
    fields: dict[str, Any] = {
        'seeds': SEEDS[:6],
        'margin': MARGIN,
        'tuning': 'The learning rates are those that `confirm` chose for its networks.',
        'reads': ('confirm',),
        'mechanism': False,
    }
    return Study(
        name=f'explore_{part}',
        question=question,
        hypotheses=(),
        arms=arms,
        comparisons=comparisons,
        **(fields | more),
    )


def four_beside_confirm(part: str, question: str, changes: Overrides) -> Study:
    """The four networks with these changes, their gaps, and how those differ from `confirm`'s."""
    theirs = gaps(*GAPS)
    ours = gaps(*((f'{part}_{a}', f'{part}_{b}') for a, b in GAPS))
    return study(
        part,
        question,
        {f'{part}_{network}': tuned(network, changes) for network in FOUR} | lent(*FOUR),
        ours | theirs,
        family_differences={
            f'{their}_{part}_less_confirm': FamilyDifference(((our, their),))
            for our, their in zip(ours, theirs, strict=True)
        },
    )


def at_equal_share(
    part: str,
    question: str,
    networks: Mapping[int, tuple[str, Overrides]],
    rates: tuple[str, str] | None = None,
) -> Study:
    """Networks, and those of `confirm` that have their routed shares, at equal FLOPs.

    Args:
      networks: hidden width of the experts of `confirm` -> name of the network, and its changes.
      rates: arms of `confirm`, routed and dense, whose rates these networks take; None takes
        those of the arms with their routed share.
    """
    arms: dict[str, Arm] = {}
    ours: dict[str, Comparison] = {}
    theirs: dict[str, Comparison] = {}
    for h, (name, changes) in networks.items():
        routed, dense = f'{name}_k2', f'{name}_active'
        of_routed, of_dense = rates or (ROUTED[h], BLOCK[2 * h])
        arms[routed] = scored(rate_of(of_routed), changes)
        arms[dense] = scored(rate_of(of_dense), DENSE_ACTIVE, changes)
        arms |= lent(ROUTED[h], BLOCK[2 * h])
        ours |= gaps((routed, dense))
        theirs |= gaps((ROUTED[h], BLOCK[2 * h]))
    return study(
        part,
        question,
        arms,
        ours | theirs,
        # One for each share: gaps that differ both ways would cancel. A large p does not say that
        # the gaps agree; only equivalence does.
        family_differences={
            f'{name}_less_confirm': FamilyDifference((tuple(pair),), 'equivalent')
            for (name, _), *pair in zip(networks.values(), ours, theirs, strict=True)
        },
        figures=(
            Figure(
                'gap_against_rho',
                'Gap at equal FLOPs against the routed share of compute',
                {part: tuple(ours), 'confirm': tuple(theirs)},
            ),
        ),
    )
