"""Shards: any number of processes, interrupted at any point, give the same bytes as one process."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from pipeline.embedding import encoder as encoder_module
from pipeline.embedding import pretrained
from pipeline.embedding.encoder import TextEncoder, encode
from pipeline.embedding.processes import Processes
from pipeline.embedding.shards import Shards
from pipeline.params import Encoder
from tests.pipeline.embedding.conftest import texts

ROOT = Path(__file__).parents[3]


@pytest.fixture
def options(llama: Path) -> Encoder:
    return Encoder(model=str(llama), batch_tokens=60)


def shards(options: Encoder, some: list[str] | None = None) -> Shards:
    return Shards(some or texts(100), options, Processes())


def saved(current: Shards, path: Path) -> bytes:
    current.save(path)
    return path.read_bytes()


# ----------------------------------------------------------------------------------------------------------------- one process


def test_shards_together_are_what_encode_makes_in_memory(options: Encoder, tmp_path: Path) -> None:
    current = shards(options)
    record = current.embed()
    assert record["shards"] == record["embedded_now"]["shards"] > 3
    assert current.save(tmp_path / "e.npy") == (100, 16)
    expected, counted = encode(texts(100), options)
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), expected)
    assert record["tokens"] == record["embedded_now"]["tokens"] == counted["tokens"]
    current.remove()
    assert not current.directory.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides there, not the processor")
@pytest.mark.parametrize(
    ("vendor", "flags", "dtype"),
    [
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", "bfloat16"),
        ("GenuineIntel", "avx512_bf16", "float32"),
        ("AuthenticAMD", "avx512_bf16", "bfloat16"),
        ("AuthenticAMD", "avx2", "float32"),
    ],
)
def test_dtype_auto_is_what_the_processor_is_faster_with(
    options: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, dtype: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu {flags} sse\n")
    monkeypatch.setattr(pretrained, "CPUINFO", cpuinfo)
    current = shards(options.model_copy(update={"dtype": "auto"}))
    assert current.encoder.options.dtype == dtype
    assert current.fingerprint == shards(options.model_copy(update={"dtype": dtype})).fingerprint
    current.embed()
    assert str(current.encoder.model.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((7, 5), "float32")])
def test_dtype_auto_is_what_the_gpu_has_units_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert pretrained.automatic_dtype() == dtype


@pytest.mark.parametrize("damage", [None, b"", b"\x93NUMPY", "short", "flip", "swap"])
def test_only_missing_and_damaged_shards_are_made_again(options: Encoder, tmp_path: Path, damage: bytes | str | None) -> None:
    current = shards(options)
    current.embed()
    whole = saved(current, tmp_path / "first.npy")
    victim = sorted(current.directory.iterdir())[2]
    if damage is None:
        victim.unlink()
    elif damage == "short":
        np.save(victim, np.load(victim)[:-1])
    elif damage == "flip":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "swap":
        shutil.copyfile(next(path for path in sorted(current.directory.iterdir()) if path != victim), victim)
    else:
        victim.write_bytes(damage)
    before = {path.name: path.stat().st_mtime_ns for path in current.directory.iterdir() if path != victim}
    again = shards(options)
    assert again.embed()["embedded_now"]["shards"] == 1
    assert {path.name: path.stat().st_mtime_ns for path in current.directory.iterdir() if path != victim} == before
    assert saved(again, tmp_path / "second.npy") == whole


def test_a_shard_that_is_damaged_before_it_is_put_together_is_one_line(options: Encoder, tmp_path: Path) -> None:
    current = shards(options)
    current.embed()
    victim = sorted(current.directory.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="is damaged, its checksum is not that at its end"):
        current.save(tmp_path / "e.npy")


def test_a_full_disk_is_an_error_that_names_it_and_no_crash(
    options: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is allocated before anything is written to its memory map."""
    current = shards(options)
    current.embed()
    asked: list[int] = []

    def full(_: int, start: int, length: int) -> None:
        asked.append(length - start)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.embedding.shards.os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*e\.npy"):
        current.save(tmp_path / "e.npy")
    assert asked == [128 + 100 * 16 * 4]


def test_finished_shards_need_no_model(options: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(options).embed()
    monkeypatch.setattr(TextEncoder, "model", property(lambda self: pytest.fail("the model was loaded")))
    assert shards(options).embed()["embedded_now"]["shards"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "last"},
        {"pool_special_tokens": False},
        {"revision": "another"},
        {"normalise": False},
        {"dtype": "bfloat16"},
        {"prompt": "red "},
        {"max_length": 5},
        {"batch_tokens": 61},
    ],
)
def test_shards_of_other_settings_are_never_used(options: Encoder, change: dict[str, Any]) -> None:
    assert shards(options).directory != shards(options.model_copy(update=change)).directory


def test_shards_of_other_texts_or_weights_or_code_are_never_used(
    options: Encoder, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {shards(options).directory, shards(options, [*texts(99), "red"]).directory}
    for change in ("model.safetensors", "tokenizer_config.json"):
        folder = tmp_path / change
        folder.mkdir()
        for file in llama.iterdir():
            content = file.read_bytes()
            (folder / file.name).write_bytes(
                content.replace(b"}", b"} ", 1) if file.name == change == "tokenizer_config.json" else content
            )
        if change == "model.safetensors":
            from safetensors.numpy import load_file, save_file

            weights = load_file(folder / change)
            weights["norm.weight"] = weights["norm.weight"] * 2
            save_file(weights, folder / change, metadata={"format": "pt"})
        record.add(shards(options.model_copy(update={"model": str(folder)})).directory)
    identity = TextEncoder(options).identity
    monkeypatch.setattr("pipeline.embedding.shards.file_sha256", lambda path: "other code")
    record.add(shards(options).directory)
    assert len(record) == 5
    assert TextEncoder(options).identity == identity


def test_shards_that_another_run_of_the_same_embedding_removes_are_made_again(
    options: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people run the same embedding, and the first to finish removes the shards."""
    reference = shards(options)
    reference.embed()
    whole = saved(reference, tmp_path / "first.npy")
    reference.remove()
    current, make, removed = shards(options), Shards._compute, []

    def make_and_lose(self: Shards, share: list[int]) -> None:
        make(self, share)
        if not removed:
            removed.append(self.remove())

    monkeypatch.setattr(Shards, "_compute", make_and_lose)
    current.embed()
    assert saved(current, tmp_path / "second.npy") == whole


def test_a_device_map_is_refused_with_several_processes(options: Encoder) -> None:
    processes = Processes()
    processes.count = 2
    with pytest.raises(UserError, match="device_map: auto spreads one model over all GPUs, so start one process, found 2"):
        Shards(texts(3), options.model_copy(update={"device_map": "auto"}), processes)


def test_out_of_memory_in_one_shard_leaves_the_others_as_they_are(
    options: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are halved only within a shard, so running out of memory in one shard does not change the next."""
    forward = TextEncoder._forward
    sizes: list[int] = []

    def tight(self: TextEncoder, tokens: Any, batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        if len(sizes) == 1:
            raise encoder_module.torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, tokens, batch)

    def rows(current: Shards) -> list[np.ndarray]:
        current.embed()
        found = [np.load(path) for path in sorted(current.directory.iterdir())]
        current.remove()
        return found

    expected = rows(shards(options))
    monkeypatch.setattr(TextEncoder, "_forward", tight)
    found = rows(shards(options))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    for actual, reference_rows in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(actual, reference_rows)
    assert sizes[1] == -(-sizes[0] // 2)
