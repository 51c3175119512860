"""The arithmetic of the pod check by hand: chips, memory, expected collectives, the estimate."""

import types
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_vision.common.chips import TPUS, Chip, peak
from moe_vision.common.errors import UserError
from moe_vision.pod import compiled, expected, memory, report, roofline
from moe_vision.pod import topology as topology_lib
from moe_vision.pod.hlo import Collective, Part
from moe_vision.training.step import TrainState


def collective(kind, shape, size, op_name='', times=1, groups=()):
    return Collective(kind, 'x', (Part(shape, size, op_name),), groups, times, op_name)


@pytest.mark.parametrize(
    'name, count',
    [
        ('v5e:16x16', 256),
        ('v6e:1x1', 1),
        ('v5e:4x8', 32),
        ('v4:8x8x4', 256),
        ('v5p:2x2x1', 4),
        ('tpu7x:4x4x8', 128),
        ('V5E:2x2', 4),
        ('v5p:12x12x12', 1728),
    ],
)
def test_slices_that_exist(name, count):
    topology = topology_lib.parse(name)
    assert topology.chips == count and str(topology) == name.lower()


@pytest.mark.parametrize(
    'name, part',
    [
        ('v5:16x16', "Did you mean 'v5e:16x16'?"),
        ('v5e:16x61', "Did you mean 'v5e:16x16'?"),
        ('v5e:32x32', 'v5e and v6e as 1x1, 2x2'),
        ('v4:4x4x5', "Did you mean 'v4:4x4x"),
        ('v5p:6x6x6', 'or three multiples of 4'),
        ('v5e-16', 'unknown topology'),
        ('v5p:16x16x28', 'v5p to 6144 chips'),
        ('v4:0x4x4', 'unknown topology'),
        ('', 'unknown'),
    ],
)
def test_slices_that_do_not_exist_are_refused(name, part):
    with pytest.raises(UserError) as e:
        topology_lib.parse(name)
    assert part in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('name', TPUS)
def test_chips_are_plausible(name):
    chip = TPUS[name]
    assert 1e14 < chip.flops < 1e16 and 2**34 <= chip.hbm <= 2**38
    # a chip computes hundreds of FLOPs per byte from memory, and sends less than it reads
    assert 100 < chip.flops / chip.hbm_bandwidth < 1000 and chip.ici_bandwidth < chip.hbm_bandwidth
    device = chip.per_device()
    assert device.devices == 1 and device.flops * chip.devices == chip.flops
    assert device.hbm * chip.devices == chip.hbm


@pytest.mark.parametrize(
    'kind, flops',
    [
        ('TPU v5 lite', 197e12),
        ('TPU v5', 459e12),
        ('TPU7x', 2307e12 / 2),  # half a chip
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H100 PCIe', 756e12),
        ('NVIDIA H200', 989e12),
        ('NVIDIA A100-SXM4-80GB', 312e12),
        ('cpu', None),
        ('TPU v9', None),
    ],
)
def test_peaks_of_devices_by_their_kind(kind, flops):
    assert peak(kind) == flops


def test_memory_counts_aliased_outputs_once():
    stats = types.SimpleNamespace(
        argument_size_in_bytes=100,
        output_size_in_bytes=90,
        temp_size_in_bytes=40,
        alias_size_in_bytes=80,
        generated_code_size_in_bytes=7,
    )
    assert memory.of_program(stats).used == 100 + 90 - 80 + 40 + 7


