"""The version, for the code and the package alike."""

VERSION = "0.1.0"
