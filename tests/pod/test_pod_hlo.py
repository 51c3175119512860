"""Reading collectives from the text of a compiled program: kind, bytes, groups, runs, origin."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moe_vision.pod import hlo, replica_groups

TPU = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%wrapped (p: bf16[8,4,128]) -> bf16[8,4,128] {
  %p = bf16[8,4,128]{2,1,0:T(4,128)(2,1)} parameter(0)
  ROOT %all-to-all.1 = bf16[8,4,128]{2,1,0:T(4,128)(2,1)S(1)} all-to-all(%p), channel_id=1, \
replica_groups=[2,8]<=[16], dimensions={0}
}

%fused (p.1: f32[64]) -> f32[4] {
  %p.1 = f32[64]{0} parameter(0)
  ROOT %rs = f32[4]{0} reduce-scatter(%p.1), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, \
dimensions={0}, to_apply=%add
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[]{:T(128)}, /*index=1*/f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1, metadata={op_name="jit(step)/jvp(Net)/block_2/dot"}
  %copy = f32[8]{0} copy(%x)
  %inner = f32[8]{0} while(%x), condition=%cond, body=%body.2, \
backend_config={"known_trip_count":{"n":"2"}}
  %ar = (f32[8]{0}, f32[]) all-reduce-start(%copy, %zero), channel_id=3, replica_groups={}, \
to_apply=%add, metadata={op_name="jit(step)/transpose(jvp(Net))/block_2/psum"}
  ROOT %ard = (f32[8]{0}, f32[]) all-reduce-done(%ar)
}

%body.2 (t: f32[8]) -> f32[8] {
  %t = f32[8]{0} parameter(0)
  %cps = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%t), channel_id=4, \
source_target_pairs={{0,1},{1,0}}
  ROOT %cpd = f32[8]{0} collective-permute-done(%cps)
}

%cond (t: f32[8]) -> pred[] {
  %t = f32[8]{0} parameter(0)
  ROOT %c = pred[] constant(true)
}

%start (p: f32[5]) -> f32[10] {
  %p = f32[5]{0} parameter(0)
  %g.1 = f32[10]{0} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="7"}
  ROOT %c.1 = f32[10]{0} custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%middle (p: f32[5], q: f32[10]) -> f32[10] {
  %p = f32[5]{0} parameter(0)
  ROOT %g.2 = f32[10]{0} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="7"}
}

%end (p: f32[5]) -> f32[10] {
  %p = f32[5]{0} parameter(0)
  %g.3 = f32[10]{0} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="7"}
  ROOT %c.3 = f32[10]{0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%scan (t: (s32[], f32[8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %t = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %five), direction=LT, \
metadata={op_name="jit(step)/while/cond/lt"}
}

ENTRY %main.9 (arg: f32[8]) -> f32[8] {
  %arg = f32[8]{0} parameter(0), metadata={op_name="state.params[\\'w\\']"}
  %other = pred[3]{0} constant({1,0,1})
  %ags = ((f32[8]{0}, pred[3]{0}), (f32[32]{0}, pred[12]{0})) all-gather-start(%arg, \
/*index=1*/%other), channel_id=5, replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}, \
metadata={op_name="jit(step)/gather"}
  %agd = (f32[32]{0}, pred[12]{0}) all-gather-done(%ags)
  %as = ((bf16[8,4,128]), bf16[8,4,128], u32[]) async-start(%arg), calls=%wrapped, \
metadata={op_name="jit(step)/jvp(Net)/block_1/all_to_all"}
  %ad = bf16[8,4,128]{2,1,0} async-done(%as), calls=%wrapped
  %c1 = f32[10]{0} fusion(%arg), calls=%start, metadata={op_name="jit(step)/chained"}
  %c2 = f32[10]{0} fusion(%arg, %c1), calls=%middle, metadata={op_name="jit(step)/dot"}
  %c3 = f32[10]{0} fusion(%arg), calls=%end
  %f = f32[4]{0} fusion(%arg), kind=kCustom, calls=%fused
  %w = (s32[], f32[8]{0}) while(%arg), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"other":{}}
  %s = f32[8]{0} while(%arg), condition=%scan, body=%body.2
  %u = f32[8]{0} while(%arg), condition=%cond, body=%body.2
  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1
}
"""


SLICES = """HloModule jit_step

ENTRY %main (arg: f32[8]) -> f32[8] {
  %arg = f32[8]{0} parameter(0), metadata={op_name="jit(step)/block_0/dot"}
  %g = f32[32]{0} all-gather(%arg), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %mean = f32[] reduce(%g, %zero), metadata={op_name="jit(step)/block_1/shard_map/reduce_sum"}
  %copy = f32[32]{0} copy(%g), metadata={op_name="jit(step)/block_1/shard_map/all_gather"}
  %send = (f32[8]{0}, u32[], token[]) send(%arg, %token), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[8]{0}, u32[], token[]) recv(%token), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %other = (f32[8]{0}, u32[], token[]) send(%arg, %token), channel_id=4, is_host_transfer=true
  ROOT %done = f32[8]{0} recv-done(%recv), channel_id=3
}
"""


