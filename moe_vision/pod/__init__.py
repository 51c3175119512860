"""Checks a pod without a pod: the TPU compiler compiles the training step on any machine.

`python -m moe_vision.pod --config=FILE --topology=v5e:16x16`; docs/pod.md explains the output.
"""
