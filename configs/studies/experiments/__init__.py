"""The structure of each question, the same for every data set: `study(data) -> Study`."""
