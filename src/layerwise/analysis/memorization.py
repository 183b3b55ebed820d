"""How many random labels a network has memorised."""

from __future__ import annotations

from torch import Tensor

from layerwise.analysis.frozen import Source, reading
from layerwise.blocks.chain import dry_run
from layerwise.rules.base import Rule


def memorization(rule: Rule, loader: Source, relabelled: Tensor) -> tuple[float | None, ...]:
    """The share of randomly labelled training samples whose label each exit predicts.

    Zhang et al. 2017 (arXiv:1611.03530): a random label cannot be predicted, only memorised, so
    accuracy on these samples beyond 1 / classes measures the capacity to memorise. `data.load(...,
    random_labels=1.0)` makes such a training split; `Splits.relabelled` marks these samples.

    Args:
        rule: trained on the samples, on the device of the loader; it runs in eval mode.
        loader: gives the training split in its order.
        relabelled: marks the samples with a random label, (N,) bool.

    Returns:
        For every block, 0 to 1; None if it does not predict.
    """
    right: list[Tensor | None] = [None] * len(rule.blocks)
    loader = reading(loader, rule, "memorization(loader)")
    total, first = int(relabelled.sum()), 0
    with dry_run(rule):
        for x, y in loader.epoch(0):
            random = relabelled[first : first + len(y)].to(y.device)
            first += len(y)
            for i, scores in enumerate(rule.exits(x)):
                if scores is not None:
                    hits = ((scores.argmax(-1) == y) & random).sum()
                    before = right[i]
                    right[i] = hits if before is None else before + hits
    return tuple(None if r is None else r.item() / max(1, total) for r in right)
