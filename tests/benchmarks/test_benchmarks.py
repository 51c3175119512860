"""Benchmarks compare what they say they compare."""

import dataclasses
import importlib
import json
import sys
import types

import jax
import numpy as np
import pytest

from benchmarks import compiled as compiled_for_gpu
from benchmarks import (
    forms,
    input_pipeline,
    latency,
    layer,
    methods,
    peers,
    run,
    seeds,
    startup,
    step,
)
from benchmarks.table import Row, markdown
from benchmarks.timing import compiled
from input_pipeline import info
from moe_vision.config import check as config_lib
from moe_vision.config import rules
from moe_vision.study import load

VECTORS = forms.Shape(24, 8, 16, 4, 2, 0.75, g=2)  # a group has 48 choices for 36 slots
MAPS = forms.Shape(8, 8, 8, 2, 1, 1.25, side=4)


@pytest.mark.parametrize('shape', [VECTORS, dataclasses.replace(VECTORS, cf=4.0)], ids=str)
def test_all_forms_compute_the_same_layer(shape):
    params, bank, x = forms.drawn(shape)
    plan = forms.planned(shape, params, x)
    dropped = not plan.keep.all()
    assert dropped == (shape.cf < 1)
    ours = jax.jit(forms.routed(shape))(params, bank, x)
    theirs = {'einsum': forms.by_einsum(shape)}
    if not dropped:
        theirs['ragged'] = forms.by_ragged_products(shape)
    for name, fn in theirs.items():
        np.testing.assert_allclose(ours, jax.jit(fn)(params, bank, x), 1e-4, 1e-4, err_msg=name)


def test_with_k_equal_to_e_the_layer_runs_every_token_through_every_expert():
    shape = forms.Shape(12, 8, 16, 4, 4, 1.0)
    params, bank, x = forms.drawn(shape)
    np.testing.assert_allclose(
        jax.jit(forms.routed(shape))(params, bank, x),
        jax.jit(forms.everything(shape))(params, bank, x),
        1e-4,
        1e-4,
    )


def test_all_forms_of_the_convolutions_of_experts_compute_the_same():
    x, kernel = forms.Maps(2, 3, 5, 4).drawn()
    by_form = {n: jax.jit(forms.with_gradient(fn)) for n, fn in forms.of_maps().items()}
    ours, *theirs = (fn(x, kernel) for fn in by_form.values())
    for name, both in zip(list(by_form)[1:], theirs, strict=True):
        for a, b in zip(ours, both, strict=True):
            np.testing.assert_allclose(a, b, 1e-4, 1e-4, err_msg=name)


@pytest.mark.parametrize(
    'shape, compared',
    [
        (VECTORS, ['layer', 'floor', 'dense', 'einsum', 'ragged', 'all']),
        (MAPS, ['layer', 'floor', 'dense']),
    ],
    ids=str,
)
def test_a_row_has_a_time_for_everything_compared(shape, compared):
    row = layer.beside_floor(shape, rounds=2)
    assert list(row.seconds) == compared and set(row.aims) < set(compared)
    assert all(len(s) == 2 and min(s) > 0 for s in row.seconds.values())
    assert all(row.facts[n] > 0 for n in ('MB of layer', 'MB of floor', 'compiling s'))


def test_a_compiled_program_knows_its_time_and_memory_before_it_runs():
    x = jax.numpy.ones((512, 512))  # one MiB
    twice = jax.jit(lambda x: (jax.numpy.sort(x @ x), x.sum()), donate_argnums=0)
    for fn, donated in ((twice, True), (lambda x: (jax.numpy.sort(x @ x), x.sum()), False)):
        program = compiled(fn, x)
        assert program.temporary_mb >= 0
        assert 0 < program.tracing + program.lowering < program.seconds
        assert program.total_mb - program.temporary_mb == pytest.approx(2**20 / 1e6, rel=0.01)
        y = x + 0
        jax.block_until_ready(program(y))
        assert y.is_deleted() == donated


