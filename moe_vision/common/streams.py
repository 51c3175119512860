"""The random streams of a run: which number is folded into which key.

A key is made of the keys above it, and never of a device:

    jax.random.key(seed)
      SeedStream.INITIAL_VALUES -> the key that Flax derives each parameter's key from
      SeedStream.STEPS -> the run's key, kept in the train state
        number of the step -> the step's key
          StepStream.MIXING -> mixup and CutMix
          StepStream.NETWORK -> the network's key, `layers.Step.key`
            number of the routed layer -> the layer's key, `routing.types.Context.key`
              LayerStream or the stream of its router, then the group's number -> one draw
              SsrStream -> one draw for all groups
              LayerStream.LOSSES, then CRC-32 of a loss's name -> what that loss draws
            NetworkStream.DROP_PATH, then block, branch and image -> stochastic depth
        RunStream.EVALUATION -> the network's key in evaluation and prediction

The values are frozen: another value gives other initial values, routes or batches. Numbers that are
folded into the same key must differ. There is one class for each key, because names with equal
values in one `IntEnum` would be the same member.
"""

from enum import IntEnum, unique


@unique
class SeedStream(IntEnum):
    """Folded into the key of the seed."""

    INITIAL_VALUES = 0
    STEPS = 1


@unique
class RunStream(IntEnum):
    """Folded into the run's key, beside the numbers of the steps, which never come this far."""

    EVALUATION = 2**32 - 1


@unique
class StepStream(IntEnum):
    """Folded into the key of an optimizer step."""

    MIXING = 1
    NETWORK = 2


@unique
class NetworkStream(IntEnum):
    """Folded into the network's key, beside the numbers of the routed layers, from 0 on."""

    DROP_PATH = 1 << 30


@unique
class LayerStream(IntEnum):
    """Folded into the key of a routed layer by all that is not its router.

    A router has the numbers 0 to 6 for itself. A layer has one router, so two routers may use the
    same number.
    """

    SHUFFLE = 7  # the intervention that permutes routes
    DRAW = 8  # the intervention that draws other experts
    PRIORITY = 9  # who gets the slots first, with priority 'random'
    DROPS = 10  # which choices a twin drops that was given the shares
    LOSSES = 11  # then the loss's name


@unique
class TopKStream(IntEnum):
    """Folded into the key of a routed layer by the routers of `routing.routers.top_k`."""

    JITTER = 0
    NOISE = 1
    SECOND_CHOICE_MADE = 2  # whether the second choice is made
    SECOND_EXPERT = 3  # which expert it is
    SHUFFLE = 4  # of router 'shuffled'


@unique
class SsrStream(IntEnum):
    """Folded into the key of a routed layer by router 'ssr', which uses TopKStream, too."""

    BALANCED = 5  # whether the step is balanced


@unique
class RandomStream(IntEnum):
    """Folded into the key of a routed layer by router 'random'."""

    EXPERTS = 0


@unique
class DynamoeStream(IntEnum):
    """Folded into the key of a routed layer by router 'dynamoe'."""

    NOISE = 0


@unique
class UncertainStream(IntEnum):
    """Folded into the key of a routed layer by router 'uncertain'."""

    DROPOUT = 0


@unique
class DuoStream(IntEnum):
    """Folded into the key of a routed layer by router 'duo'."""

    MODULE = 0  # the module that a token takes while routes are random
