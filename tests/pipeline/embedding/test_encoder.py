"""Embeddings: pooling on hand-made examples, MiniLM compared with sentence-transformers, a LLaMA with its hidden states."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from pipeline.data.interactions import build_sequences
from pipeline.data.sources.amazon2014 import Amazon2014, read
from pipeline.embedding.encoder import TextEncoder, encode, plan, pool
from pipeline.embedding.pretrained import model_location
from pipeline.params import Encoder, Preprocess, load_params
from tests.pipeline.embedding.conftest import WORDS, small

ROOT = Path(__file__).parents[3]
MINILM = load_params(ROOT / "params.yaml").encoders["minilm"]

TITLES = [
    "Frying Pan",
    "",
    " ",
    "a",
    "🎸 Guitar Strings 🎶, Set of 6",
    "مقلاة من الفولاذ المقاوم للصدأ",
    "מחברת עם שורות",
    "日本語のタイトル",
    "Café crème – “très bon”",
    "tab\tand\nnewline",
    "x" * 300,
    " ".join(f"word{i}" for i in range(10_000)),
    "👩‍👩‍👧‍👦🏳️‍🌈",
    *(
        f"{brand} {kind} {size}"
        for brand in ("Alder", "Umber", "Quill")
        for kind in ("Kettle", "Tent", "Rake")
        for size in range(4)
    ),
]


# --------------------------------------------------------------------------------------------------------------------- pooling

HIDDEN = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]]).expand(3, 4, 2)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [[2.5, 25.0], [2.5, 25.0], [1.0, 10.0]]),
        ("last", [[4.0, 40.0], [3.0, 30.0], [1.0, 10.0]]),
        ("cls", [[1.0, 10.0], [2.0, 20.0], [1.0, 10.0]]),
    ],
)
def test_pooling_by_hand(pooling: str, expected: list[list[float]]) -> None:
    """Pooled positions: all, the two in the middle, or only the first."""
    pooled = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    assert pool(HIDDEN, pooled, pooling).tolist() == expected


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_what_is_not_pooled_has_no_influence(pooling: str) -> None:
    pooled = torch.tensor([[0, 1, 1, 0]] * 3, dtype=torch.bool)
    changed = HIDDEN.clone()
    changed[:, [0, 3]] = 1e6
    assert torch.equal(pool(changed, pooled, pooling), pool(HIDDEN, pooled, pooling))


# ---------------------------------------------------------------------------------------------------------------------- MiniLM


@pytest.fixture(scope="module")
def minilm() -> np.ndarray:
    return encode(TITLES, MINILM)[0]


def test_minilm_is_what_sentence_transformers_makes_of_it(minilm: np.ndarray) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(model_location(MINILM.model), device="cpu")
    expected = reference.encode(TITLES, batch_size=7, normalize_embeddings=True, show_progress_bar=False)
    assert reference.max_seq_length == MINILM.max_length
    assert minilm.shape == expected.shape == (len(TITLES), 384)
    assert (minilm * expected).sum(1).min() > 0.99999


def test_rows_have_length_one(minilm: np.ndarray) -> None:
    np.testing.assert_allclose(np.linalg.norm(minilm, axis=1), 1, atol=1e-6)
    assert minilm.dtype == np.float32


def test_rows_are_in_the_order_of_the_texts_whatever_the_batches(minilm: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(TITLES))
    shuffled = encode([TITLES[i] for i in order], MINILM.model_copy(update={"batch_tokens": 50}))[0]
    np.testing.assert_allclose(shuffled, minilm[order], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_the_batch_size_does_not_change_a_row(minilm: np.ndarray, batch_tokens: int) -> None:
    np.testing.assert_allclose(encode(TITLES, MINILM.model_copy(update={"batch_tokens": batch_tokens}))[0], minilm, atol=1e-5)


def test_rows_keep_their_length_where_that_is_asked_for(minilm: np.ndarray) -> None:
    raw = encode(TITLES[:5], MINILM.model_copy(update={"normalise": False}))[0]
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert abs(lengths - 1).max() > 0.1
    np.testing.assert_allclose(raw / lengths, minilm[:5], atol=1e-5)


def test_long_texts_are_cut_and_tokens_counted() -> None:
    short, seen = encode(["one two three four five six"], MINILM.model_copy(update={"max_length": 5}))
    assert seen["tokens"] == 5, "CLS, three words, SEP"
    np.testing.assert_allclose(short, encode(["one two three"], MINILM)[0], atol=1e-5)


def titles(amazon2014: Path, count: int) -> list[str]:
    source = Amazon2014(kind="amazon2014", name="Office_Products")
    return build_sequences(read(source, amazon2014), Preprocess()).items["text"].to_list()[:count]


def test_500_real_titles_are_what_sentence_transformers_makes_of_them(amazon2014: Path) -> None:
    from sentence_transformers import SentenceTransformer

    real = titles(amazon2014, 500)
    expected = SentenceTransformer(model_location(MINILM.model), device="cpu").encode(
        real, normalize_embeddings=True, show_progress_bar=False
    )
    assert len(real) == 500
    assert (encode(real, MINILM)[0] * expected).sum(1).min() > 0.99999


def test_a_prompt_stands_before_every_text(minilm: np.ndarray) -> None:
    prompted, _ = encode(["red tent", ""], MINILM.model_copy(update={"prompt": "item: "}))
    np.testing.assert_allclose(prompted, encode(["item: red tent", "item: "], MINILM)[0], atol=1e-5)


def test_texts_are_cut_where_the_model_ends(llama: Path) -> None:
    assert encode(["red " * 10_000], Encoder(model=str(llama), max_length=100_000))[1]["tokens"] == 64


def test_no_texts_are_one_line() -> None:
    with pytest.raises(UserError, match="no texts to embed"):
        encode([], MINILM)


# ----------------------------------------------------------------------------------------------------------------------- LLaMA


IDS = [[0, 3, 6], [0, 5], [0, 4, 4, 7, 6, 3], [0, 7, 2]]


def hidden_states(folder: Path) -> list[torch.Tensor]:
    """Each text in a batch of its own, without padding, after the final norm."""
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(torch.tensor([ids])).last_hidden_state[0] for ids in IDS]


@pytest.mark.parametrize(
    ("pooling", "special", "expected"),
    [
        ("mean", False, lambda hidden: hidden[1:].mean(0)),
        ("mean", True, lambda hidden: hidden.mean(0)),
        ("last", False, lambda hidden: hidden[-1]),
        ("cls", False, lambda hidden: hidden[1]),
        ("cls", True, lambda hidden: hidden[0]),
    ],
)
def test_a_causal_model_is_pooled_over_its_text(llama: Path, pooling: str, special: bool, expected) -> None:
    encoder = Encoder(model=str(llama), pooling=pooling, pool_special_tokens=special, batch_tokens=9, normalise=False)
    found, seen = encode(WORDS, encoder)
    by_hand = torch.stack([expected(hidden) for hidden in hidden_states(llama)])
    np.testing.assert_allclose(found, by_hand.numpy(), atol=1e-5)
    assert seen["tokens"] == sum(map(len, IDS))


def test_leaving_bos_out_matters(llama: Path) -> None:
    with_bos, without = (encode(WORDS, Encoder(model=str(llama), pool_special_tokens=special))[0] for special in (True, False))
    assert (with_bos * without).sum(1).max() < 0.9999


def test_a_text_of_special_tokens_only_is_pooled_over_those(llama: Path) -> None:
    rows, _ = encode(["", "red"], Encoder(model=str(llama), pool_special_tokens=False))
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_half_precision_comes_out_in_single_precision(llama: Path) -> None:
    single, _ = encode(WORDS, Encoder(model=str(llama)))
    half, _ = encode(WORDS, Encoder(model=str(llama), dtype="bfloat16"))
    assert half.dtype == np.float32
    assert not np.array_equal(half, single)
    np.testing.assert_allclose((half * single).sum(1), 1, atol=1e-3)


def test_a_map_over_devices_changes_nothing(llama: Path) -> None:
    mapped = Encoder(model=str(llama), device_map="auto")
    np.testing.assert_array_equal(encode(WORDS, mapped)[0], encode(WORDS, Encoder(model=str(llama)))[0])


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_the_padding_does_not_change_a_row(llama: Path, tmp_path: Path, pooling: str, side: str) -> None:
    """Compared with the model on batches that the tokenizer padded, on either side."""
    from transformers import AutoTokenizer, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(llama, pad_token="</s>", padding_side=side)
    tokenizer.save_pretrained(tmp_path)
    model = LlamaModel.from_pretrained(llama).eval()
    model.save_pretrained(tmp_path)
    found, _ = encode(WORDS, Encoder(model=str(tmp_path), pooling=pooling, normalise=False))
    padded = tokenizer(WORDS, padding=True, return_tensors="pt")
    mask = padded["attention_mask"]
    assert mask[:, 0].all() == (side == "right")
    with torch.no_grad():
        hidden = model(
            input_ids=padded["input_ids"], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).last_hidden_state
    np.testing.assert_allclose(found, pool(hidden, mask.bool(), pooling).numpy(), atol=1e-5)


def test_a_tokenizer_that_ends_texts_by_a_token_is_pooled_there(llama: Path, tmp_path: Path) -> None:
    """Like Qwen3-Embedding: no BOS, <|endoftext|> after every text, also a truncated one, and its state is the embedding."""
    from tokenizers import processors
    from transformers import AutoTokenizer, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(llama, padding_side="left")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save_pretrained(tmp_path)
    model = LlamaModel.from_pretrained(llama).eval()
    model.save_pretrained(tmp_path)
    encoder = Encoder(model=str(tmp_path), pooling="last", max_length=4)
    found, _ = encode(["red tent", "", "green green kettle tent red"], encoder)
    with torch.no_grad():
        states = [model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in ([3, 6, 1], [1], [4, 4, 7, 1])]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(torch.stack(states)).numpy(), atol=1e-5)


def test_a_text_without_a_token_has_a_row(llama: Path, tmp_path: Path) -> None:
    """A tokenizer without special tokens, like GPT-2's, gives no token for an empty text."""
    from tokenizers import processors
    from transformers import AutoTokenizer, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save_pretrained(tmp_path)
    LlamaModel.from_pretrained(llama).save_pretrained(tmp_path)
    rows, seen = encode(["", "red", "   "], Encoder(model=str(tmp_path), pool_special_tokens=False))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert seen["tokens"] == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_that_of_the_text_alone_whatever_the_padding(llama: Path, side: str) -> None:
    """Texts padded on either side, and by the encoder, compared with each text in a batch of its own."""
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(llama).eval()
    alone = torch.stack([states[-1] for states in hidden_states(llama)])
    longest = max(map(len, IDS))
    fill = [[1] * (longest - len(ids)) for ids in IDS]
    left = side == "left"
    padded = [pad + ids if left else ids + pad for ids, pad in zip(IDS, fill, strict=True)]
    there = [[0] * (longest - len(ids)) * left + [1] * len(ids) + [0] * (longest - len(ids)) * (not left) for ids in IDS]
    mask = torch.tensor(there)
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor(padded), attention_mask=mask).last_hidden_state
    np.testing.assert_allclose(pool(hidden, mask.bool(), "last").numpy(), alone.numpy(), atol=1e-5)
    if left:
        np.testing.assert_allclose(hidden[:, -1].numpy(), alone.numpy(), atol=1e-5, err_msg="the authors' code takes position -1")
    embeddings, _ = encode(WORDS, Encoder(model=str(llama), pooling="last", normalise=False))
    np.testing.assert_allclose(embeddings, alone.numpy(), atol=1e-5)


