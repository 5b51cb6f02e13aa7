// Attention over caches of floats of eight bits.
#include "attention_matrix.cuh"

ATTENTION(attention_f8_narrow_64, 64, 16, KV_F8, 5)
ATTENTION(attention_f8_narrow_128, 128, 16, KV_F8, 5)
ATTENTION(attention_f8_narrow_256, 256, 16, KV_F8, 2)
ATTENTION(attention_f8_wide_64, 64, 64, KV_F8, 3)
ATTENTION(attention_f8_wide_128, 128, 64, KV_F8, 2)
ATTENTION(attention_f8_wide_256, 256, 32, KV_F8, 2)
