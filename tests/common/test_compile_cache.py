"""Compiled programs are kept for later processes, in a folder per kind of processor."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from moe_vision.common import compile_cache


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A cache folder that is empty, with no cache set in jax."""
    keys = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {k: getattr(jax.config, k) for k in keys}
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(compile_cache, 'LEAST_SECONDS', 0.0)
    jax.config.update('jax_compilation_cache_dir', None)
    jax_cache.reset_cache()
    yield tmp_path
    for k, v in before.items():
        jax.config.update(k, v)
    jax_cache.reset_cache()


def square(x):
    return jnp.sin(x) * x + 17.25


def entries():
    return sorted(compile_cache.folder().glob('*square*-cache'))


def test_a_program_is_kept_and_a_damaged_one_is_compiled_again(empty):
    compile_cache.use()
    result = jax.jit(square)(3.0)
    (entry,) = entries()
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    jax.clear_caches()
    with pytest.warns(UserWarning, match='persistent compilation cache'):
        assert jax.jit(square)(3.0) == result
    entry.write_bytes(whole)
    jax.clear_caches()
    assert jax.jit(square)(3.0) == result and entries() == [entry]


def test_a_folder_that_the_user_has_set_stays(empty):
    jax.config.update('jax_compilation_cache_dir', str(empty / 'mine'))
    compile_cache.use()
    assert jax.config.jax_compilation_cache_dir == str(empty / 'mine')


def test_each_kind_of_processor_has_its_own_folder(empty, monkeypatch):
    here = compile_cache.folder()
    assert here.is_relative_to(empty) and compile_cache.folder() == here
    monkeypatch.setattr(Path, 'read_text', lambda self: 'processor : 0\nflags : fpu avx2\n')
    assert compile_cache.folder() != here
    monkeypatch.setattr(Path, 'read_text', lambda self: 'no features')
    assert compile_cache.folder().parent == here.parent


def test_compiling_says_what_and_how_long_the_last_time_took(empty, caplog):
    compile_cache.use()
    messages = []
    for n, text in enumerate(['', '{"half', '[1]', None]):  # the file may be damaged
        caplog.clear()
        jax.clear_caches()
        compiling = compile_cache.FirstCalls('conv')
        if text is not None:
            compile_cache.folder().mkdir(parents=True, exist_ok=True)
            (compile_cache.folder() / 'seconds.json').write_text(text)
        with caplog.at_level('INFO'):
            for _ in range(2):
                with compiling('the step'):
                    jax.jit(lambda x, n=n: jnp.sin(x) * n)(3.0)
        messages.append(list(caplog.messages))
    assert messages[0] == messages[1] == messages[2]
    told = 'compiled the step of conv in 0 s (tracing 0, lowering 0, compiling 0)'
    assert messages[2] == ['compiling the step of conv', told]
    assert messages[3][0] == 'compiling the step of conv; the last time took 0 s'


def test_a_program_from_the_cache_is_no_measure_of_compiling(empty, caplog):
    compile_cache.use()
    for n in range(2):
        caplog.clear()
        jax.clear_caches()
        with caplog.at_level('INFO'), compile_cache.FirstCalls('conv')('the step'):
            jax.jit(square)(3.0)
        file = compile_cache.folder() / 'seconds.json'
        assert file.exists()
        if n == 0:
            file.write_text(file.read_text().replace('0.', '40.'))
    assert 'the last time took 40 s' in caplog.messages[0]
    assert caplog.messages[1] == 'the step of conv was compiled before; ready in 0 s'
    assert '40.' in file.read_text()
