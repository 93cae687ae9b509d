"""Errors, names, registries, typed sections of parameters, and fingerprints of code. Imports neither torch nor the project."""
