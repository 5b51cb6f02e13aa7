#!/usr/bin/env python3
"""A random-weights checkpoint of any size in Hugging Face form, for smoke tests and memory tests.

    python random_checkpoint.py --out DIR --preset qwen3-0.6b [--tokenizer PATH]
    python random_checkpoint.py --out DIR --config config.json --dtype float32 --shard-size 2GB

Needs numpy only. Weights stream to disk in pieces of a few MiB, shard by shard. Each tensor has its own random
stream, keyed by seed and name, so its values do not depend on how the checkpoint is cut into shards.
Families: llama, mistral, mixtral, qwen2, qwen3, qwen3_moe.
"""

import argparse
import json
import pathlib
import re
import shutil
import zlib

import numpy as np

PRESETS = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "llama3.2-1b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
    },
}  # fmt: skip

# Name in config.json -> (name in a safetensors header, bytes per value).
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
PIECE = 1 << 22  # values drawn at a time
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")


def tensor_shapes(config: dict) -> dict[str, list[int]]:
    """Every tensor of the checkpoint, in the order of a forward pass; matrices are [out, in]."""
    family = config["model_type"]
    families = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
    if family not in families:
        raise SystemExit(f"model_type {family!r} is none of {', '.join(families)}")
    d, f, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or (128 if family == "qwen3" else d // heads)
    q, kv = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    qkv_bias = family == "qwen2" or config.get("attention_bias", False)
    o_bias = family != "qwen2" and config.get("attention_bias", False)
    mlp_bias = config.get("mlp_bias", False)
    projections = [
        ("self_attn.q_proj", q, d, qkv_bias), ("self_attn.k_proj", kv, d, qkv_bias), ("self_attn.v_proj", kv, d, qkv_bias),
        ("self_attn.o_proj", d, q, o_bias),
    ]  # fmt: skip
    mlp = [("mlp.gate_proj", f, d, mlp_bias), ("mlp.up_proj", f, d, mlp_bias), ("mlp.down_proj", d, f, mlp_bias)]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], d]}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = [d]
        for name, rows, columns, bias in projections + (experts(config, i) or mlp):
            shapes[f"{layer}{name}.weight"] = [rows, columns]
            if bias:
                shapes[f"{layer}{name}.bias"] = [rows]
        if family in ("qwen3", "qwen3_moe"):
            shapes[layer + "self_attn.q_norm.weight"] = [head_dim]
            shapes[layer + "self_attn.k_norm.weight"] = [head_dim]
        shapes[layer + "post_attention_layernorm.weight"] = [d]
    shapes["model.norm.weight"] = [d]
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = [config["vocab_size"], d]
    return shapes


def experts(config: dict, layer: int) -> list[tuple]:
    """Router and experts of a layer as (name, rows, columns, bias); nothing for a dense one."""
    family, d = config["model_type"], config["hidden_size"]
    if family == "mixtral":
        prefix, names, count, f = "block_sparse_moe", ("w1", "w3", "w2"), config["num_local_experts"], config["intermediate_size"]
    elif family == "qwen3_moe" and (layer + 1) % config.get("decoder_sparse_step", 1) == 0 and layer not in config.get("mlp_only_layers", []):
        prefix, names, count, f = "mlp", ("gate_proj", "up_proj", "down_proj"), config["num_experts"], config["moe_intermediate_size"]
    else:
        return []
    gate, up, down = names
    shapes = [(gate, f, d), (up, f, d), (down, d, f)]
    matrices = [(f"{prefix}.experts.{e}.{name}", rows, columns, False) for e in range(count) for name, rows, columns in shapes]
    return [(f"{prefix}.gate", count, d, False), *matrices]


def to_bytes(values: np.ndarray, dtype: str) -> bytes:
    """f32 values in the dtype of the file, little-endian; bf16 rounds to nearest, ties to even."""
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if dtype == "float32" else "<f2").tobytes()


