// Attention over caches of bf16.
#include "attention_matrix.cuh"

ATTENTION(attention_bf16_narrow_64, 64, 16, false, 5)
ATTENTION(attention_bf16_narrow_128, 128, 16, false, 5)
ATTENTION(attention_bf16_narrow_256, 256, 16, false, 2)
ATTENTION(attention_bf16_wide_64, 64, 64, false, 3)
ATTENTION(attention_bf16_wide_128, 128, 64, false, 2)
ATTENTION(attention_bf16_wide_256, 256, 32, false, 2)
