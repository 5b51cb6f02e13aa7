"""The bundled model: a Qwen3-layout decoder in plain PyTorch, its parameters named as the checkpoint's."""

import json
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Shape:
    """config.json's sizes."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def config(self):
        """config.json of transformers' `Qwen3ForCausalLM`."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": [2, 0],
            "pad_token_id": 0,
            **asdict(self),
        }


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.heads, self.kv_heads, self.head = s.num_attention_heads, s.num_key_value_heads, s.head_dim
        self.q_proj = nn.Linear(s.hidden_size, self.heads * self.head, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, self.kv_heads * self.head, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, self.kv_heads * self.head, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head, s.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.head, eps=s.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head, eps=s.rms_norm_eps)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape

        def split(projection, heads):
            return projection(x).view(batch, length, heads, self.head)

        q = rotate(self.q_norm(split(self.q_proj, self.heads)), cos, sin).transpose(1, 2)
        k = rotate(self.k_norm(split(self.k_proj, self.kv_heads)), cos, sin).transpose(1, 2)
        v = split(self.v_proj, self.kv_heads).transpose(1, 2)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = attend(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


def attend(q, k, v):
    """Causal attention, written out: on a CPU at these lengths faster to train than the fused operator."""
    length = q.shape[-2]
    mask = torch.full((length, length), float("-inf"), dtype=torch.float32).triu(1)
    scores = torch.matmul(q, k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5 + mask
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


def rotate(x, cos, sin):
    """RoPE, the halves of a head turned against each other (as transformers does)."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Mlp(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden_size, eps=s.rms_norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden_size, eps=s.rms_norm_eps)
        self.mlp = Mlp(s)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_hidden_layers))
        self.norm = nn.RMSNorm(s.hidden_size, eps=s.rms_norm_eps)


class Decoder(nn.Module):
    """Token ids `[batch, length]` and targets (-100: not counted) to the mean loss."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.model = shape, Body(shape)
        half = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.outer(torch.arange(shape.max_position_embeddings), shape.rope_theta**-half)
        self.register_buffer("cos", angles.cos()[:, None, :], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None, :], persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                deviation = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=deviation / (2 * shape.num_hidden_layers) ** 0.5 if deep else deviation)

    def hidden(self, ids):
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, self.cos[: ids.shape[1]], self.sin[: ids.shape[1]])
        return self.model.norm(x)

    def forward(self, ids, targets, reduction="mean"):
        logits = F.linear(self.hidden(ids), self.model.embed_tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction=reduction)

    def parameter_count(self):
        return sum(p.numel() for p in self.parameters())


def export(decoder: Decoder, directory):
    """config.json and model.safetensors in bf16."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to(torch.bfloat16).contiguous().clone() for name, p in decoder.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(decoder.shape.config(), indent=2) + "\n")