HLO = """HloModule jit_f, entry_computation_layout={(bf16[4,8,16]{2,1,0})->f32[4,8,2]{2,1,0}}

%product (p: bf16[4,8,16], q: bf16[4,16,2]) -> f32[4,8,2] {
  %p = bf16[4,8,16]{2,1,0} parameter(0)
  %q = bf16[4,16,2]{2,1,0} parameter(1)
  ROOT %dot.1 = f32[4,8,2]{2,1,0} dot(%p, %q), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}

%buffer (a: bf16[4,8,16]) -> bf16[4,8,16] {
  %a = bf16[4,8,16]{2,1,0} parameter(0)
  ROOT %copy.1 = bf16[4,8,16]{2,1,0} copy(%a)
}

ENTRY %main (x: bf16[4,8,16], y: bf16[4,16,2]) -> f32[4,8,2] {
  %x = bf16[4,8,16]{2,1,0} parameter(0)
  %y = bf16[4,16,2]{2,1,0} parameter(1)
  %call = bf16[4,8,16]{2,1,0} call(%x), to_apply=%buffer
  %gemm = f32[4,8,2]{2,1,0} fusion(%call, %y), kind=kCustom, calls=%product
  %flat = bf16[32,16]{1,0} bitcast(%call)
  ROOT %cublas = (f32[32,16]{1,0}, s8[33554432]{0}) custom-call(%flat, %flat), custom_call_target="__cublas$lt$matmul", backend_config={"dot_dimension_numbers":{"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}
}
"""  # noqa: E501


def test_kernels_of_a_program_by_hand():
    """Bytes of operands and results without a workspace; FLOPs of products, also in fusions."""
    copy, gemm, cublas = compiled_for_gpu.kernels(HLO)
    assert (copy.name, copy.bytes, copy.busy) == ('copy.1', 2 * 2 * 512, 0)
    assert gemm.bytes == 2 * (512 + 128) + 4 * 64
    assert gemm.busy == pytest.approx(2 * 4 * 8 * 16 * 2 / 989e12)
    assert cublas.bytes == 2 * 2 * 512 + 4 * 512
    assert cublas.busy == pytest.approx(2 * (512 * 512 * 512) ** 0.5 / 989e12)
    assert gemm.seconds == gemm.bytes / compiled_for_gpu.BANDWIDTH
    assert dataclasses.replace(gemm, busy=1.0).seconds == 1
    in_float32 = HLO.replace('bf16[', 'f32[')
    for slow, fast in zip(compiled_for_gpu.kernels(in_float32), (copy, gemm, cublas), strict=True):
        assert slow.busy == pytest.approx(fast.busy * 989 / 67)


@pytest.mark.parametrize(
    'kind, first, second, result',
    [
        ('Forward', '2,8,8,4', '6,3,3,4', '2,8,8,6'),
        ('BiasActivationForward', '2,8,8,4', '6,3,3,4', '2,8,8,6'),
        ('BackwardInput', '2,8,8,6', '6,3,3,4', '2,8,8,4'),
        ('BackwardFilter', '2,8,8,4', '2,8,8,6', '6,3,3,4'),
    ],
)
def test_a_convolution_of_a_program_by_hand(kind, first, second, result):
    """2 images of 8x8, from 4 to 6 channels by 3x3 taps: 768 outputs, each from 36 weights."""
    (kernel,) = compiled_for_gpu.kernels(f"""HloModule jit_f

ENTRY %main (x: bf16[{first}], y: bf16[{second}]) -> bf16[{result}] {{
  %x = bf16[{first}]{{3,2,1,0}} parameter(0)
  %y = bf16[{second}]{{3,2,1,0}} parameter(1)
  ROOT %conv = (bf16[{result}]{{3,2,1,0}}, u8[4096]{{0}}) custom-call(%x, %y), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{kind}"
}}
""")  # noqa: E501
    assert kernel.busy == pytest.approx(2 * 768 * 36 / 989e12)
    assert kernel.bytes == 2 * (2 * 64 * 4 + 2 * 64 * 6 + 6 * 36)


def test_without_the_gpu_compiler_the_error_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['compiled'])
    monkeypatch.setattr(compiled_for_gpu, 'PLUGINS', ('no_such_plugin',))
    with pytest.raises(SystemExit) as ended:
        compiled_for_gpu.main()
    assert ended.value.code == 2 and "pip install 'jax[cuda12]'" in capsys.readouterr().err


def test_ratios_are_medians_of_rounds():
    row = Row(
        'a case',
        {'ours': [1.0, 4.0, 3.0], 'theirs': [2.0, 2.0, 3.0], 'others': [1.0, 1.0, 1.0]},
        {'theirs': 0.9, 'others': 3.0},
        {'MB': 1234},
    )
    assert row.ratios == {'theirs': 1.0, 'others': 3.0} and row.missed == ['theirs']
    assert row.milliseconds == {'ours': 3000, 'theirs': 2000, 'others': 1000}
    rows = [
        row,
        Row('another', {'ours': [0.5], 'theirs': [2.0]}),
        Row('a third', {'ours': [0.25], 'last': [2.0]}),
    ]
    assert markdown([r.record() for r in rows]) == [
        '| case | ms | / theirs | / others | MB |',
        '|---|---|---|---|---|',
        '| a case | 3,000 | **1** (0.9) | 3 (3) | 1,234 |',
        '| another | 500 | 0.25 |  |  |',
        '',
        '| case | ms | / last |',
        '|---|---|---|',
        '| a third | 250 | 0.125 |',
    ]


