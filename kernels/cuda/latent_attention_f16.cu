// Attention over latents of f16.
#include "attention_float.cuh"

LATENT_ATTENTION(latent_attention_f16, 576, 512, true)
