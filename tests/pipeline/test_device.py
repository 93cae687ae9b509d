"""The device and precision of a process on a machine without a GPU."""

import pytest
import torch

from pipeline.device import select_device, training_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("float32", torch.float32, ""),
        ("bfloat16", torch.bfloat16, ""),
        ("tf32", torch.float32, "precision: float32 (train.precision is tf32, which is a GPU's)\n"),
    ],
)
def test_products_have_the_precision_or_a_line_says_why_not(
    capsys: pytest.CaptureFixture[str], name: str, dtype: torch.dtype, said: str
) -> None:
    context = training_precision(name, CPU)
    for _ in range(2):
        with context():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32, "only inside a step"
    assert capsys.readouterr().out == said


def test_the_choice_of_the_device_is_printed_with_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert select_device() == CPU
    assert capsys.readouterr().out == "device: cpu (torch finds no GPU; 3 threads)\n"
