"""What a router, loss, expert, backbone or transform must hold, as checks that anyone can run.

`own.check` judges the methods of one's own that a config names, before anything is written; all
commands that build a network call it. `shapes` traces the network; `routers` and `values` judge one
method by its values on small inputs, and `transforms` does both for transforms. The tests run them
on every line of the tables, and so can anyone on a method of their own:
`python -m moe_vision.check my.routers:Mine`.
"""
