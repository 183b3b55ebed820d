"""Families of rules: the base class that the rules of a family share, and its maths."""
