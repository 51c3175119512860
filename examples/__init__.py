"""Shows how to add a router, a backbone or a data set: one file, and its name in a config."""
