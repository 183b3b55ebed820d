"""Tools for rules that run a block again, or compute its layers otherwise."""
