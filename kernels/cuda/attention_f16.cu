// Attention over caches of f16.
#include "attention_float.cuh"

ATTENTION(attention_f16_64, 64, true, 4)
ATTENTION(attention_f16_128, 128, true, 3)
ATTENTION(attention_f16_256, 256, true, 2)
