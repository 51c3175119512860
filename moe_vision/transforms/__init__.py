"""What happens to updates between the optimizer and the parameters, and what holds them still."""
