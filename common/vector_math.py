"""Works around a race in oneMKL, which computes functions such as exp on CPUs."""

# Those that torch may pass to oneMKL (aten/src/ATen/cpu/vml.h).
FUNCTIONS = (
    *("abs", "acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma", "log", "log10", "log1p"),
    *("log2", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
)


def select_kernels() -> None:
    """Call every function of oneMKL once, in one thread, so that this process gives the same digits every time.

    oneMKL selects the kernel of a function at its first call. If several threads make that call at once, one of them may use a
    less accurate kernel (a relative error of 5e-5 in exp), for this call only (https://github.com/pytorch/pytorch/issues/188792).
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        x = torch.full((8,), 0.5, dtype=dtype)  # few enough that torch uses one thread
        for name in FUNCTIONS:
            getattr(torch, name)(x)