def test_slices_send_to_each_other_what_remains_of_a_collective():
    gather, between = hlo.collectives(SLICES)
    assert (between.kind, between.bytes, between.times) == ('all-reduce of slices', 32, 1)
    assert between.origin == 'jit(step)/block_0/dot'
    assert (gather.kind, gather.bytes) == ('all-gather', 128)
    # only the copy of its result still has its name
    assert gather.origin == 'jit(step)/block_1/shard_map/all_gather'


@pytest.fixture(scope='module')
def read():
    return hlo.collectives(TPU)


@pytest.fixture(scope='module')
def programs(tmp_path_factory):
    """Collectives of programs for eight virtual CPU devices."""
    import os

    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
    script = str(Path(__file__).parents[1] / 'cases' / 'pod_programs.py')
    done = subprocess.run(
        [sys.executable, script],
        text=True,
        capture_output=True,
        env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {n: hlo.collectives(text) for n, text in json.loads(done.stdout).items()}


def of_kind(read, kind):
    return [c for c in read if c.kind == kind]


def test_an_asynchronous_pair_counts_once_and_has_its_results_bytes(read):
    gather = of_kind(read, 'all-gather')[0]
    # the gathered float32 [32] and pred [12], not what they were gathered from
    assert [(p.shape, p.bytes) for p in gather.parts] == [('f32[32]', 128), ('pred[12]', 12)]
    assert gather.bytes == 140 and gather.times == 1
    (exchange,) = of_kind(read, 'all-to-all')  # inside what async-start calls
    assert exchange.bytes == 2 * 8 * 4 * 128
    assert exchange.op_name == 'jit(step)/jvp(Net)/block_1/all_to_all'


def test_a_chain_of_fusions_counts_once(read):
    chained = of_kind(read, 'all-gather')[1:]
    assert [(c.bytes, c.op_name) for c in chained] == [(40, 'jit(step)/chained')]


def test_the_origin_of_a_tensor_is_the_operation_that_made_it(read):
    (reduce,) = of_kind(read, 'all-reduce')
    assert reduce.op_name == 'jit(step)/transpose(jvp(Net))/block_2/psum'
    assert [p.op_name for p in reduce.parts] == ['jit(step)/jvp(Net)/block_2/dot', reduce.op_name]
    assert [p.bytes for p in reduce.parts] == [32, 4]


def test_a_reduce_scatter_has_the_bytes_of_its_input(read):
    (scatter,) = of_kind(read, 'reduce-scatter')  # inside a fusion
    assert scatter.bytes == 4 * 64


def test_loops_multiply(read):
    (reduce,) = of_kind(read, 'all-reduce')
    assert reduce.times == 3
    # a loop of 2 in a loop of 3, a scan of 5, a loop of unknown length
    assert [c.times for c in of_kind(read, 'collective-permute')] == [6, 5, None]


def test_groups(read):
    gather, exchange, scatter, reduce = (
        of_kind(read, k)[0] for k in ('all-gather', 'all-to-all', 'reduce-scatter', 'all-reduce')
    )
    assert exchange.groups == (tuple(range(8)), tuple(range(8, 16)))  # [2,8]<=[16]
    assert gather.groups[:2] == ((0, 4, 8, 12), (1, 5, 9, 13))  # columns of a 4 × 4
    assert scatter.groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert reduce.groups == ()
    assert of_kind(read, 'collective-permute')[0].groups == ((0, 1), (1, 0))


@pytest.mark.parametrize(
    'notation, groups',
    [
        ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", ((0, 1), (2, 3))),
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),  # a is 2 × 2 × 2
        ('[2,2]<=[4]', ((0, 1), (2, 3))),
        ('[2,2]<=[2,2]T(1,0)', ((0, 2), (1, 3))),
        ('{{3,1},{0,2}}', ((3, 1), (0, 2))),
        ('{}', ()),
    ],
)
def test_notations_of_groups(notation, groups):
    assert (
        replica_groups.parse(
            f'channel_id=1, replica_groups={notation}, metadata={{op_name="a[\'b\']"}}'
        )
        == groups
    )


@pytest.mark.parametrize(
    'shape, size',
    [
        ('f32[2,3]', 24),
        ('bf16[7]', 14),
        ('pred[9]', 9),
        ('s4[5]', 3),
        ('f8e4m3fn[6]', 6),
        ('c64[2]', 16),
        ('u32[]', 4),
        ('token[]', 0),
        ('f32[0,4]', 0),
        ('f32[<=8]', 32),
    ],
)
def test_bytes(shape, size):
    assert hlo.size(shape) == size


def test_programs_of_eight_devices(programs):
    (exchange,) = programs['exchange']
    assert (exchange.kind, exchange.times, exchange.bytes) == ('all-to-all', 3, 64)
    assert sorted(map(sorted, exchange.groups)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert 'block_1' in exchange.op_name
    (gather,) = programs['gather']
    assert (gather.kind, gather.bytes, len(gather.groups)) == ('all-gather', 128, 4)
    assert sorted(map(sorted, gather.groups)) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert 'block_2' in gather.op_name
    assert {c.kind for c in programs['reduce']} == {'all-reduce'}
    assert sum(c.bytes for c in programs['reduce']) == 64 + 12
    (scatter,) = programs['scatter']
    assert (scatter.kind, scatter.bytes) == ('reduce-scatter', 64)
    (permute,) = programs['permute']
    assert (permute.kind, permute.bytes) == ('collective-permute', 64)
