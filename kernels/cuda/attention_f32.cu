// Attention over caches of f32.
#include "attention_float.cuh"

ATTENTION(attention_f32_64, 64, false, 4)
ATTENTION(attention_f32_128, 128, false, 3)
ATTENTION(attention_f32_256, 256, false, 2)
