"""Pure PyTorch: tensors in, tensors out. No files, no parameters file. Importing this package does not import torch."""
