"""Programs compile in half the time without XLA's newer way of emitting loops."""

import os

import jax

if jax.__version_info__ < (0, 11):  # XLA ends the process where it does not know a flag
    os.environ['XLA_FLAGS'] = (
        os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_use_fusion_emitters=false').strip()
