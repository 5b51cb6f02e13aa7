// Attention over latents of floats of eight bits.
#include "attention_matrix.cuh"

LATENT_ATTENTION(latent_attention_f8, 576, 512, 16, KV_F8, 2)
