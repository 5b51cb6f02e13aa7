// Attention over caches of bytes.
#include "attention_matrix.cuh"

ATTENTION(attention_i8_narrow_64, 64, 16, KV_I8, 5)
ATTENTION(attention_i8_narrow_128, 128, 16, KV_I8, 5)
ATTENTION(attention_i8_narrow_256, 256, 16, KV_I8, 2)
ATTENTION(attention_i8_wide_64, 64, 64, KV_I8, 3)
ATTENTION(attention_i8_wide_128, 128, 64, KV_I8, 2)
ATTENTION(attention_i8_wide_256, 256, 32, KV_I8, 2)
