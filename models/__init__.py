"""Adapters, backbones and losses in PyTorch. They read no files. Importing this package does not import torch."""