def test_the_state_of_a_device_by_hand():
    mesh = AbstractMesh((2, 4), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)

    def array(shape, spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    bank, shared = array((8, 16, 3), P('expert')), array((5, 7), P())
    state = TrainState(
        step=array((), P(), jnp.int32),
        seed_key=array((2,), P(), jnp.uint32),
        params={'a': bank, 'b': shared},
        batch_stats={'m': array((9,), P())},
        router_state={},
        opt_state=({'a': bank}, {'b': array((6, 7), P('data'), jnp.bfloat16)}),
        ema={},
    )
    assert memory.of_state(state) == {
        'parameters': 4 * (2 * 16 * 3 + 35),
        'optimizer': 4 * 2 * 16 * 3 + 2 * 3 * 7,
        'statistics': 36,
    }


def test_the_layer_of_an_operation():
    layers = ['block_1', 'block_11', 'deep', 'deep/moe']
    for op_name, want in {
        'jit(step)/jvp(ConvNet)/block_1/all_to_all': 'block_1',
        'jit(step)/transpose(jvp(ConvNet))/block_11/conv1/dot': 'block_11',
        'jit(step)/jvp(Net.deep)/moe/psum': 'deep/moe',
        'jit(step)/deep.call/psum': 'deep',
        'jit(step)/block_111/psum': '',
        '': '',
    }.items():
        assert expected.layer_of(op_name, layers) == want, op_name


def test_only_exchanges_gradients_and_statistics_are_expected():
    planned = expected.Expected(Counter({'all-to-all': 4}), 0, frozenset({300_000}))
    layers = ['block_0', 'block_1']
    name = 'jit(step)/block_{}/x'.format
    good = [
        collective('all-reduce', 'f32[100,3000]', 1_200_000, name(0)),  # a gradient
        collective('all-reduce', 'f32[1000]', 4000, name(0)),  # a statistic
        collective('all-to-all', 'f32[8]', 32, name(0), times=2),
        collective('all-to-all', 'f32[8]', 32, name(1), times=2),
    ]
    assert expected.unexpected(good, planned, layers) == []
    tokens = collective('all-reduce', 'bf16[64,56,56,3]', 1_204_224, name(0))
    gather = collective('all-gather', 'f32[4]', 16, name(1))
    more = collective('all-to-all', 'f32[8]', 32, name(1))
    bad = expected.unexpected([*good, tokens, gather, more], planned, layers)
    assert [c.kind for c, _ in bad] == ['all-reduce', 'all-gather', 'all-to-all', 'all-to-all']
    assert all('block_1' in c.op_name for c, _ in bad[1:])
    line = report.unexpected(*bad[1], layers)
    assert line == 'unexpected all-gather: f32[4] (16 B) in block_1: jit(step)/block_1/x'


def test_if_groups_span_devices_other_values_of_a_token_may_travel_with_its_features():
    planned = expected.Expected(Counter({'all-gather': 2}), 0, frozenset())
    features = collective('all-gather', 'bf16[32,7,7,8]', 25088, 'jit(step)/block_1/all_gather')
    valid = collective('all-gather', 'pred[32]', 32, 'jit(step)/block_1/all_gather')
    tokens = collective('all-gather', 'bf16[32,7,7,8]', 25088, 'jit(step)/block_0/dot')
    collectives = [features, valid, features]
    assert expected.exchanges(collectives, planned, {'block_1'}) == [features] * 2
    assert expected.unexpected(collectives, planned, {'block_1'}) == []
    assert len(expected.unexpected([*collectives, features], planned, {'block_1'})) == 3
    bad = expected.unexpected([*collectives, tokens], planned, {'block_1'})
    assert bad == [(tokens, *tokens.parts)]


def test_slices_exchange_sums_of_what_a_device_holds_of_gradients():
    planned = expected.Expected(Counter({'all-to-all': 1}), 0, frozenset({300_000}), slices=2)
    scatter = collective('reduce-scatter', 'f32[100,3000]', 1_200_000, 'jit(step)/block_0/dot')
    gather = collective('all-gather', 'f32[100,3000]', 1_200_000)
    part = collective('all-reduce of slices', 'f32[100,200]', 80_000)
    flat = collective('all-reduce', 'f32[300,8,128]', 1_228_800, 'jit(step)/block_1/psum')
    maps = collective('all-gather', 'f32[64,56,56,3]', 1_204_224)
    more = collective('all-reduce of slices', 'f32[64,56,56,3]', 1_204_224)
    tokens = collective('all-to-all of slices', 'f32[8]', 32)
    bad = expected.unexpected(
        [scatter, gather, part, flat, maps, more, tokens], planned, ['block_1']
    )
    assert [c for c, _ in bad] == [maps, more, tokens]
    assert report.slices([part, gather, part], 2)[0].startswith(
        '  between 2 slices: 2 tensors, 156 KiB of a device'
    )
    assert report.slices([gather], 1) == []
    assert roofline.sent_bytes(part, 8) == 0


def test_if_the_optimizer_is_scattered_parameters_are_gathered():
    gather = collective('all-gather', 'f32[100,3000]', 1_200_000, 'jit(step)/add')
    bank = collective('all-gather', 'f32[8,100,3000]', 9_600_000, 'jit(step)/add')
    for scattered, want in (True, [bank]), (False, [gather, bank]):
        planned = expected.Expected(Counter(), 0, frozenset({300_000}), scattered)
        assert [c for c, _ in expected.unexpected([gather, bank], planned, ())] == want


def test_the_estimate_by_hand():
    device = Chip(flops=1e12, hbm=2**30, hbm_bandwidth=1e11, ici_bandwidth=1e10, axes=2, most=1)
    collectives = [
        collective('all-reduce', 'f32[]', 4000, groups=((0, 1, 2, 3),), times=2),
        collective('all-to-all', 'f32[]', 800),
        collective('collective-permute', '', 500),
    ]
    sent = 2 * 2 * 4000 * 3 / 4 + 800 * 7 / 8 + 500
    used = memory.Memory(4 * 10**8, 10**8, 25 * 10**7, aliased=10**8, code=5)  # touched: 1e9
    best = roofline.estimate(device, 10**9, used, collectives, devices=8)
    assert best.compute == pytest.approx(1e-3) and best.memory == pytest.approx(1e-2)
    assert best.links == pytest.approx(sent / 1e10)
    assert best.bound == 'memory' and best.least == best.memory
    assert best.most == pytest.approx(best.compute + best.memory + best.links)


def test_the_compilers_message_about_too_little_memory_is_read():
    e = compiled.too_large(
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space '
        'hbm. Used 17.25G of 15.75G hbm. Exceeded hbm capacity by 1.50G.\n\nLargest program '
        'allocations in hbm:\n\n  1. Size: 3.06G\n     Operator: op_name="jit(step)/block_0/dot"\n'
        '     Shape: bf16[256,56,56,256]{3,2,1,0:T(8,128)}\n     Unpadded size: 3.00G\n'
        '  2. Size: 1.00G\n     Shape: f32[9]{0}\n'
    )
    assert str(e) == 'needs 17.25G of 15.75G'
    assert e.tensors == [
        '3.06G bf16[256,56,56,256]{3,2,1,0:T(8,128)} jit(step)/block_0/dot',
        '1.00G f32[9]{0}',
    ]
    e = compiled.too_large(
        'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory '
        'required for HLO temporaries (16.29G) exceeds available HBM (15.75G).'
    )
    assert (str(e), e.tensors) == ('needs 16.29G of 15.75G', [])


def test_the_largest_tensors_of_a_program():
    def step(x):
        with jax.named_scope('block_3'):
            y = jax.jit(lambda x: jnp.concatenate([x, x, x]))(x)
        return y.sum() + (x * 2).sum()

    program = jax.make_jaxpr(step)(jnp.zeros((8, 4), jnp.float32)).jaxpr
    (size, shape, scope), second = memory.largest(program, devices=4, count=2)
    assert (size, shape) == (3 * 8 * 4 * 4 // 4, 'float32[24,4]') and 'block_3' in scope
    assert second[:2] == (8 * 4 * 4 // 4, 'float32[8,4]')