def test_the_papers_encoder_is_pooled_as_in_the_authors_code() -> None:
    shipped = load_params(ROOT / "params.yaml").encoders["llama3-8b"]
    assert (shipped.pooling, shipped.prompt, shipped.dtype, shipped.layers) == ("last", "", "bfloat16", None)


# ---------------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("layers", [[0, 1, 2], [2, 0], [1]])
def test_layers_are_pooled_normalised_and_put_side_by_side(llama: Path, pooling: str, layers: list[int]) -> None:
    """Compared with each text alone and each layer: layer 0 is the embedding matrix, layer k the output of block k."""
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(llama).eval()
    seen: list[torch.Tensor] = []
    for block in model.layers:
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if out.ndim == 3 else out))
    rows = []
    for ids in IDS:
        seen.clear()
        with torch.no_grad():
            model(torch.tensor([ids]))
        states = [model.embed_tokens.weight.detach()[ids], seen[0], model.norm(seen[1]).detach()]
        vectors = []
        for layer in layers:
            vector = {"mean": states[layer].mean(0), "last": states[layer][-1], "cls": states[layer][0]}[pooling]
            vectors.append(vector / vector.norm())
        rows.append(torch.cat(vectors) / len(layers) ** 0.5)
    found, _ = encode(WORDS, Encoder(model=str(llama), pooling=pooling, layers=layers, batch_tokens=9))
    assert found.shape == (len(WORDS), 16 * len(layers))
    np.testing.assert_allclose(found, torch.stack(rows).numpy(), atol=1e-5)


