"""Files with weights of other programs: reading them, and what their arrays are called here."""
