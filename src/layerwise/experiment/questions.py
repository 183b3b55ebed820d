"""The questions of `layerwise analyze`."""

QUESTIONS = {
    "alignment": "angle and ratio of norms to backpropagation's gradient",
    "probe": "accuracy of a linear classifier on each block's output",
    "separability": "share of the training images that a linear classifier on it can fit",
    "information": "information of each block's output on the image and on the label",
    "extent": "effective rank, knee of the singular values and mean norm of each block's output",
    "correlation": "correlation of single features of each block's output with the label",
    "cka": "similarity of blocks, within a run and between the first run and the others",
    "memorization": "share of random labels that is memorized (needs --data.random_labels)",
    "feedback": "angle between feedback matrices and weights (FeedbackAlignment and similar rules)",
    "filters": "a picture of the first layer's filters",
    "difficulty": "training images that were learned late or forgotten (needs --outcomes true)",
}
# Questions about images that have one label each.
OF_IMAGES = (
    "probe",
    "separability",
    "information",
    "correlation",
    "memorization",
    "filters",
    "difficulty",
)
# Those that ask about classes.
OF_CLASSES = tuple(question for question in OF_IMAGES if question != "filters")
