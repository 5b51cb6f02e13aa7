// Attention of many rows over caches of bf16 by warpgroups.
#include "attention_warpgroup.cuh"

#ifdef HAS_WARPGROUPS
#define ATTENTION(name, D, BLOCKS)                                 \
    KERNEL_OF_BLOCKS(name, 128, BLOCKS, AttentionParams) {         \
        SHARED_BYTES(memory);                                      \
        SHARED(attention_warpgroup::Shared, shared);               \
        attention_warpgroup::Block<D>(p, shared, memory).run();    \
    }
ATTENTION(attention_bf16_warpgroup_64, 64, 3)
ATTENTION(attention_bf16_warpgroup_128, 128, 2)
#endif
