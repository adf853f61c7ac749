"""Group-robust distillation of large teacher ensembles on Ray (AGRE-KD).

Three files to read first: `student/training.py` (the step), `core/weighting.py` (who teaches
whom) and `fleet/fleet.py` (where the gradients come from).
"""

__version__ = "0.1.0"
