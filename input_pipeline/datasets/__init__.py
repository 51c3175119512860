"""Holds one module per data set. None of them imports tfds, jax or grain."""
