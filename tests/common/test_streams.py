"""The numbers of the random streams: frozen, and different where one key meets several."""

from moe_vision.common import streams
from moe_vision.common.streams import (
    DuoStream,
    DynamoeStream,
    LayerStream,
    NetworkStream,
    RandomStream,
    RunStream,
    SsrStream,
    TopKStream,
    UncertainStream,
)


def test_the_values_are_those_of_all_earlier_runs():
    """A run resumes, and a study is repeated, only where every draw is what it was."""
    assert {
        name: {stream.name: int(stream) for stream in getattr(streams, name)}
        for name in vars(streams)
        if name.endswith('Stream')
    } == {
        'SeedStream': {'INITIAL_VALUES': 0, 'STEPS': 1},
        'RunStream': {'EVALUATION': 4294967295},
        'StepStream': {'MIXING': 1, 'NETWORK': 2},
        'NetworkStream': {'DROP_PATH': 1073741824},
        'LayerStream': {'SHUFFLE': 7, 'DRAW': 8, 'PRIORITY': 9, 'DROPS': 10, 'LOSSES': 11},
        'TopKStream': {
            'JITTER': 0,
            'NOISE': 1,
            'SECOND_CHOICE_MADE': 2,
            'SECOND_EXPERT': 3,
            'SHUFFLE': 4,
        },
        'SsrStream': {'BALANCED': 5},
        'RandomStream': {'EXPERTS': 0},
        'DynamoeStream': {'NOISE': 0},
        'UncertainStream': {'DROPOUT': 0},
        'DuoStream': {'MODULE': 0},
    }


def test_what_is_folded_into_one_key_differs():
    routers = {*TopKStream, *SsrStream, *RandomStream, *DynamoeStream, *UncertainStream, *DuoStream}
    layer = {*LayerStream}
    assert not {*TopKStream} & {*SsrStream}  # router 'ssr' draws from both
    assert max(routers) <= 6 < min(layer)  # routers have 0 to 6
    assert int(RunStream.EVALUATION) > 2**31 - 1  # the largest number of a step, an int32
    assert NetworkStream.DROP_PATH > 10**9  # no network has as many routed layers
