"""Takes a trained network out of its run: programs, weights, and a card that describes them."""
