"""Where data sets come from: one source per file, each gives the `Parts` of a set."""
