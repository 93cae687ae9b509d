"""What every layer uses: errors, names, registries, typed sections of parameters, fingerprints of code, memory, disks, words.

Imports nothing of the project. Importing any of its modules does not import torch.
"""
