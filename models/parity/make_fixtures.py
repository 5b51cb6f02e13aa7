#!/usr/bin/env python3
"""Random-weights checkpoints in Hugging Face form, with references computed by transformers.

    python make_fixtures.py --out DIR [--only NAME]   build every fixture, or one
    python make_fixtures.py --out DIR --table         print README's tables from DIR/*/expected.json

Needs torch, transformers >= 5, tokenizers, safetensors. Everything is seeded by the fixture's name, so a
rebuild with the same versions gives the same files. `README.md` defines every field of `expected.json`.
"""

import argparse
import base64
import contextlib
import copy
import importlib
import json
import pathlib
import shutil
import tempfile
import zlib

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import modeling_rope_utils

import tiny_chat
from specs import SPECS, Spec

PROMPT_LENGTHS = (1, 7, 40, 130)
# Positions whose whole row of logits is recorded, per prompt length: first and last, and both sides of
# multiples of 16 and 32, where pages and windows begin.
ROW_POSITIONS = {1: (0,), 7: (2, 6), 40: (15, 16, 31, 39), 130: (0, 24, 32, 64, 111, 129)}
GREEDY_STEPS = 32
# A prompt is drawn again until every greedy step's margin exceeds this, so that a correct engine (error
# below 1e-3) must produce the same ids.
MIN_MARGIN = 5e-3

# What a fixture has to show before it is accepted, in log-probability.
MAX_F64_NOISE = 2e-4
MIN_SENSITIVITY = 5e-3
MIN_THETA_SENSITIVITY = 5e-2


def generator(*key) -> torch.Generator:
    """A random stream that depends on `key` only."""
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


# ---------------------------------------------------------------- checkpoints


def is_gemma(config) -> bool:
    return config.model_type.startswith("gemma")


def norm_of_one(config) -> float:
    """The stored weight of a norm that only normalises."""
    return 0.0 if is_gemma(config) else 1.0


@torch.no_grad()
def randomise(model, spec: Spec) -> None:
    """Draws every parameter; transformers leaves norms at 1 and biases at 0, which would hide errors in them."""
    tied = model.config.tie_word_embeddings
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator(spec.name, name))
        if name.endswith("norm.weight"):
            p.copy_(norm_of_one(model.config) + 0.3 * noise)
        elif name.endswith("bias"):
            p.copy_(0.4 * noise)
        elif name == "model.embed_tokens.weight" and not tied:
            p.copy_(spec.embedding_std * noise)
        elif name.endswith("mlp.gate.weight"):
            p.copy_(spec.router_gain / p.shape[-1] ** 0.5 * noise)
        else:
            p.copy_(spec.gain / p.shape[-1] ** 0.5 * noise)
    for name, b in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            b.copy_(0.2 * torch.randn(b.shape, generator=generator(spec.name, name)))