def test_the_files_keep_suites_that_were_measured_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, 'device', lambda: 'a-chip')
    suites = {
        n: types.SimpleNamespace(
            __doc__=f'About {n}.\n\nMore.',
            rows=lambda rounds, n=n: [
                Row(f'case of {n}', {'ours': [1.0] * rounds, 'theirs': [2.0] * rounds})
            ],
        )
        for n in ('layer', 'input')
    }
    monkeypatch.setattr(
        run.importlib, 'import_module', {run.SUITES[n]: m for n, m in suites.items()}.__getitem__
    )
    for name in 'input', 'layer':
        monkeypatch.setattr(sys, 'argv', ['run', f'--suite={name}', f'--out={tmp_path}'])
        assert run.main() == 0
    text = (tmp_path / 'a-chip.md').read_text()
    assert text.index('## layer') < text.index('About layer.') < text.index('## input')
    assert '| case of input | 1,000 | 0.5 |' in text and 'More' not in text
    written = json.loads((tmp_path / 'a-chip.json').read_text())['suites']
    assert written['input']['rows'][0]['ratios'] == {'theirs': 0.5}
    monkeypatch.setattr(sys, 'argv', ['run', '--suite=layers'])
    with pytest.raises(SystemExit):
        run.main()
    assert "unknown suite 'layers'" in capsys.readouterr().err


def test_rows_measured_before_a_failure_are_kept(tmp_path, monkeypatch):
    def rows(rounds):
        yield Row('first', {'ours': [1.0] * rounds})
        raise RuntimeError('the second case does not compile')

    suite = types.SimpleNamespace(__doc__='About.', rows=rows)
    monkeypatch.setattr(run, 'device', lambda: 'a-chip')
    monkeypatch.setattr(run.importlib, 'import_module', lambda name: suite)
    monkeypatch.setattr(sys, 'argv', ['run', '--suite=step', f'--out={tmp_path}'])
    with pytest.raises(RuntimeError):
        run.main()
    written = json.loads((tmp_path / 'a-chip.json').read_text())['suites']
    assert [row['case'] for row in written['step']['rows']] == ['first']


def test_the_baseline_of_a_method_takes_over_its_size_and_chooses_no_more_than_all_experts():
    moe = '--config.model.moe.'
    line = [f'{moe}router=duo', f'{moe}num_experts=2', f'{moe}k=3', '--config.model.name=conv']
    assert methods.baseline(line) == [
        f'{moe}num_experts=2',
        f'{moe}k=2',
        '--config.model.name=conv',
    ]
    assert methods.baseline([f'{moe}router=ssr', f'{moe}k=1']) == [f'{moe}k=1']


@pytest.mark.parametrize('suite', run.SUITES)
def test_every_suite_says_what_it_compares(suite):
    module = importlib.import_module(run.SUITES[suite])
    assert callable(module.rows) and module.__doc__.split('\n')[0].endswith(('.', 'scan.'))


@pytest.mark.parametrize('make', [*step.GPU.values(), *latency.NETWORKS.values()])
def test_every_config_that_is_timed_fits_its_data(make):
    config = config_lib.check(make())
    rules.check_with_data(config, info(config.dataset))


def test_a_command_is_timed_to_its_end_or_to_a_line(tmp_path):
    took = startup.seconds(['--mode=nothing'], str(tmp_path))
    assert 0 < took < 30
    row = startup.beside_limit('a mistake', [took, took], 1e-3)
    assert row.missed == ['limit']


def test_the_whole_study_differs_only_by_its_seed_mode(monkeypatch):
    studies = {
        mode: load.load(f'benchmarks/whole_study.py:{mode}').study
        for mode in ('together', 'one_by_one')
    }
    assert studies['together'].seed_mode == 'together' and len(studies['together'].seeds) == 8
    assert dataclasses.replace(studies['together'], name='', seed_mode='one_by_one') == (
        dataclasses.replace(studies['one_by_one'], name='')
    )
    monkeypatch.setattr(
        seeds,
        'study_seconds',
        lambda *way: {('together', 1): 4.0, ('one_by_one', 1): 5.0, ('one_by_one', 2): 2.0}[way],
    )
    assert seeds.whole_study(2).ratios == {'one by one': 0.8, 'one by one, two processes': 2.0}
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match='whole_study.py:apart .* failed'):
        seeds.study_seconds('apart', 1)


