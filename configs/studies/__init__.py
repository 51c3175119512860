"""Studies: one file per experiment; its argument is the data set, `top_k.py:digits`, or a part.

| file | experiment |
|---|---|
| `width.py` | E1: the routed share of compute |
| `placement.py` | E2: where the network is routed |
| `top_k.py` | E3 and E4: k = 1, 2 and 4, and the controls of that ablation |
| `soft.py` | E5: Soft MoE over the batch or within an image |
| `temperature.py` | E6: schedules of the router's temperature |
| `wall_clock.py` | E7: accuracy against time |
| `tuning.py` | learning rate and epochs, chosen on validation before any of these |
| `gate.py` | whether the Fashion-MNIST campaign can answer; its argument is the part |
| `confirm.py` | the campaign's question: when experts help in a small network that lacks capacity |
| `explore.py` | where that answer holds; its argument is the part |
| `routers.py` | the routers and losses of the literature against top-k and dense twins |

`campaign` and `beside_confirm` hold what the studies of that campaign share. For the others, `sets`
holds the numbers of every data set, `data_set` describes their fields, and `common` holds what they
share. A study says which of its hypotheses are claims of arXiv 2605.15484; networks, E, capacity,
widths, optimizer, epochs, batch and augmentation are this project's own choice.
"""
