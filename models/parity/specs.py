"""The fixtures: what each checkpoint is and which trap it sets.

Every `config` is a `config.json` in the spelling of published hub checkpoints (`rope_theta`, `rope_scaling`, `torch_dtype`).
A fixture with `spelling="v5"` is rewritten by transformers 5 itself (`rope_parameters`, `dtype`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """One random-weights checkpoint."""

    name: str
    purpose: str
    config: dict
    spelling: str = "hub"  # "hub" | "v5"
    max_shard_size: str = "1GB"
    extra_inv_freq: bool = False  # store `rotary_emb.inv_freq` tensors, as old Llama checkpoints do
    # Random matrices are drawn with std = gain / sqrt(fan_in): 0.2 to 0.3 where a row has hidden_size
    # values, enough for sharp attention and for greedy margins that do not vanish.
    gain: float = 1.7
    # Sharp, so that an expert which bf16 turns to or away from weighs little.
    router_gain: float = 4.0
    embedding_std: float = 0.3  # untied embeddings; a tied matrix is drawn as a head
    f8: str = ""  # matrices of layers in E4M3: "blocks" of 128 x 128 as DeepSeek's, "channels" as compressed-tensors'
    not_f8: tuple[str, ...] = ("lm_head",)  # modules that stay as they are


def _config(model_type: str, architecture: str, **keys) -> dict:
    base = {
        "architectures": [architecture],
        "model_type": model_type,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    return base | keys


def llama(**keys) -> dict:
    """A Llama `config.json`."""
    return _config("llama", "LlamaForCausalLM", **keys)


def _mistral(**keys) -> dict:
    return _config("mistral", "MistralForCausalLM", **keys)


def _qwen2(**keys) -> dict:
    return _config("qwen2", "Qwen2ForCausalLM", **keys)


def _qwen3(**keys) -> dict:
    return _config("qwen3", "Qwen3ForCausalLM", **keys)


def _mixtral(**keys) -> dict:
    return _config("mixtral", "MixtralForCausalLM", **keys)


def _qwen3_moe(**keys) -> dict:
    return _config("qwen3_moe", "Qwen3MoeForCausalLM", **keys)


def _deepseek(generation: int, **keys) -> dict:
    return _config(f"deepseek_v{generation}", f"DeepseekV{generation}ForCausalLM", attention_bias=False, moe_layer_freq=1, **keys)


def _gemma(model_type: str, architecture: str, **keys) -> dict:
    both = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0}
    # Published ones do not say that the head is tied: it is the default.
    return _config(model_type, architecture, **(both | keys))


SPECS = [
    Spec(
        name="llama2",
        purpose="Llama 2: multi-head, untied, no `rope_theta` and no `head_dim` in config.json (defaults), stray `rotary_emb.inv_freq` tensors",
        config=llama(
            vocab_size=197, hidden_size=60, intermediate_size=70, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=6,
            rms_norm_eps=1e-3, rope_scaling=None, pretraining_tp=1, tie_word_embeddings=False, torch_dtype="float32",
        ),
        extra_inv_freq=True,
        embedding_std=0.2,
    ),
    Spec(
        name="llama3",
        purpose="Llama 3.2: tied, grouped-query 6/3, llama3 rope scaling with all three bands inside the prompts, sharded",
        config=llama(
            vocab_size=389, hidden_size=84, intermediate_size=90, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
            head_dim=14, rms_norm_eps=1e-3, rope_theta=500000.0,
            rope_scaling={
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            attention_bias=False, mlp_bias=False, tie_word_embeddings=True, torch_dtype="bfloat16",
        ),
        max_shard_size="70KB",
    ),
    Spec(
        name="llama-bias",
        purpose="Llama with attention_bias and mlp_bias (all seven projections), one KV head, f16 weights",
        config=llama(
            vocab_size=347, hidden_size=66, intermediate_size=90, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
            rms_norm_eps=1e-4, rope_theta=10000.0, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, torch_dtype="float16",
        ),
        spelling="v5",
        embedding_std=0.1,
    ),
    Spec(
        name="llama-linear",
        purpose="Llama with linear rope scaling under the old key `type`",
        config=llama(
            vocab_size=293, hidden_size=60, intermediate_size=90, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
            rms_norm_eps=1e-4, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.5}, tie_word_embeddings=False,
            torch_dtype="bfloat16",
        ),
        embedding_std=0.1,
    ),
    Spec(
        name="llama-yarn",
        purpose="Llama with YaRN, every optional key left to its default (attention factor inferred)",
        config=llama(
            vocab_size=229, hidden_size=54, intermediate_size=70, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
            head_dim=20, rms_norm_eps=1e-3, rope_theta=10000.0, max_position_embeddings=256,
            rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            tie_word_embeddings=False, torch_dtype="float32",
        ),
        spelling="v5",
        embedding_std=0.2,
    ),
    Spec(
        name="mistral-window",
        purpose="Mistral 7B v0.1: sliding window of 24 tokens in every layer, head_dim 80 that is not hidden/heads",
        config=_mistral(
            vocab_size=389, hidden_size=30, intermediate_size=70, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
            head_dim=80, rms_norm_eps=1e-4, rope_theta=10000.0, sliding_window=24, tie_word_embeddings=False, torch_dtype="bfloat16",
        ),
        embedding_std=0.1,
    ),
    Spec(
        name="mistral-full",
        purpose="Mistral 7B v0.3: `sliding_window` null, sharded f16 weights",
        config=_mistral(
            vocab_size=309, hidden_size=52, intermediate_size=94, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=26, rms_norm_eps=1e-4, rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False, torch_dtype="float16",
        ),
        max_shard_size="80KB",
        embedding_std=0.1,
    ),
    Spec(
        name="qwen2",
        purpose="Qwen2.5: QKV biases, tied, a `sliding_window` that `use_sliding_window` false switches off",
        config=_qwen2(
            vocab_size=389, hidden_size=72, intermediate_size=90, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
            rms_norm_eps=1e-3, rope_theta=1000000.0, use_sliding_window=False, sliding_window=8, max_window_layers=1,
            tie_word_embeddings=True, torch_dtype="bfloat16",
        ),
    ),
    Spec(
        name="qwen2-window",
        purpose="Qwen2: layers 0 and 1 attend to everything, layers 2 and 3 to 20 tokens (max_window_layers)",
        config=_qwen2(
            vocab_size=307, hidden_size=60, intermediate_size=74, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=3,
            rms_norm_eps=1e-4, rope_theta=10000.0, use_sliding_window=True, sliding_window=20, max_window_layers=2,
            tie_word_embeddings=False, torch_dtype="bfloat16",
        ),
        embedding_std=0.1,
    ),
    Spec(
        name="qwen3",
        purpose="Qwen3: per-head QK-norm, untied, head_dim 80, sharded",
        config=_qwen3(
            vocab_size=389, hidden_size=30, intermediate_size=70, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
            head_dim=80, rms_norm_eps=1e-4, rope_theta=1000000.0, attention_bias=False, use_sliding_window=False, sliding_window=None,
            max_window_layers=2, tie_word_embeddings=False, torch_dtype="bfloat16",
        ),
        spelling="v5",
        max_shard_size="80KB",
        embedding_std=0.1,
    ),
    Spec(
        name="qwen3-fp8",
        purpose="Qwen3 in E4M3 with a scale for each block of 128 x 128, rows and columns no whole blocks, one projection not converted, tied",
        config=_qwen3(
            vocab_size=197, hidden_size=150, intermediate_size=170, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
            head_dim=24, rms_norm_eps=1e-3, rope_theta=1000000.0, attention_bias=False, use_sliding_window=False, sliding_window=None,
            max_window_layers=2, tie_word_embeddings=True, torch_dtype="bfloat16",
        ),
        f8="blocks",
        not_f8=("lm_head", "model.layers.1.mlp.down_proj"),
    ),
    Spec(
        name="llama-fp8",
        purpose="Llama in E4M3 with a scale for each output feature in bf16 (compressed-tensors), scales of activations beside them, untied",
        config=llama(
            vocab_size=197, hidden_size=60, intermediate_size=330, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
            head_dim=22, rms_norm_eps=1e-3, rope_theta=500000.0, rope_scaling=None, tie_word_embeddings=False, torch_dtype="bfloat16",
        ),
        f8="channels",
        embedding_std=0.2,
    ),
    Spec(
        name="qwen3-tied",
        purpose="Qwen3 0.6B: per-head QK-norm, tied, f16 weights",
        config=_qwen3(
            vocab_size=389, hidden_size=60, intermediate_size=90, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
            head_dim=18, rms_norm_eps=1e-3, rope_theta=1000000.0, rope_scaling=None, attention_bias=False, use_sliding_window=False,
            sliding_window=None, max_window_layers=2, tie_word_embeddings=True, torch_dtype="float16",
        ),
    ),
    Spec(
        name="qwen3-mixed",
        purpose="Qwen3 with explicit `layer_types` (windowed, full, windowed), attention_bias, YaRN with truncate false and its own attention factor and betas",
        config=_qwen3(
            vocab_size=293, hidden_size=54, intermediate_size=70, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3,
            head_dim=22, rms_norm_eps=1e-3, rope_theta=50000.0, max_position_embeddings=320,
            rope_scaling={
                "rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 64, "attention_factor": 1.3,
                "beta_fast": 6.0, "beta_slow": 0.5, "truncate": False,
            },
            attention_bias=True, use_sliding_window=True, sliding_window=17, max_window_layers=0,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            tie_word_embeddings=False, torch_dtype="bfloat16",
        ),
        spelling="v5",
        embedding_std=0.2,
    ),
    Spec(
        name="mixtral",
        purpose="Mixtral: 2 of 5 experts in every layer, a window of 24 tokens, f16 weights in shards",
        config=_mixtral(
            vocab_size=197, hidden_size=48, intermediate_size=38, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
            rms_norm_eps=1e-3, rope_theta=1000000.0, sliding_window=24, num_local_experts=5, num_experts_per_tok=2,
            output_router_logits=False, router_aux_loss_coef=0.02, tie_word_embeddings=False, torch_dtype="float16",
        ),
        max_shard_size="80KB",
        embedding_std=0.2,
    ),
    Spec(
        name="qwen3-moe",
        purpose="Qwen3 with 3 of 12 experts in all layers but one (mlp_only_layers), weights renormalised, per-head QK-norm, tied",
        config=_qwen3_moe(
            vocab_size=263, hidden_size=40, intermediate_size=70, moe_intermediate_size=22, num_hidden_layers=4, num_attention_heads=6,
            num_key_value_heads=3, head_dim=14, rms_norm_eps=1e-3, rope_theta=1000000.0, attention_bias=False, use_sliding_window=False,
            sliding_window=None, max_window_layers=4, num_experts=12, num_experts_per_tok=3, norm_topk_prob=True,
            decoder_sparse_step=1, mlp_only_layers=[2], output_router_logits=False, router_aux_loss_coef=0.001,
            tie_word_embeddings=True, torch_dtype="bfloat16",
        ),
    ),
    Spec(
        name="qwen3-moe-plain",
        purpose="Qwen3 with 3 of 7 experts in every second layer (decoder_sparse_step), weights not renormalised, attention_bias",
        config=_qwen3_moe(
            vocab_size=199, hidden_size=36, intermediate_size=50, moe_intermediate_size=18, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=10, rms_norm_eps=1e-3, rope_theta=10000.0, attention_bias=True, use_sliding_window=False,
            sliding_window=None, num_experts=7, num_experts_per_tok=3, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[],
            output_router_logits=False, router_aux_loss_coef=0.001, tie_word_embeddings=False, torch_dtype="float32",
        ),
        spelling="v5",
        embedding_std=0.2,
    ),
    Spec(
        name="gemma2",
        purpose="Gemma 2: soft caps of scores and logits, norms after attention and MLP, norm weights stored less 1, scaled embeddings, windows of 20 in layers 0 and 2, a query scalar that is not the head size, tied by default",
        config=_gemma(
            "gemma2", "Gemma2ForCausalLM", vocab_size=331, hidden_size=60, intermediate_size=70, num_hidden_layers=3,
            num_attention_heads=6, num_key_value_heads=3, head_dim=22, rms_norm_eps=4e-3, rope_theta=10000.0, attention_bias=False,
            query_pre_attn_scalar=14, sliding_window=20, attn_logit_softcapping=3.0, final_logit_softcapping=7.0,
            cache_implementation="hybrid", torch_dtype="bfloat16",
        ),
    ),
    Spec(
        name="gemma3",
        purpose="Gemma 3, text: norms of query and key heads stored less 1, a window of 17 and rotary base of their own in layers 0 and 2 (sliding_window_pattern), linear scaling in the others, one KV head, sharded",
        config=_gemma(
            "gemma3_text", "Gemma3ForCausalLM", vocab_size=307, hidden_size=52, intermediate_size=66, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=1, head_dim=26, rms_norm_eps=4e-3, rope_theta=20000.0,
            rope_local_base_freq=3000.0, rope_scaling={"factor": 2.5, "rope_type": "linear"}, attention_bias=False,
            query_pre_attn_scalar=17, sliding_window=17, sliding_window_pattern=2, attn_logit_softcapping=None,
            final_logit_softcapping=None, cache_implementation="hybrid", torch_dtype="bfloat16",
        ),
        max_shard_size="80KB",
    ),
    Spec(
        name="deepseek-v2-lite",
        purpose="DeepSeek-V2-Lite: latent attention without a latent of queries, YaRN whose factors also scale the softmax, 3 of 7 experts chosen greedily beside two shared ones, the first layer dense",
        config=_deepseek(
            2, vocab_size=263, hidden_size=48, intermediate_size=70, moe_intermediate_size=22, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=6, q_lora_rank=None, kv_lora_rank=26, qk_nope_head_dim=8, qk_rope_head_dim=10, v_head_dim=11,
            rms_norm_eps=1e-3, rope_theta=10000.0,
            rope_scaling={
                "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 0.707,
                "beta_fast": 32, "beta_slow": 1,
            },
            first_k_dense_replace=1, n_routed_experts=7, n_shared_experts=2, num_experts_per_tok=3, norm_topk_prob=False,
            routed_scaling_factor=1.0, scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1,
            tie_word_embeddings=False, torch_dtype="bfloat16",
        ),
        embedding_std=0.2,
    ),
    Spec(
        name="deepseek-v2",
        purpose="DeepSeek-V2: a latent of queries, 3 of 12 experts from the best 2 of 4 groups, scaled, beside one shared one",
        config=_deepseek(
            2, vocab_size=229, hidden_size=40, intermediate_size=66, moe_intermediate_size=18, num_hidden_layers=2, num_attention_heads=5,
            num_key_value_heads=5, q_lora_rank=22, kv_lora_rank=34, qk_nope_head_dim=16, qk_rope_head_dim=6, v_head_dim=13,
            rms_norm_eps=1e-3, rope_theta=20000.0, rope_scaling=None, first_k_dense_replace=1, n_routed_experts=12,
            n_shared_experts=1, num_experts_per_tok=3, norm_topk_prob=False, routed_scaling_factor=1.6, scoring_func="softmax",
            topk_method="group_limited_greedy", n_group=4, topk_group=2, tie_word_embeddings=False, torch_dtype="float32",
        ),
        embedding_std=0.2,
    ),
    Spec(
        name="deepseek-v3",
        purpose="DeepSeek-V3: sigmoid scores with a correction bias, 3 of 15 experts from the 2 best of 5 groups by the sum of two, weights renormalised and scaled, YaRN, sharded",
        config=_deepseek(
            3, vocab_size=251, hidden_size=42, intermediate_size=62, moe_intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=3, q_lora_rank=30, kv_lora_rank=38, qk_nope_head_dim=18, qk_rope_head_dim=14, v_head_dim=17,
            rms_norm_eps=1e-3, rope_theta=10000.0, num_nextn_predict_layers=1,
            rope_scaling={
                "type": "yarn", "factor": 5.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.0,
                "beta_fast": 32, "beta_slow": 1,
            },
            first_k_dense_replace=1, n_routed_experts=15, n_shared_experts=1, num_experts_per_tok=3, norm_topk_prob=True,
            routed_scaling_factor=1.4, scoring_func="sigmoid", topk_method="noaux_tc", n_group=5, topk_group=2,
            tie_word_embeddings=False, torch_dtype="bfloat16",
        ),
        max_shard_size="80KB",
        router_gain=2.0,
        embedding_std=0.2,
    ),
]
