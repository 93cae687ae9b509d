"""Embedding against sentence-transformers' `encode`, and against what the machine's matrix products allow.

`python -m benchmarks.embedding` alternates both in one run on the Toys titles (`--dataset`), compares their rows, and prints the
ratio and the floor: FLOPs over the measured rate of the model's own matrix products. `--model llama3-8b` times a model of that
shape with random weights, in bf16, alone, as a share of the measured rate; it wants a GPU.
"""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from common.errors import UserError
from pipeline.device import environment, select_device
from pipeline.embedding.encoder import TextEncoder, plan
from pipeline.embedding.pretrained import model_location
from pipeline.params import Encoder, Params, load_params
from pipeline.runs import sequences_directory

LLAMA3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def products(config: Any) -> list[tuple[int, int]]:
    """Sizes (in, out) of a layer's matrix products."""
    width, inner = config.hidden_size, config.intermediate_size
    if config.model_type == "bert":
        return [(width, width)] * 4 + [(width, inner), (inner, width)]
    key_value = width * config.num_key_value_heads // config.num_attention_heads
    return [(width, width)] * 2 + [(width, key_value)] * 2 + [(width, inner)] * 2 + [(inner, width)]


def flops(config: Any, lengths: np.ndarray) -> float:
    """Of one pass over texts of these lengths, without padding: the products of every layer, and attention's two."""
    a_token = 2 * sum(inputs * outputs for inputs, outputs in products(config))
    attention = 4 * config.hidden_size * float((lengths.astype(float) ** 2).sum())
    if config.model_type != "bert":
        attention /= 2  # causal
    return config.num_hidden_layers * (a_token * float(lengths.sum()) + attention)


def matmul_rate(config: Any, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Measured FLOP/s of a layer's matrix products with this many tokens: the best of five half seconds."""
    sizes = products(config)
    inputs = {width: torch.randn(tokens, width, dtype=dtype, device=device) for width, _ in sizes}
    weights = [torch.randn(outputs, width, dtype=dtype, device=device) for width, outputs in sizes]
    each = 2 * tokens * sum(width * outputs for width, outputs in sizes)
    best = 0.0
    with torch.inference_mode():
        for _ in range(5):
            done, start = 0, seconds(device)
            while (now := seconds(device)) - start < 0.5:
                for weight in weights:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)
                done += 1
            best = max(best, each * done / (now - start))
    return best


def seconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def against_sentence_transformers(texts: list[str], options: Encoder, repeats: int, device: torch.device) -> None:
    from sentence_transformers import SentenceTransformer

    ours = TextEncoder(options, device)
    theirs = SentenceTransformer(model_location(options.model), device=str(device))

    def embed() -> np.ndarray:
        tokens = ours.tokenise(texts)
        batches = plan(tokens.lengths, options.batch_tokens)
        made = ours.rows(tokens, batches)
        rows = np.empty_like(made)
        rows[np.concatenate(batches)] = made
        return rows

    def reference() -> np.ndarray:
        return theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    lengths = ours.tokenise(texts).lengths
    _ = ours.model
    ours.rows(ours.tokenise(texts[:64]), [np.arange(64)])  # warm, both
    theirs.encode(texts[:64])
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats):
        made = {}
        for name, work in (("ours", embed), ("theirs", reference)):
            start = seconds(device)
            made[name] = work()
            times[name].append(seconds(device) - start)
        cosine = float((made["ours"] * made["theirs"]).sum(1).min())
        mine, other = times["ours"][-1], times["theirs"][-1]
        print(
            f"{repeat + 1}: {mine:.1f} s, sentence-transformers {other:.1f} s, ratio {other / mine:.2f}, "
            f"least cosine {cosine:.7f}"
        )
    rate = matmul_rate(theirs[0].auto_model.config, options.batch_tokens, torch.float32, device)
    floor = flops(theirs[0].auto_model.config, lengths) / rate
    mine, other = min(times["ours"]), min(times["theirs"])
    print(
        f"best of each: {len(texts):,} titles, {lengths.sum():,} tokens: {mine:.1f} s, {len(texts) / mine:,.0f} items/s, "
        f"{lengths.sum() / mine:,.0f} tokens/s; ratio {other / mine:.2f}; floor {floor:.1f} s at {rate / 1e9:,.0f} GFLOP/s"
    )


def random_llama(texts: list[str], params: Params, device: torch.device) -> None:
    """Time a model of LLaMA-3-8B's shape; MiniLM's tokenizer stands in for its own, which is gated."""
    from transformers import AutoModel, LlamaConfig

    config = LlamaConfig(**LLAMA3_8B, use_cache=False)
    dtype, batch_tokens = torch.bfloat16, params.encoders["llama3-8b"].batch_tokens
    encoder = TextEncoder(params.encoders["minilm"], device)
    with device:
        encoder.model = AutoModel.from_config(config, dtype=dtype).eval()
    tokens = encoder.tokenise(texts)
    batches = plan(tokens.lengths, batch_tokens)
    encoder.rows(tokens, batches[:2])  # warm
    start = seconds(device)
    encoder.rows(tokens, batches)
    took = seconds(device) - start
    rate = matmul_rate(config, batch_tokens, dtype, device)
    share = flops(config, tokens.lengths) / took / rate
    print(
        f"{len(texts):,} titles, {len(tokens.ids):,} tokens in {took:.1f} s: {len(tokens.ids) / took:,.0f} tokens/s, "
        f"{share:.0%} of the measured {rate / 1e12:,.1f} TFLOP/s of bf16 matrix products"
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["minilm", "llama3-8b"], default="minilm")
    parser.add_argument("--dataset", default="toys", help="its preprocessed titles are embedded")
    parser.add_argument("--texts", type=int, help="the first so many; all of them without")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    params = load_params()
    device = select_device()
    print(environment(device))
    items: Path = sequences_directory(arguments.dataset) / "items.parquet"
    if not items.is_file():
        raise UserError(f"{items} is missing; it is made by `dvc repro data/dvc.yaml:preprocess@{arguments.dataset}`")
    texts = pl.read_parquet(items)["text"].to_list()[: arguments.texts]
    if arguments.model == "llama3-8b":
        random_llama(texts, params, device)
    else:
        against_sentence_transformers(texts, params.encoders["minilm"], arguments.repeats, device)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"benchmarks.embedding: {error}") from None
