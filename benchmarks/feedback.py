"""Cost of a step with feedback through other matrices: VGG8b, every layer a block.

python benchmarks/feedback.py    writes results/step-vgg8b-feedback.json
"""

from __future__ import annotations

from in_turns import measure_vgg8b

from layerwise import rules

RULES = (
    rules.FeedbackAlignment,
    rules.SignSymmetry,
    rules.DirectFeedbackAlignment,
    rules.DirectRandomTargetProjection,
)


def main() -> None:
    makers = {rule.__name__: rule for rule in RULES}
    measure_vgg8b("VGG8b, 8 blocks", "vgg8b-feedback", makers, batch=32, rounds=3)


if __name__ == "__main__":
    main()
