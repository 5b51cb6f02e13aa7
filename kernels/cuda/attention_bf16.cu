// Attention over caches of bf16.
#include "attention_matrix.cuh"

ATTENTION(attention_bf16_narrow_64, 64, 16, KV_BF16, 5)
ATTENTION(attention_bf16_narrow_128, 128, 16, KV_BF16, 5)
ATTENTION(attention_bf16_narrow_256, 256, 16, KV_BF16, 2)
ATTENTION(attention_bf16_wide_64, 64, 64, KV_BF16, 3)
ATTENTION(attention_bf16_wide_128, 128, 64, KV_BF16, 2)
ATTENTION(attention_bf16_wide_256, 256, 32, KV_BF16, 2)
