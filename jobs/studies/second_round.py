"""Iterated distillation: does a student of the first round make a better biased model, or teacher?

`second_round.py [FIRST LAST]` runs jobs/studies/second_round.yaml for draws 5 to 9, or those named,
and then, on the same data and with the same teachers, a second round in which

- `agre_kd_as_biased`: the AGRE-KD student takes the biased model's place,
- `aver_as_biased`: the AVER student does,
- `agre_kd_as_teacher`: the AGRE-KD student joins the teachers.

Prints each round's worst-group accuracy on the test split, by draw and seed, as CSV.
"""

import sys

import agrekd_ray as ak

JOB = "jobs/studies/second_round.yaml"


def worst(run):
    """Worst-group accuracy on the test split by method."""
    rows = run.table[(run.table.split == "test") & (run.table.metric == "worst_group_accuracy")]
    return dict(zip(rows.method, rows.value, strict=True))


def main(first, last):
    """Both rounds of draws `first` to `last`."""
    print("draw,seed,round,method,worst_group_accuracy")
    for draw in range(first, last + 1):
        # What `draws` of a study changes: the data, the pool of seven, the ensemble drawn from it.
        place = {"data.seed": draw, "teachers.seed": 7 * draw, "ensemble.seed": draw}
        for seed in (0, 1, 2):
            run = ak.run(JOB, {**place, "seeds": [seed]})
            student = {
                method: str(run.path / "students" / f"{method}-seed-{seed}")
                for method in ("aver", "agre_kd")
            }
            rounds = {
                "first": {},
                "agre_kd_as_biased": {"ensemble.biased": student["agre_kd"]},
                "aver_as_biased": {"ensemble.biased": student["aver"]},
                "agre_kd_as_teacher": {"ensemble.checkpoints": [student["agre_kd"]]},
            }
            for name, changes in rounds.items():
                again = ak.run(JOB, {**place, "seeds": [seed], **changes}) if changes else run
                for method, accuracy in worst(again).items():
                    print(f"{draw},{seed},{name},{method},{accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or (5, 9)))
