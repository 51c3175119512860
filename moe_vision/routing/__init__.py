"""The routing core: pure JAX without Flax or config. router -> Routing -> plan -> apply(experts).

`tests/routing/test_read_me_first.py` shows it on two small examples.
"""