def save_checkpoint(spec: Spec, folder: pathlib.Path) -> None:
    """Writes config.json, generation_config.json and the weights, in the dtype and spelling of `spec`."""
    with tempfile.TemporaryDirectory() as tmp:
        (pathlib.Path(tmp) / "config.json").write_text(json.dumps(spec.config))
        config = AutoConfig.from_pretrained(tmp)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, spec)
    # `save_pretrained` skips non-persistent buffers, so rounding inv_freq here does no harm.
    model.to(getattr(torch, spec.config["torch_dtype"])).save_pretrained(folder, max_shard_size=spec.max_shard_size)
    if spec.spelling == "hub":
        write(folder / "config.json", json.dumps(spec.config, indent=2) + "\n")
    if spec.extra_inv_freq:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for i, layer in enumerate(model.model.layers):
            tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.zeros(layer.self_attn.head_dim // 2)
        save_file(tensors, path, metadata={"format": "pt"})


# ---------------------------------------------------------------- floats of eight bits

F8_MAX = 448.0
BLOCK = 128


def quantize(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix in E4M3, its scales, and what it reads as: bf16(number * scale), the product in f32."""
    rows, cols = weight.shape
    if kind == "blocks":
        down, side = -(-rows // BLOCK), -(-cols // BLOCK)
        padded = torch.zeros(down * BLOCK, side * BLOCK)
        padded[:rows, :cols] = weight
        scales = padded.reshape(down, BLOCK, side, BLOCK).abs().amax((1, 3)) / F8_MAX
        each = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :cols]
    else:
        scales = (weight.abs().amax(1, keepdim=True) / F8_MAX).bfloat16()
        each = scales.float().expand(rows, cols)
    narrow = (weight / each).clamp(-F8_MAX, F8_MAX).to(torch.float8_e4m3fn)
    return narrow, scales, (narrow.float() * each).bfloat16()


def quantization_config(spec: Spec) -> dict:
    """As published checkpoints have it."""
    if spec.f8 == "blocks":
        return {
            "activation_scheme": "dynamic", "fmt": "e4m3", "modules_to_not_convert": list(spec.not_f8),
            "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK],
        }  # fmt: skip
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    activations = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "config_groups": {"group_0": group}, "format": "float-quantized", "ignore": list(spec.not_f8),
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
    }  # fmt: skip


def convert(spec: Spec, folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """Leaves in `folder` what the converted checkpoint reads as, for transformers to run; returns its tensors."""
    path = folder / "model.safetensors"
    plain, converted = load_file(path), {}
    for name, weight in list(plain.items()):
        module = name.removesuffix(".weight")
        if not module.endswith("_proj") or module in spec.not_f8:
            converted[name] = weight
            continue
        converted[name], scales, plain[name] = quantize(weight.float(), spec.f8)
        if spec.f8 == "blocks":
            converted[f"{name}_scale_inv"] = scales
        else:
            converted[f"{name}_scale"] = scales
            converted[f"{module}.input_scale"] = torch.tensor([0.5])
    save_file(plain, path, metadata={"format": "pt"})
    return converted


def load(folder: pathlib.Path, dtype=torch.float32, config=None, attention="eager"):
    """The checkpoint on disk as transformers runs it, rotary frequencies in f32 (f64 for f64)."""
    keys = {"config": config} if config is not None else {}
    if "num_experts_per_tok" in read_json(folder / "config.json"):
        # The default takes matrices whose rows are whole vectors only.
        keys["experts_implementation"] = "eager"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention, **keys)
    frequencies = {b.dtype for name, b in model.model.rotary_emb.named_buffers() if name.endswith("inv_freq")}
    # `model.to(bfloat16)` would round the frequencies too, an error no published bf16 run makes.
    assert frequencies == {torch.float64 if dtype == torch.float64 else torch.float32}, frequencies
    return model.eval()


class TorchWithF64:
    """Stands in for the name `torch` inside modelling code, so that its explicit f32 steps run in f64."""

    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def modelling(model_type: str):
    name = model_type.removesuffix("_text")
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


@contextlib.contextmanager
def double_precision(model_type: str):
    """Norms, softmax and rotary angles, which transformers pins to f32, are computed in f64."""
    code = modelling(model_type)
    modules = (code, modeling_rope_utils)
    for module in modules:
        module.torch = TorchWithF64()
    # Gemma's norms convert by a method of the tensor, not by a name of `torch`.
    norms = [getattr(code, n) for n in dir(code) if n.startswith("Gemma") and n.endswith("RMSNorm")]
    forwards = [norm.forward for norm in norms]
    for norm in norms:
        norm.forward = lambda self, x: self._norm(x) * (1.0 + self.weight)
    try:
        yield
    finally:
        for module in modules:
            module.torch = torch
        for norm, forward in zip(norms, forwards):
            norm.forward = forward


@contextlib.contextmanager
def f32_attention(model_type: str):
    """Eager attention computes in f32, as fused kernels do."""
    code = modelling(model_type)
    eager = code.eager_attention_forward

    def forward(module, query, key, value, mask, **keys):
        mask = mask if mask is None else mask.float()
        out, weights = eager(module, query.float(), key.float(), value.float(), mask, **keys)
        return out.to(query.dtype), weights

    code.eager_attention_forward = forward
    try:
        yield
    finally:
        code.eager_attention_forward = eager


# ---------------------------------------------------------------- references


@torch.no_grad()
def logits(model, ids: list[int]) -> torch.Tensor:
    """[len(ids), vocab] in f32, or f64 for an f64 model; no cache."""
    out = model(torch.tensor([ids]), use_cache=False).logits[0]
    return out if out.dtype == torch.float64 else out.float()


def greedy(model, prompt: list[int], steps: int) -> dict:
    """Greedy continuation, end-of-sequence ignored, every step recomputed from the whole prefix."""
    ids, logprobs, margins = list(prompt), [], []
    for _ in range(steps):
        top = torch.log_softmax(logits(model, ids)[-1].double(), -1).topk(2)
        ids.append(int(top.indices[0]))
        logprobs.append(float(top.values[0]))
        margins.append(float(top.values[0] - top.values[1]))
    return {"ids": ids[len(prompt) :], "logprobs": logprobs, "margins": margins}


def draw_prompt(model, name: str, length: int) -> tuple[list[int], dict]:
    """A random prompt whose greedy continuation is unambiguous."""
    for attempt in range(200):
        g = generator(name, "prompt", length, attempt)
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=g).tolist()
        out = greedy(model, ids, GREEDY_STEPS)
        if min(out["margins"]) > MIN_MARGIN:
            return ids, out
    raise SystemExit(f"{name}: no prompt of {length} tokens keeps its greedy margins; raise the gain")


class Sample:
    """What the statistics look at: log-probabilities of teacher-forced tokens, and of whole rows."""

    def __init__(self, model, prompts: list[dict]):
        self.tokens, self.rows, self.raw_rows = [], [], []
        for p in prompts:
            ids = p["ids"]
            raw = logits(model, ids)
            lp = torch.log_softmax(raw.double(), -1)
            at = list(p["row_positions"])
            self.tokens.append(lp[:-1].gather(1, torch.tensor(ids[1:], dtype=torch.long)[:, None])[:, 0])
            self.rows.append(lp[at])
            self.raw_rows.append(raw[at])

    def error(self, other: "Sample") -> dict:
        """Maximum and mean of the absolute difference, over tokens and over row entries, all prompts together."""
        tokens = (torch.cat(self.tokens) - torch.cat(other.tokens)).abs()
        rows = (torch.cat(self.rows) - torch.cat(other.rows)).abs()
        return {
            "tokens_max": float(tokens.max()), "tokens_mean": float(tokens.mean()),
            "rows_max": float(rows.max()), "rows_mean": float(rows.mean()),
        }  # fmt: skip

    def max_error(self, other: "Sample") -> float:
        error = self.error(other)
        return max(error["tokens_max"], error["rows_max"])


def gemma_mistakes(config, edit, rope) -> dict:
    """As `mistakes`, what only a Gemma has."""

    @torch.no_grad()
    def norms_as_stored(model):
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.sub_(1.0)

    @torch.no_grad()
    def unscaled(model):
        model.model.embed_tokens.embed_scale.fill_(1.0)

    def without(name):
        def apply(model):
            for layer in model.model.layers:
                setattr(layer, name, torch.nn.Identity())

        return apply

    found = {
        "norms_as_stored": (None, norms_as_stored),
        "embeddings_not_scaled": (None, unscaled),
        "no_norm_after_attention": (None, without("post_attention_layernorm")),
        "no_norm_after_mlp": (None, without("post_feedforward_layernorm")),
        "scale_of_head_dim": (edit(query_pre_attn_scalar=config.head_dim), None),
        "silu": (edit(hidden_activation="silu"), None),
    }
    for cap, name in (("attn_logit_softcapping", "softcap"), ("final_logit_softcapping", "logit_softcap")):
        value = getattr(config, cap)
        if value is not None:
            found[f"no_{name}"] = (edit(**{cap: None}), None)
            found[f"{name}_5pct"] = (edit(**{cap: 1.05 * value}), None)
    if config.model_type == "gemma3_text":
        full = config.rope_parameters["full_attention"]
        found["one_rope_theta"] = (lambda c: rope(c, "sliding_attention", rope_theta=full["rope_theta"]), None)
        scaled = {"rope_type": full["rope_type"], "factor": full["factor"]}
        found["rope_scaling_everywhere"] = (lambda c: rope(c, "sliding_attention", **scaled), None)
    return found


def deepseek_mistakes(config, edit, fill) -> dict:
    """As `mistakes`, what only a DeepSeek has."""

    @torch.no_grad()
    def unbiased(model):
        for name, b in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.zero_()

    found = {
        "no_shared_experts": (None, fill("shared_experts.down_proj.weight", value=0.0)),
        "experts_scaled_5pct": (edit(routed_scaling_factor=1.05 * config.routed_scaling_factor), None),
        "one_dense_layer_more": (None, lambda model: model.model.layers[1].mlp.experts.down_proj.data.zero_()),
        "latents_not_normed": (None, fill("kv_a_layernorm.weight", value=1.0)),
    }
    if config.rope_parameters["rope_type"] == "yarn":
        found["no_softmax_factor"] = (None, scale_softmax)
    if config.n_group > 1:
        found["groups_ignored"] = (edit(topk_group=config.n_group), None)
        found["one_group"] = (edit(topk_group=1), None)
    if config.model_type == "deepseek_v3":
        found["no_correction_bias"] = (None, unbiased)
        found["not_renormalised"] = (edit(norm_topk_prob=False), None)
        found["rotated_by_halves"] = (edit(rope_interleave=False), None)
    return found


def scale_softmax(model) -> None:
    """Scores are scaled by the size of a query head alone."""
    for layer in model.model.layers:
        layer.self_attn.scaling = layer.self_attn.qk_head_dim**-0.5


def mistakes(config) -> dict:
    """Wrong readings of a checkpoint that this one must expose: name -> (edit of the config, edit of the model)."""

    def edit(**keys):
        def apply(c):
            for key, value in keys.items():
                setattr(c, key, value)

        return apply

    # Where layers with a window rotate differently, rotary parameters are those of the others.
    by_type = "full_attention" in config.rope_parameters
    parameters = config.rope_parameters["full_attention"] if by_type else config.rope_parameters

    def rope(c, kind="full_attention", **keys):
        if by_type:
            c.rope_parameters = dict(c.rope_parameters) | {kind: dict(c.rope_parameters[kind]) | keys}
        else:
            c.rope_parameters = dict(c.rope_parameters) | keys

    def fill(*suffixes, value):
        @torch.no_grad()
        def apply(model):
            hit = [p.fill_(value) for n, p in model.named_parameters() if n.endswith(suffixes)]
            assert hit, suffixes

        return apply

    def roll(suffix):
        @torch.no_grad()
        def apply(model):
            hit = [p.copy_(p.roll(1, 0)) for n, p in model.named_parameters() if n.endswith(suffix)]
            assert hit, suffix

        return apply

    one = norm_of_one(config)
    found = {
        "rope_theta_5pct": (lambda c: rope(c, rope_theta=1.05 * parameters["rope_theta"]), None),
        "eps_x10": (edit(rms_norm_eps=10 * config.rms_norm_eps), None),
        "eps_1e-6": (edit(rms_norm_eps=1e-6), None),
        "norm_weights_one": (None, fill("layernorm.weight", "model.norm.weight", value=one)),
    }
    if parameters["rope_type"] != "default":
        found["no_rope_scaling"] = (lambda c: rope(c, rope_type="default"), None)
    if parameters["rope_type"] == "yarn":
        found["no_yarn_attention_factor"] = (lambda c: rope(c, attention_factor=1.0), None)
    if parameters.get("truncate") is False:
        found["yarn_truncated"] = (lambda c: rope(c, truncate=True), None)
    if getattr(config, "num_experts_per_tok", None):
        found["one_expert_less"] = (edit(num_experts_per_tok=config.num_experts_per_tok - 1), None)
        found["experts_rolled"] = (None, roll("mlp.gate.weight"))
    if config.model_type == "qwen3_moe":
        found["renormalised_otherwise"] = (edit(norm_topk_prob=not config.norm_topk_prob), None)
    if config.model_type in ("qwen3", "qwen3_moe", "gemma3_text"):
        found["qk_norm_weights_one"] = (None, fill("q_norm.weight", "k_norm.weight", value=one))
    if is_gemma(config):
        found |= gemma_mistakes(config, edit, rope)
    if config.model_type.startswith("deepseek"):
        found |= deepseek_mistakes(config, edit, fill)
    layers = getattr(config, "layer_types", None) or []
    if getattr(config, "sliding_window", None):
        found["window_plus_one"] = (edit(sliding_window=config.sliding_window + 1), None)
        no_window = {"layer_types": ["full_attention"] * len(layers)} if layers else {"sliding_window": None}
        found["window_ignored"] = (edit(**no_window), None)
        if "full_attention" in layers:
            found["window_everywhere"] = (edit(layer_types=["sliding_attention"] * len(layers)), None)
    if config.model_type == "qwen2" or getattr(config, "attention_bias", False):
        found |= {f"no_{x}_bias": (None, fill(f"{x}_proj.bias", value=0.0)) for x in "qkv"}
    if getattr(config, "attention_bias", False):
        found["no_o_bias"] = (None, fill("o_proj.bias", value=0.0))
    if getattr(config, "mlp_bias", False):
        found |= {f"no_{x}_bias": (None, fill(f"{x}_proj.bias", value=0.0)) for x in ("gate", "up", "down")}
    return found


def sensitivity(folder: pathlib.Path, prompts: list[dict], reference: Sample) -> dict:
    """For each mistake, the largest log-probability error it causes (f32)."""
    config = AutoConfig.from_pretrained(folder)
    result = {}
    for name, (change_config, change_model) in mistakes(config).items():
        changed = copy.deepcopy(config)
        if change_config:
            change_config(changed)
        model = load(folder, config=changed)
        if change_model:
            change_model(model)
        result[name] = reference.max_error(Sample(model, prompts))
    raw = read_json(folder / "config.json")
    if raw.get("use_sliding_window") is False and raw["sliding_window"]:
        obeyed = copy.deepcopy(config)
        obeyed.sliding_window = raw["sliding_window"]
        obeyed.layer_types = ["sliding_attention"] * config.num_hidden_layers
        result["disabled_window_obeyed"] = reference.max_error(Sample(load(folder, config=obeyed), prompts))
    return result


def describe_prompts(model, name: str) -> list[dict]:
    prompts = []
    for length in PROMPT_LENGTHS:
        ids, continuation = draw_prompt(model, name, length)
        prompts.append({"ids": ids, "row_positions": ROW_POSITIONS[length], "greedy": continuation})
    return prompts


def encode_row(row: torch.Tensor) -> str:
    """Little-endian f32 in base64."""
    return base64.b64encode(row.float().numpy().astype("<f4").tobytes()).decode()


def recorded_rows(prompt: dict, raw_rows: torch.Tensor, rows: torch.Tensor) -> list[dict]:
    out = []
    for position, raw, lp in zip(prompt["row_positions"], raw_rows, rows):
        top = lp.topk(20)
        out.append({
            "position": position,
            "top20_ids": top.indices.tolist(),
            "top20_logprobs": top.values.tolist(),
            "logits_f32_base64": encode_row(raw),
        })  # fmt: skip
    return out


def measure(spec_name: str, purpose: str, folder: pathlib.Path) -> dict:
    """Everything `expected.json` says about the checkpoint in `folder`."""
    model = load(folder)
    prompts = describe_prompts(model, spec_name)
    f32 = Sample(model, prompts)
    with double_precision(model.config.model_type):
        f64 = Sample(load(folder, torch.float64), prompts)
    noise = f32.error(f64)
    bf16 = Sample(load(folder, torch.bfloat16), prompts).error(f32)
    if getattr(model.config, "attn_logit_softcapping", None) is None:
        sdpa = Sample(load(folder, torch.bfloat16, attention="sdpa"), prompts).error(f32)
    else:
        # Which has no soft cap.
        with f32_attention(model.config.model_type):
            sdpa = Sample(load(folder, torch.bfloat16), prompts).error(f32)
    errors = sensitivity(folder, prompts, f32)
    theta = errors.pop("rope_theta_5pct")

    def demand(what: str, ok: bool) -> None:
        if not ok:
            raise SystemExit(f"{spec_name}: {what}; change the gain, the stds or the eps of its spec\n{noise=}\n{bf16=}\n{theta=}\n{errors=}")

    bounds = {k: 2 * v + 0.02 if k.endswith("max") else 1.4 * v + 0.003 for k, v in bf16.items()}
    demand("a second correct bf16 run would miss the bf16 bounds", all(sdpa[k] <= bounds[k] for k in bounds))
    demand("f32 noise too large for a tolerance of 1e-3", max(noise["tokens_max"], noise["rows_max"]) < MAX_F64_NOISE)
    demand("blind to an error of 5 % in rope_theta", theta > MIN_THETA_SENSITIVITY)
    demand("blind to a mistake", min(errors.values()) > MIN_SENSITIVITY)
    return {
        "schema": 1,
        "name": spec_name,
        "purpose": purpose,
        "transformers_version": transformers.__version__,
        "torch_version": torch.__version__,
        "f32_noise_against_f64": noise,
        "bf16_error_against_f32": bf16,
        "bf16_sdpa_error_against_f32": sdpa,
        "rope_theta_5pct_max_logprob_error": theta,
        "mistakes_max_logprob_error": errors,
        "prompts": [
            {
                "ids": p["ids"],
                "token_logprobs": tokens.tolist(),
                "rows": recorded_rows(p, raw_rows, rows),
                "greedy": p["greedy"],
            }
            for p, tokens, raw_rows, rows in zip(prompts, f32.tokens, f32.raw_rows, f32.rows)
        ],
    }


# ---------------------------------------------------------------- files


def read_json(path: pathlib.Path):
    return json.loads(path.read_text())


def write(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def layout(value, indent: int = 0) -> str:
    """JSON with one line per key, lists of plain values on one line, floats to nine digits (f32 exact)."""
    pad = "\n" + " " * (indent + 1)
    if isinstance(value, dict) and value:
        body = ",".join(f"{pad}{json.dumps(k)}: {layout(v, indent + 1)}" for k, v in value.items())
        return "{" + body + "\n" + " " * indent + "}"
    if isinstance(value, (list, tuple)):
        if any(isinstance(v, (dict, list, tuple)) for v in value):
            return "[" + ",".join(pad + layout(v, indent + 1) for v in value) + "\n" + " " * indent + "]"
        return "[" + ", ".join(layout(v) for v in value) + "]"
    if isinstance(value, float):
        return json.dumps(float(f"{value:.9g}"))
    return json.dumps(value, ensure_ascii=False)


def build(spec: Spec, out: pathlib.Path) -> None:
    """Replaces `out/<name>`; a fixture that fails its demands leaves nothing behind."""
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp) / spec.name
        folder.mkdir()
        save_checkpoint(spec, folder)
        converted = convert(spec, folder) if spec.f8 else None
        if spec.name == tiny_chat.SPEC.name:
            tiny_chat.write_tokenizer(folder)
        expected = measure(spec.name, spec.purpose, folder)
        if spec.name == tiny_chat.SPEC.name:
            expected |= tiny_chat.record_text(load(folder), folder, greedy, MIN_MARGIN)
        if converted is not None:
            save_file(converted, folder / "model.safetensors", metadata={"format": "pt"})
            config = read_json(folder / "config.json") | {"quantization_config": quantization_config(spec)}
            write(folder / "config.json", json.dumps(config, indent=2) + "\n")
        write(folder / "expected.json", layout(expected) + "\n")
        shutil.rmtree(out / spec.name, ignore_errors=True)
        shutil.copytree(folder, out / spec.name, copy_function=shutil.copyfile)  # not the temporary files' modes


def table(out: pathlib.Path) -> str:
    """README's two tables."""
    first = [
        "| Fixture | KiB | Weights | Config | f32 noise (max) | bf16 tokens max / mean | bf16 rows max / mean | sdpa: largest share of these | smallest greedy margin | rope_theta +5 % |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    second = ["| Fixture | What is special | A mistake moves a log-probability by |", "|---|---|---|"]
    for path in sorted(out.glob("*/expected.json")):
        folder, e, config = path.parent, read_json(path), read_json(path.parent / "config.json")
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1024
        shards = len(list(folder.glob("*.safetensors")))
        dtype = config.get("dtype") or config["torch_dtype"]
        weights = ("E4M3, " if "quantization_config" in config else "") + dtype + (f", {shards} shards" if shards > 1 else "")
        noise, bf16 = e["f32_noise_against_f64"], e["bf16_error_against_f32"]
        share = max(e["bf16_sdpa_error_against_f32"][k] / bf16[k] for k in bf16)
        margin = min(m for p in e["prompts"] for m in p["greedy"]["margins"])
        first.append(
            f"| {e['name']} | {size:.0f} | {weights} | {'transformers 5' if 'rope_parameters' in config else 'hub'} "
            f"| {max(noise['tokens_max'], noise['rows_max']):.1e} | {bf16['tokens_max']:.3f} / {bf16['tokens_mean']:.4f} "
            f"| {bf16['rows_max']:.3f} / {bf16['rows_mean']:.4f} | {share:.2f} | {margin:.4f} | {e['rope_theta_5pct_max_logprob_error']:.2f} |"
        )
        moved = ", ".join(f"{k} {v:.2g}" for k, v in e["mistakes_max_logprob_error"].items())
        second.append(f"| {e['name']} | {e['purpose']} | {moved} |")
    return "\n".join(first + [""] + second)


def main() -> None:
    specs = {s.name: s for s in [*SPECS, tiny_chat.SPEC]}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder that receives one folder per fixture")
    parser.add_argument("--only", choices=specs, metavar="NAME", help=f"build one of: {', '.join(specs)}")
    parser.add_argument("--table", action="store_true", help="print the tables of README.md and build nothing")
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    # One thread, plain f32: the references do not depend on the machine's core count.
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    transformers.utils.logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in [args.only] if args.only else specs:
        build(specs[name], args.out)
        e = read_json(args.out / name / "expected.json")
        print(name, e["f32_noise_against_f64"], e["bf16_error_against_f32"], e["rope_theta_5pct_max_logprob_error"],
              e["mistakes_max_logprob_error"], sep="\n  ", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
