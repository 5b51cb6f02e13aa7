// Attention over latents of f32.
#include "attention_float.cuh"

LATENT_ATTENTION(latent_attention_f32, 576, 512, false)
