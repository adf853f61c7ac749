"""CivilComments: toxic comments, and the identities that they mention (WILDS' edition).

Borkan et al., "Nuanced Metrics for Measuring Unintended Bias with Real Data for Text
Classification", WWW 2019; splits and groups of Koh et al., "WILDS", ICML 2021.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from agrekd_ray.data.dataset import Annotations, Groups
from agrekd_ray.data.published import require
from agrekd_ray.data.splits import USUAL, by_number, four_splits
from agrekd_ray.data.table import Table
from agrekd_ray.data.text import TextDataset, Texts
from agrekd_ray.settings import LocalPath

FILE = "all_data_with_identities.csv"
TEXT, TOXICITY, SPLIT = "comment_text", "toxicity", "split"
CLASSES, ATTRIBUTES = ("nontoxic", "toxic"), ("no identity", "any identity")
IDENTITIES = (
    "male",
    "female",
    "LGBTQ",
    "christian",
    "muslim",
    "other_religions",
    "black",
    "white",
)
THRESHOLD = 0.5
"""Share of the raters from which on a comment is toxic, or mentions an identity."""
ORIGIN = (
    "The file is part of CivilComments in WILDS (Koh et al., ICML 2021), whose package downloads "
    "it as civilcomments_v1.0."
)


class CivilComments(Texts):
    """CivilComments as WILDS publishes it.

    Evaluation groups are class x whether any of eight identities is mentioned, four that do not
    overlap; the sixteen of WILDS, identity x class, which do, are reported beside them.

    Attributes:
        name: `civilcomments`.
        path: folder with `all_data_with_identities.csv`.
    """

    name: Literal["civilcomments"]
    path: LocalPath

    def open(self) -> TextDataset:
        """The data set in a folder.

        Raises:
            DataError: the file is missing or damaged, a value that is none, with its row, or no
                tokenizer.
        """
        require(self.path, {FILE: "comments, toxicity, splits and identities"}, ORIGIN)
        table = Table(self.path / FILE, [TOXICITY, SPLIT, *IDENTITIES])
        labels_N = (table.shares(TOXICITY) >= THRESHOLD).astype(np.int64)
        mentioned = [table.shares(name, empty=0) >= THRESHOLD for name in IDENTITIES]
        any_N = np.any(mentioned, axis=0).astype(np.int64)
        by_class = [(labels_N == label) & row for label in range(len(CLASSES)) for row in mentioned]
        groups = replace(
            Groups.crossed(labels_N, CLASSES, any_N, ATTRIBUTES),
            overlapping_NK=np.stack(by_class, axis=1),
            overlapping=tuple(f"{label}, {name}" for label in CLASSES for name in IDENTITIES),
        )
        split_N = table.numbers(SPLIT, {name: n for n, name in enumerate(USUAL)}, "its splits")
        splits = four_splits(by_number(split_N), groups.group_N, self.seed, str(table.path))
        return TextDataset(self, table, TEXT, Annotations(CLASSES, labels_N, groups, splits))
