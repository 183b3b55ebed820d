"""The version, for the code and the package alike."""

VERSION = "0.2.0"
