"""What it takes to add something: one file each, and one line in a table or a config."""
