"""Time of embedding, compared with sentence-transformers' `encode` and with a lower bound for this machine.

`python -m benchmarks.embedding` alternates ours in float32, ours in bfloat16 and theirs in float32 on the Toys titles
(`--dataset`), compares their rows, and prints the ratios of their times and the lower bound: FLOPs divided by the measured rate
of the model's matrix products. `--model llama3-8b` times only our embedding with a model of that shape with random weights in
bf16, as a share of the measured rate; it needs a GPU.
"""

import time
from argparse import ArgumentParser
from functools import partial
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
    """Return the sizes (in, out) of a layer's matrix products."""
    width, inner = config.hidden_size, config.intermediate_size
    if config.model_type == "bert":
        return [(width, width)] * 4 + [(width, inner), (inner, width)]
    key_value = width * config.num_key_value_heads // config.num_attention_heads
    return [(width, width)] * 2 + [(width, key_value)] * 2 + [(width, inner)] * 2 + [(inner, width)]


def flops(config: Any, lengths: np.ndarray) -> float:
    """Return the FLOPs of one pass over texts of these lengths, without padding: all matrix products, including attention's."""
    per_token = 2 * sum(inputs * outputs for inputs, outputs in products(config))
    attention = 4 * config.hidden_size * float((lengths.astype(float) ** 2).sum())
    if config.model_type != "bert":
        attention /= 2  # causal
    return config.num_hidden_layers * (per_token * float(lengths.sum()) + attention)


def matmul_rate(config: Any, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the measured FLOP/s of a layer's matrix products with this many tokens: the best of five periods of 0.5 s."""
    sizes = products(config)
    inputs = {width: torch.randn(tokens, width, dtype=dtype, device=device) for width, _ in sizes}
    weights = [torch.randn(outputs, width, dtype=dtype, device=device) for width, outputs in sizes]
    per_pass = 2 * tokens * sum(width * outputs for width, outputs in sizes)
    best = 0.0
    with torch.inference_mode():
        for _ in range(5):
            done, start = 0, seconds(device)
            while (now := seconds(device)) - start < 0.5:
                for weight in weights:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)
                done += 1
            best = max(best, per_pass * done / (now - start))
    return best


def seconds(device: torch.device) -> float:
    """Return the clock after all work on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(texts: list[str], options: Encoder, repeats: int, device: torch.device) -> None:
    """Print the times of our encoder in float32 and bfloat16 and of sentence-transformers, and how similar their rows are."""
    from sentence_transformers import SentenceTransformer

    encoders = {dtype: TextEncoder(options.model_copy(update={"dtype": dtype}), device) for dtype in ("float32", "bfloat16")}
    reference = SentenceTransformer(model_location(options.model), device=str(device))

    def embed(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
        tokens = encoder.tokenise(texts)
        batches = plan(tokens.lengths, options.batch_tokens)
        rows = encoder.rows(tokens, batches)
        embeddings = np.empty_like(rows)
        embeddings[np.concatenate(batches)] = rows
        return embeddings

    def embed_by_reference(texts: list[str]) -> np.ndarray:
        return reference.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    methods = {dtype: partial(embed, encoder) for dtype, encoder in encoders.items()}
    methods["sentence-transformers"] = embed_by_reference
    times: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        method(texts[:64])  # warm-up
    for repeat in range(repeats):
        rows = {}
        for name, method in methods.items():
            start = seconds(device)
            rows[name] = method(texts)
            times[name].append(seconds(device) - start)
        cosines = {name: float((rows[name] * rows["float32"]).sum(1).min()) for name in methods if name != "float32"}
        shown = "".join(
            f"; {name} {times[name][-1]:.1f} s, {times[name][-1] / times['float32'][-1]:.2f} x, smallest cosine {cosine:.7f}"
            for name, cosine in cosines.items()
        )
        print(f"{repeat + 1}: float32 {times['float32'][-1]:.1f} s{shown}")
    lengths = encoders["float32"].tokenise(texts).lengths
    rate = matmul_rate(reference[0].auto_model.config, options.batch_tokens, torch.float32, device)
    bound = flops(reference[0].auto_model.config, lengths) / rate
    best, half, reference_best = (min(spent) for spent in times.values())
    print(
        f"best times: {len(texts):,} titles, {lengths.sum():,} tokens: {best:.1f} s, {len(texts) / best:,.0f} items/s, "
        f"{lengths.sum() / best:,.0f} tokens/s; sentence-transformers takes {reference_best / best:.2f} x of float32's time and "
        f"{reference_best / half:.2f} x of bfloat16's; lower bound in float32 {bound:.1f} s at {rate / 1e9:,.0f} GFLOP/s"
    )


def random_llama(texts: list[str], params: Params, device: torch.device) -> None:
    """Print the time of a model of LLaMA-3-8B's shape, with MiniLM's tokenizer because its own is gated."""
    from transformers import AutoModel, LlamaConfig

    config = LlamaConfig(**LLAMA3_8B, use_cache=False)
    dtype, batch_tokens = torch.bfloat16, params.encoders["llama3-8b"].batch_tokens
    encoder = TextEncoder(params.encoders["minilm"], device)
    with device:
        encoder.model = AutoModel.from_config(config, dtype=dtype).eval()
    tokens = encoder.tokenise(texts)
    batches = plan(tokens.lengths, batch_tokens)
    encoder.rows(tokens, batches[:2])  # warm-up
    start = seconds(device)
    encoder.rows(tokens, batches)
    elapsed = seconds(device) - start
    rate = matmul_rate(config, batch_tokens, dtype, device)
    share = flops(config, tokens.lengths) / elapsed / rate
    print(
        f"{len(texts):,} titles, {len(tokens.ids):,} tokens in {elapsed:.1f} s: {len(tokens.ids) / elapsed:,.0f} tokens/s, "
        f"{share:.0%} of the measured {rate / 1e12:,.1f} TFLOP/s of bf16 matrix products"
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["minilm", "llama3-8b"], default="minilm")
    parser.add_argument("--dataset", default="toys", help="the dataset whose titles are embedded")
    parser.add_argument("--texts", type=int, help="embed only the first TEXTS titles")
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
        compare(texts, params.encoders["minilm"], arguments.repeats, device)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"benchmarks.embedding: {error}") from None
