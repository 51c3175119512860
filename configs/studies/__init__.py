"""Studies: one file per data set and question, `{data set}_{question}.py`, each with `get_study()`.

`sets` holds the numbers of every data set, `experiments` the structure of each question once. What
is said to be a claim of arXiv 2605.15484 is one; networks, E, capacity, widths, optimizer, epochs,
batch and augmentation are this project's own choice.
"""
