"""docs/results.md: every measurement in benchmarks/results/."""

from __future__ import annotations

import re

from pages import (
    accuracy,
    all_rules,
    asynchronous,
    by_depth,
    data_path,
    early_exits,
    overhead,
    probes,
    residual_gap,
    sequences,
    stages,
    steps,
    texts,
)

INTRODUCTION = """\
# Results

This page is written by `make tables` from the files in `benchmarks/results/`. Each file holds the
command that made it, versions, the machine and every raw number. Times and bytes are ratios to
backpropagation on the same network and batch. They were measured in turns in one run, so that
whatever else the machine did met all of them alike.

The *original study* is the study that this project grew out of (Nachum,
[github.com/AlonNT/Thesis](https://github.com/AlonNT/Thesis)).
"""


def page() -> str:
    """The whole document."""
    text = "\n".join(
        [
            *steps.sections(),
            overhead.section(),
            *accuracy.sections(),
            *all_rules.section(),
            *residual_gap.section(),
            *texts.section(),
            *early_exits.section(),
            *sequences.section(),
            *stages.section(),
            *asynchronous.section(),
            *by_depth.section(),
            *probes.section(),
            *data_path.section(),
        ]
    )
    contents = [f"- [{name}](#{anchor(name)})" for name in re.findall(r"^## (.*)$", text, re.M)]
    return "\n".join([INTRODUCTION, *contents, "", text])


def anchor(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