class Writer:
    """Draws tensors and writes them as safetensors files."""

    def __init__(self, dtype: str, std: float, seed: int):
        self.dtype, self.std, self.seed = dtype, std, seed

    def pieces(self, name: str, count: int):
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        for start in range(0, count, PIECE):
            values = rng.standard_normal(min(PIECE, count - start), dtype=np.float32)
            # Norm weights around 1, everything else around 0.
            values = 1 + np.float32(0.1) * values if name.endswith("norm.weight") else np.float32(self.std) * values
            yield to_bytes(values, self.dtype)

    def write(self, path: pathlib.Path, shapes: dict[str, list[int]]) -> None:
        code, width = DTYPES[self.dtype]
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in shapes.items():
            end = offset + width * int(np.prod(shape))
            header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, shape in shapes.items():
                for piece in self.pieces(name, int(np.prod(shape))):
                    file.write(piece)


def split(shapes: dict[str, list[int]], width: int, limit: int) -> list[dict[str, list[int]]]:
    """Consecutive tensors in shards of at most `limit` bytes; a larger tensor gets a shard of its own."""
    shards, used = [{}], 0
    for name, shape in shapes.items():
        size = width * int(np.prod(shape))
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    return shards


def make(config: dict, out: pathlib.Path, writer: Writer, shard_size: int) -> int:
    """Writes config.json, generation_config.json and the weights into `out`; returns the bytes of weights."""
    width = DTYPES[writer.dtype][1]
    shapes = tensor_shapes(config)
    total = sum(width * int(np.prod(s)) for s in shapes.values())
    key = "dtype" if "dtype" in config else "torch_dtype"
    out.mkdir(parents=True, exist_ok=True)
    # A model loader would pick up what an earlier run of another shape left here.
    for stale in [*out.glob("model*.safetensors"), out / "model.safetensors.index.json"]:
        stale.unlink(missing_ok=True)
    (out / "config.json").write_text(json.dumps(config | {key: writer.dtype}, indent=2) + "\n")
    generation = {k: config[k] for k in ("bos_token_id", "eos_token_id") if config.get(k) is not None}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    shards = split(shapes, width, shard_size)
    if len(shards) == 1:
        writer.write(out / "model.safetensors", shapes)
        return total
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        writer.write(out / file, shard)
        print(f"{file}: {len(shard)} tensors", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def size(text: str) -> int:
    """`2GB`, `512MiB`, `1000` -> bytes."""
    match = re.fullmatch(r"(\d+)\s*([KMG]i?)?B?", text)
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GB or 512MiB")
    unit = match[2] or ""
    return int(match[1]) * (1024 if unit.endswith("i") else 1000) ** (" KMG".index(unit[0]) if unit else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--config", type=pathlib.Path, help="a config.json, or the folder that holds one")
    shape.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to create")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; the config's own if omitted")
    parser.add_argument("--std", type=float, default=0.02, help="of every matrix and bias (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=size, default=size("1GB"), help="largest shard (default 1GB)")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="a tokenizer.json (any file name), or a folder with one, to copy")
    args = parser.parse_args()
    if args.preset:
        config = PRESETS[args.preset]
    else:
        config = json.loads((args.config / "config.json" if args.config.is_dir() else args.config).read_text())
    dtype = args.dtype or config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        parser.error(f"the config's dtype {dtype!r} is none of {', '.join(DTYPES)}; pass --dtype")
    total = make(config, args.out, Writer(dtype, args.std, args.seed), args.shard_size)
    if args.tokenizer and args.tokenizer.is_dir():
        for name in TOKENIZER_FILES:
            if (args.tokenizer / name).is_file():
                shutil.copyfile(args.tokenizer / name, args.out / name)
    elif args.tokenizer:
        shutil.copyfile(args.tokenizer, args.out / "tokenizer.json")
    print(f"{args.out}: {total / 1e9:.3f} GB of {dtype} weights")


if __name__ == "__main__":
    main()