def test_readers_of_images_do_the_same_work(monkeypatch, tmp_path):
    monkeypatch.setattr(input_pipeline, 'IMAGES', 4)
    monkeypatch.setattr(input_pipeline, 'BATCH', 2)
    files = input_pipeline.photographs(4)
    assert len(set(files)) == 4 and all(80_000 < len(f) < 160_000 for f in files)
    ours, pillow = (
        read(files)(7)
        for read in (lambda f: input_pipeline.by_rows(f, 0), input_pipeline.by_pillow)
    )
    for one, other in zip(ours, pillow, strict=True):
        assert one.shape == other.shape == (224, 224, 3)
        assert np.abs(one.astype(int) - other).mean() < 8  # the same crop, by another filter
        assert np.abs(one.astype(int) - other[:, ::-1]).mean() > 12
    loader, loop = input_pipeline.by_loader(str(tmp_path)).values()
    first = loader(1)
    assert [batch['image'].shape for batch in first] == [(2, 224, 224, 3)] * 2
    assert all(batch['valid'].all() for batch in first)
    for batch, (alone, unreadable) in zip(first, loop(1), strict=True):
        np.testing.assert_array_equal(batch['image'], alone['image'])
        assert not unreadable
    times = input_pipeline.measure({'ours': input_pipeline.by_rows(files, 2), 'pil': loader}, 3)
    assert [len(t) for t in times.values()] == [3, 3] and min(map(min, times.values())) > 0


def test_a_method_stands_beside_top_k_in_its_own_places_and_sizes(monkeypatch):
    size = ['--config.model.moe.num_experts=4', '--config.model.moe.k=1']
    line = [*size, '--config.model.moe.router=random', '--config.model.moe.losses={}']
    line += ['--config.model.moe.router_args={}']
    ours, other = (methods.config_of(args).model.moe for args in (line, methods.baseline(line)))
    assert (ours.router, other.router) == ('random', 'top_k')
    assert (ours.k, ours.num_experts) == (other.k, other.num_experts) == (1, 4)

    def stepper(args):
        step = types.SimpleNamespace(seconds=1.0)
        made.append(args)
        return types.SimpleNamespace(call=lambda: None, flops=len(args), step=step)

    made, known = [], {}
    monkeypatch.setattr(methods, 'Stepper', stepper)
    for name in ('random', 'again'):
        found = methods.beside_top_k(name, line, known, rounds=2)
        assert list(found.seconds) == [name, 'top-k']
        assert found.facts['times the FLOPs'] == 5 / 2
    assert made == [size, line, line]  # both have one baseline


def test_every_form_of_a_layer_is_compiled_for_a_device_and_has_kernels():
    shape = forms.Shape(4, 4, 4, 2, 1, 1.0)
    programs = compiled_for_gpu.compiled(jax.devices()[0], compiled_for_gpu.forms_of(shape))
    assert list(programs) == ['layer', 'floor', 'einsum', 'ragged']
    assert all(k.bytes >= 0 for p in programs.values() for k in p.kernels)
    assert len(programs['layer'].kernels) > len(programs['floor'].kernels) > 0


def test_torch_computes_the_same_layer():
    """Where nothing is dropped; tokens in float32."""
    pytest.importorskip('torch')
    shape = dataclasses.replace(VECTORS, cf=4.0)
    params, bank, x = forms.drawn(shape)
    layer = peers.torch_layer(shape, peers.tensors((params, bank), 'cpu'))
    theirs = layer(peers.tensors(x, 'cpu')).detach().numpy()
    np.testing.assert_allclose(jax.jit(forms.routed(shape))(params, bank, x), theirs, 1e-4, 1e-4)


def test_calls_in_a_row_are_timed_together():
    done = []
    row = peers.several('case', {'ours': lambda: done.append(0)}, 4, 3, {}, {})
    assert len(done) == 4 * (3 + 2)  # two rounds warm up
    assert len(row.seconds['ours']) == 3


def test_peers_are_left_out_where_they_are_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, 'find_spec', lambda name: None)
    assert not list(peers.rows(1))
    assert 'torch is not installed' in capsys.readouterr().err