def test_the_last_layer_alone_is_what_no_layers_give(llama: Path, minilm: np.ndarray) -> None:
    for options, rows in ((Encoder(model=str(llama)), encode(WORDS, Encoder(model=str(llama)))[0]), (MINILM, minilm)):
        last = 2 if options is not MINILM else 6
        texts = WORDS if options is not MINILM else TITLES
        np.testing.assert_allclose(encode(texts, options.model_copy(update={"layers": [last]}))[0], rows, atol=1e-6)


def test_the_wide_minilm_is_what_transformers_makes_of_its_seven_hidden_states() -> None:
    from transformers import AutoModel, AutoTokenizer

    wide = load_params(ROOT / "params.yaml").encoders["minilm-wide"]
    texts = TITLES[-6:]
    found, _ = encode(texts, wide)
    folder = model_location(wide.model)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        by_hand = torch.cat([torch.nn.functional.normalize(state[0].mean(0), dim=0) for state in states])
        assert by_hand.shape == (2688,)
        np.testing.assert_allclose(row * 7**0.5, by_hand.numpy(), atol=1e-5)
    assert TextEncoder(wide).width == found.shape[1] == 2688


def test_a_layer_that_the_model_does_not_have_is_one_line(llama: Path) -> None:
    with pytest.raises(UserError, match=r"layers in params.yaml lists 3; the model has layers 0 .* to 2") as caught:
        encode(["red"], Encoder(model=str(llama), layers=[1, 3]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "message"), [([], "at least 1 item"), ([-1], "greater than or equal to 0"), ([1, 1], "1 twice")]
)
def test_lists_of_layers_that_mean_nothing_are_refused(layers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(model="any", layers=layers)


def test_one_layer_at_most_is_held_in_single_precision(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states keep the model's type until they are pooled, and only the pooled layers are kept."""
    seen: list[torch.dtype] = []

    def noted(hidden: torch.Tensor, pooled: torch.Tensor, pooling: str) -> torch.Tensor:
        seen.append(hidden.dtype)
        return pool(hidden, pooled, pooling)

    monkeypatch.setattr("pipeline.embedding.encoder.pool", noted)
    half, _ = encode(WORDS, Encoder(model=str(llama), layers=[0, 2], dtype="bfloat16"))
    assert half.dtype == np.float32
    assert seen == [torch.bfloat16, torch.bfloat16]
    monkeypatch.undo()
    single, _ = encode(WORDS, Encoder(model=str(llama), layers=[0, 2]))
    np.testing.assert_allclose((half * single).sum(1), 1, atol=1e-3)


# ------------------------------------------------------------------------------------------------------------------------ padding


def test_positions_that_begin_after_the_padding_index_are_counted(llama: Path, tmp_path: Path) -> None:
    """RoBERTa has 20 positions, the first two of which are for padding."""
    small("RobertaModel", tmp_path, llama, max_position_embeddings=20, pad_token_id=1)
    assert encode(["red " * 100], Encoder(model=str(tmp_path)))[1]["tokens"] == 18


def test_a_padding_token_outside_the_embedding_matrix_is_never_looked_up(llama: Path, tmp_path: Path) -> None:
    """The tokenizer has an added padding token, for which the matrix of 8 rows has no row."""
    from transformers import AutoTokenizer

    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(llama, pad_token="[PAD]")
    assert tokenizer.pad_token_id == 8
    tokenizer.save_pretrained(tmp_path)
    np.testing.assert_array_equal(encode(WORDS, Encoder(model=str(tmp_path)))[0], encode(WORDS, Encoder(model=str(llama)))[0])


# --------------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("budget", [1, 7, 50, 1000, 10**6])
def test_batches_keep_to_the_budget_and_hold_every_text_once(budget: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, size=500)
    batches = plan(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(500))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert [batch.tolist() for batch in plan(lengths, budget)] == [batch.tolist() for batch in batches]


def test_most_batches_have_no_padding() -> None:
    lengths = np.random.default_rng(0).poisson(12, size=10_000) + 1
    batches = plan(lengths, 2048)
    assert sum(len(set(lengths[batch])) > 1 for batch in batches) < len(batches) / 5
    padding = sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum() - 1
    assert padding < 0.01
    assert len(batches) < 2 * lengths.sum() / 2048


def test_out_of_memory_halves_the_batch_and_goes_on(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, forward, sizes = Encoder(model=str(llama)), TextEncoder._forward, []

    def tight(self: TextEncoder, tokens: object, batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, tokens, batch)

    expected, _ = encode(WORDS * 5, encoder)
    monkeypatch.setattr(TextEncoder, "_forward", tight)
    np.testing.assert_allclose(encode(WORDS * 5, encoder)[0], expected, atol=1e-5)
    assert sizes[:4] == [20, 10, 5, 3]


def test_one_text_that_does_not_fit_is_one_line(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TextEncoder, "_forward", never)
    with pytest.raises(UserError, match="one text of 3 tokens does not fit into memory; lower its max_length") as caught:
        encode(["red tent", "blue"], Encoder(model=str(llama)))
    assert "\n" not in str(caught.value)


def test_other_errors_of_a_model_are_not_taken_for_memory(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> np.ndarray:
        raise RuntimeError("a bug")

    monkeypatch.setattr(TextEncoder, "_forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        encode(["red"], Encoder(model=str(llama)))


def test_values_that_are_not_finite_are_one_line(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaModel

    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = LlamaModel.from_pretrained(llama)
    model.norm.weight.data *= 1e6
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not finite in float16; set its dtype to bfloat16 or float32"):
        encode(["red"], Encoder(model=str(tmp_path), dtype="float16"))
