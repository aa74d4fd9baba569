"""How good the verdict is: seeded rollouts through `deployctl.core.panel.Panel`, beside other tools' rules on the same streams.

python -m benchmarks.verdict            the whole table M1 to M11, about ten thousand rollouts per guarantee
python -m benchmarks.verdict --short    the guarantees alone, under a minute on one core; exit code 1 if one is broken

streams (what happens to both versions) → ladder (deployctl climbs) and others (Flagger, Argo, …) → targets → table and plot.
"""
