// Attention over latents of bf16: keys of up to 576 elements, whose values are the first 512 at most.
#include "attention_matrix.cuh"

LATENT_ATTENTION(latent_attention_bf16, 576, 512, 16, KV_BF16, 2)
