"""The mathematics of AGRE-KD: pure PyTorch, nothing else.

No Ray, no MLflow, no files, no randomness of its own, and no import of ours from outside this
folder. `kd` has the loss and its closed-form gradient, `strategies` the ways of weighting
teachers, `weighting` what is called on each step, `quadratic` the solver behind AE-KD, `groups`
the metrics by group.

Shapes stand in names (`logits_BC`, `gradients_MBC`, `weights_MB`), one letter an axis:

    B  samples of a batch        M  teachers (members of an ensemble)
    C  classes                   D  features
    N  samples of a data set     G  evaluation groups

"Paper" is Kenfack et al., "Adaptive Group Robust Ensemble Knowledge Distillation", TMLR 2025,
arXiv 2411.14984v2. Logits and gradients are plain numbers without a unit; every logarithm is
natural, so losses are in nats (times the squared temperature).
"""
