"""One module per data set; none imports tfds, jax or grain."""
