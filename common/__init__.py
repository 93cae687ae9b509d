"""Errors, names, registries, typed sections of parameters, and fingerprints of code.

Imports nothing of the project. Importing any of its modules does not import torch.
"""
