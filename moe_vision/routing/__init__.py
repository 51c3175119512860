"""Routing core: pure JAX, no Flax, no config. router -> Routing -> plan -> apply(experts)."""
