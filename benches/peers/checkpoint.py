#!/usr/bin/env python3
"""The Qwen3-0.6B shape with random weights, in every form the peers read.

    DIR/venv/bin/python benches/peers/checkpoint.py DIR --tokenizer qwen2_qwen3.tokenizer.json

    DIR/models/hf                    safetensors in bf16, by models/parity/random_checkpoint.py: for us and torch
    DIR/models/gguf/TYPE.gguf        bf16, f16, q8_0, q4_0, q4_k_m: for llama.cpp; quantized by llama.cpp itself
    DIR/models/openvino/{fp16,int8,int4}   by optimum-intel and NNCF, in DIR/venv-export

What exists is reused. Takes about 5 minutes and 6 GB. The tokenizer is for our own server only: peers get token ids.

Widths of embedding and head, which share one matrix here (a quarter of all weights): see DIR/models/widths.json, which this
program writes from the finished files.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GGUF_TYPES = ("bf16", "f16", "q8_0", "q4_0", "q4_k_m")
# NNCF's defaults, stated: 4-bit asymmetric in groups of 128; embedding and head stay in 8 bits.
OPENVINO_OPTIONS = {"fp16": [], "int8": [], "int4": ["--ratio", "1.0", "--group-size", "128"]}


def write_gguf(hf: pathlib.Path, path: pathlib.Path, dtype: str) -> None:
    """bf16 or f16 matrices, f32 norms, no vocabulary."""
    import gguf
    import torch
    from safetensors import safe_open

    config = json.loads((hf / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{dtype.upper()}"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for shard in sorted(hf.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                tensor, target = file.get_tensor(name), names.get_name(name, (".weight",))
                if tensor.ndim == 1:
                    writer.add_tensor(target, tensor.float().numpy())
                else:
                    matrix = tensor.to({"bf16": torch.bfloat16, "f16": torch.float16}[dtype])
                    writer.add_tensor(target, matrix.view(torch.uint8).numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize_gguf(source: pathlib.Path, path: pathlib.Path, kind: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {
        "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    }[kind]
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params) != 0:
        raise SystemExit(f"llama.cpp could not write {path}")


def gguf_widths(path: pathlib.Path) -> dict:
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    layers = sorted({t.tensor_type.name for t in tensors if len(t.shape) == 2 and t.name.startswith("blk.")})
    head = next(t.tensor_type.name for t in tensors if t.name == "token_embd.weight")
    return {"matrices": layers, "embedding and head": head, "bytes": sum(int(t.n_bytes) for t in tensors)}


def openvino_widths(path: pathlib.Path) -> dict:
    """Element types of the constants that hold the weights, by the size of the matrix."""
    import openvino

    model = openvino.Core().read_model(path / "openvino_model.xml")
    widths = {"matrices": set(), "embedding and head": set()}
    total = 0
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant":
            shape = list(op.get_output_shape(0))
            total += op.get_byte_size()
            if len(shape) >= 2 and min(shape) > 1 and op.get_byte_size() > 1 << 18:
                big = max(shape) > 100_000
                group = f" in groups of {shape[-1]}" if len(shape) == 3 else ""
                widths["embedding and head" if big else "matrices"].add(op.get_element_type().get_type_name() + group)
    kv = None
    if model.has_rt_info(["runtime_options", "KV_CACHE_PRECISION"]):
        kv = str(model.get_rt_info(["runtime_options", "KV_CACHE_PRECISION"]).value)
    return {k: sorted(v) for k, v in widths.items()} | {"KV precision asked for by the model": kv, "bytes": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path, help="the folder setup.sh made")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="a tokenizer.json to lay beside the weights")
    args = parser.parse_args()
    models = args.dir.resolve() / "models"
    os.environ.setdefault("LLAMA_CPP_LIB_PATH", str(args.dir.resolve() / "llama" / "amx"))

    hf = models / "hf"
    if not (hf / "generation_config.json").exists():
        command = [sys.executable, REPOSITORY / "models/parity/random_checkpoint.py", "--preset", "qwen3-0.6b", "--out", hf]
        subprocess.run(command + (["--tokenizer", args.tokenizer] if args.tokenizer else []), check=True)

    widths = {}
    (models / "gguf").mkdir(parents=True, exist_ok=True)
    for kind in GGUF_TYPES:
        path = models / "gguf" / f"{kind}.gguf"
        if not path.exists():
            part = path.with_suffix(".part")  # an interrupted run must not leave half a file under the name
            if kind in ("bf16", "f16"):
                write_gguf(hf, part, kind)
            else:
                quantize_gguf(models / "gguf" / "bf16.gguf", part, kind)
            part.rename(path)
        widths[f"llama.cpp {kind}"] = gguf_widths(path)

    for kind, options in OPENVINO_OPTIONS.items():
        path = models / "openvino" / kind
        if not (path / "openvino_model.bin").exists():
            cli = args.dir.resolve() / "venv-export" / "bin" / "optimum-cli"
            command = [cli, "export", "openvino", "--model", hf, "--task", "text-generation-with-past"]
            command += ["--weight-format", kind, *options, "--disable-convert-tokenizer", path]
            subprocess.run(command, check=True)
        widths[f"openvino {kind}"] = openvino_widths(path)
    text = json.dumps(widths, indent=2)
    (models / "widths.json").write_text(text + "\n")
    print(re.sub(r"\n\s{4,}|\n  (?=})", " ", text))


if __name__ == "__main__":
    main()
