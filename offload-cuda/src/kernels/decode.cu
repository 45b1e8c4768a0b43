// Decodes the tensors of a block in one launch.
//
// A table lists the tensors. Each is cut into tiles, one for each thread block of the grid, and a thread block finds
// its tensor by the number of its tile. Then, whatever the encoding:
//
//   1. The tile's bytes go to shared memory in granules of 16, all of them in flight at once. Sources may begin at any
//      byte and most quant blocks have an odd number of words, so that is where alignment ends: shared memory is read
//      a word at a time and shifted into place.
//   2. Where scales are dear to unpack, each is unpacked once, by one thread.
//   3. Each thread makes 8 consecutive numbers at a time. Its neighbour makes the next 8, so that stores are 16 bytes
//      a thread and, for 16-bit numbers, without a gap over the warp.
//
// Granules reach up to 15 bytes to either side of a tile. What lies there is read and not used: the arena must begin
// and end at multiples of 16.

#include "encodings.cuh"

// A tensor to decode. The host makes these (`Entry` in mod.rs) and answers for every field.
struct Entry {
    u64 source;         // address of its encoded bytes
    u64 destination;    // address of its arrived bytes, a multiple of 16
    u64 bytes;          // of `source`, more than 0
    u32 first_tile;     // number of its first tile; entries are in this order and leave no gap, the first has 0
    u32 tile_bytes;     // of `source` in a tile: whole quant blocks, a multiple of 8 numbers, at most `TILE_BYTES`
    u32 tile_arrived;   // of `destination` in a tile, a multiple of 16
    u32 conversion;     // how it is stored (ggml's type id, or one of those below); how it arrives, times 256
    u64 factors;        // where its scale's factors begin, in bytes after the first entry; for the scaled ones only
    u32 factor_run;     // numbers that share a factor; 0 if all do
    u32 factor_before;  // numbers that share the first factor and come before the source: with all of these below 2^32
};

enum : u32 {
    F8_E4M3_CODE = 64,
    F8_E5M2_CODE = 65,
    SCALED_F8_E4M3_CODE = 66,
    SCALED_F8_E5M2_CODE = 67,
    SCALED_I8_CODE = 68,
    COPY_CODE = 255
};
enum : u32 { TO_F32 = 0, TO_F16 = 1, TO_BF16 = 2 };

// What a tile may hold: bytes of its source, and scales unpacked ahead.
constexpr u32 TILE_BYTES = 8704, TILE_SCALES = 256;

// The bytes, up to 15 before them, and what `Bytes::read` and a tail of floats read beyond.
constexpr u32 GRANULES = (15 + TILE_BYTES + 15) / 16;
constexpr u32 IMAGE_WORDS = 4 * (GRANULES + 5);

struct Shared {
    alignas(16) u32 image[IMAGE_WORDS];
    Scale scales[TILE_SCALES];
};

// Factors of a tile's numbers: each `run` numbers share one, or all do if that is 0.
struct Factors {
    const float *first;
    u32 run;
    u32 before;  // numbers before the tile, from the first that shares the first one on
};

// A tile, as the threads that decode it see it.
struct Tile {
    Bytes source;
    u32 bytes;  // of `source`
    u64 destination;
    u32 target;
    Factors factors;  // of the scaled ones
};

// Stores 8 numbers, the `group`-th 8 of the tile.
BOTH void store_group(const Tile &tile, u32 group, const float (&x)[8]) {
    if (tile.target == TO_F32) {
        const u64 to = tile.destination + 32 * group;
        store_16(to, bits_of_float(x[0]), bits_of_float(x[1]), bits_of_float(x[2]), bits_of_float(x[3]));
        store_16(to + 16, bits_of_float(x[4]), bits_of_float(x[5]), bits_of_float(x[6]), bits_of_float(x[7]));
    } else if (tile.target == TO_BF16) {
        store_16(tile.destination + 16 * group, bf16s_of_floats(x[0], x[1]), bf16s_of_floats(x[2], x[3]),
                 bf16s_of_floats(x[4], x[5]), bf16s_of_floats(x[6], x[7]));
    } else {
        store_16(tile.destination + 16 * group, halves_of_floats(x[0], x[1]), halves_of_floats(x[2], x[3]),
                 halves_of_floats(x[4], x[5]), halves_of_floats(x[6], x[7]));
    }
}

// Stores one number, the `index`-th of the tile.
BOTH void store_one(const Tile &tile, u32 index, float x) {
    if (tile.target == TO_F32) {
        ((float *)tile.destination)[index] = x;
    } else {
        ((u16 *)tile.destination)[index] = (u16)(tile.target == TO_BF16 ? bf16_of_float(x) : half_of_float(x));
    }
}

template <class E>
BOTH void decode_quantized(const Tile &tile, Scale *scales) {
    // A thread makes the same group of one quant block after another, so that what depends on the group is computed
    // once. The same holds for scales.
    constexpr u32 GROUPS = E::LEN / 8, SHARES = E::LEN / E::SHARE;
    const u32 blocks = tile.bytes / E::BYTES;
    if (E::SCALES_AHEAD) {
        every_thread([&](u32 thread) {
            const u32 share = thread % SHARES;
            for (u32 i = thread / SHARES; i < blocks; i += THREADS / SHARES) {
                scales[i * SHARES + share] = E::scale(tile.source.from(i * E::BYTES), share);
            }
        });
        barrier();
    }
    every_thread([&](u32 thread) {
        const u32 group = thread % GROUPS, share = group / (E::SHARE / 8);
        for (u32 i = thread / GROUPS; i < blocks; i += THREADS / GROUPS) {
            const Bytes block = tile.source.from(i * E::BYTES);
            const Scale scale = E::SCALES_AHEAD ? scales[i * SHARES + share] : E::scale(block, share);
            u32 codes[2];
            E::codes(block, group, codes);
            float x[8];
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                const u32 lifted = choose(codes[k / 4], TWO_TO_23, 0x7440 | (k % 4));
                const float integer = float_of_bits(lifted) - (8388608.0f + (float)E::BIAS);
                x[k] = multiply_add(integer, scale.factor, scale.offset);
            }
            store_group(tile, i * GROUPS + group, x);
        }
    });
}

template <class E>
BOTH void decode_floats(const Tile &tile) {
    const u32 count = tile.bytes / E::BYTES;
    every_thread([&](u32 thread) {
        float x[8];
#pragma unroll 1
        for (u32 i = thread; i < count / 8; i += THREADS) {
            E::numbers(tile.source.from(8 * i * E::BYTES), x);
            store_group(tile, i, x);
        }
        if (thread < count % 8) {
            const u32 index = count / 8 * 8 + thread;
            E::numbers(tile.source.from(index * E::BYTES), x);
            store_one(tile, index, x[0]);
        }
    });
}

BOTH float factor_of(const Factors &factors, u32 index) {
    return factors.first[factors.run == 0 ? 0 : (factors.before + index) / factors.run];
}

// Floats and integers of one byte, times their factors. Eight numbers at a time have one factor; where they might not,
// because rows are no multiple of 8, and at the end, it is one number at a time.
template <class E>
BOTH void decode_scaled(const Tile &tile) {
    static_assert(E::BYTES == 1, "numbers are counted as bytes");
    const u32 groups = (tile.factors.run | tile.factors.before) % 8 == 0 ? tile.bytes / 8 : 0;
    every_thread([&](u32 thread) {
        float x[8];
#pragma unroll 1
        for (u32 i = thread; i < groups; i += THREADS) {
            E::numbers(tile.source.from(8 * i), x);
            const float factor = factor_of(tile.factors, 8 * i);
#pragma unroll
            for (u32 k = 0; k < 8; k++) x[k] *= factor;
            store_group(tile, i, x);
        }
#pragma unroll 1
        for (u32 i = 8 * groups + thread; i < tile.bytes; i += THREADS) {
            E::numbers(tile.source.from(i), x);
            store_one(tile, i, x[0] * factor_of(tile.factors, i));
        }
    });
}

BOTH void copy(const Tile &tile) {
    every_thread([&](u32 thread) {
#pragma unroll 1
        for (u32 i = thread; i < tile.bytes / 16; i += THREADS) {
            u32 words[4];
            tile.source.from(16 * i).read_granules(0, words);
            store_16(tile.destination + 16 * i, words[0], words[1], words[2], words[3]);
        }
        if (thread < tile.bytes % 16) {
            const u32 index = tile.bytes / 16 * 16 + thread;
            ((u8 *)tile.destination)[index] = (u8)tile.source.byte(index);
        }
    });
}

BOTH void decode_staged(const Tile &tile, u32 code, Scale *scales) {
    switch (code) {
        case 0: return decode_floats<F32>(tile);
        case 1: return decode_floats<F16>(tile);
        case 2: return decode_quantized<Q4_0>(tile, scales);
        case 3: return decode_quantized<Q4_1>(tile, scales);
        case 6: return decode_quantized<Q5_0>(tile, scales);
        case 7: return decode_quantized<Q5_1>(tile, scales);
        case 8: return decode_quantized<Q8_0>(tile, scales);
        case 10: return decode_quantized<Q2_K>(tile, scales);
        case 11: return decode_quantized<Q3_K>(tile, scales);
        case 12: return decode_quantized<Q4_K>(tile, scales);
        case 13: return decode_quantized<Q5_K>(tile, scales);
        case 14: return decode_quantized<Q6_K>(tile, scales);
        case 16: return decode_quantized<IQ2_XXS>(tile, scales);
        case 17: return decode_quantized<IQ2_XS>(tile, scales);
        case 18: return decode_quantized<IQ3_XXS>(tile, scales);
        case 19: return decode_quantized<IQ1_S>(tile, scales);
        case 20: return decode_quantized<IQ4_NL>(tile, scales);
        case 21: return decode_quantized<IQ3_S>(tile, scales);
        case 22: return decode_quantized<IQ2_S>(tile, scales);
        case 23: return decode_quantized<IQ4_XS>(tile, scales);
        case 28: return decode_floats<F64>(tile);
        case 29: return decode_quantized<IQ1_M>(tile, scales);
        case 30: return decode_floats<BF16>(tile);
        case 34: return decode_quantized<TQ1_0>(tile, scales);
        case 35: return decode_quantized<TQ2_0>(tile, scales);
        case 39: return decode_quantized<MXFP4>(tile, scales);
        case 40: return decode_quantized<NVFP4>(tile, scales);
        case 41: return decode_quantized<Q1_0>(tile, scales);
        case 42: return decode_quantized<Q2_0>(tile, scales);
        case F8_E4M3_CODE: return decode_floats<F8_E4M3>(tile);
        case F8_E5M2_CODE: return decode_floats<F8_E5M2>(tile);
        case SCALED_F8_E4M3_CODE: return decode_scaled<F8_E4M3>(tile);
        case SCALED_F8_E5M2_CODE: return decode_scaled<F8_E5M2>(tile);
        case SCALED_I8_CODE: return decode_scaled<I8>(tile);
        case COPY_CODE: return copy(tile);
    }
}

// Decodes tile `number` of the table's.
BOTH void decode_tile(const Entry *entries, u32 count, u32 number, Shared &shared) {
    u32 index = 0;
    // The last entry that begins at or before the tile.
    for (u32 end = count; end - index > 1;) {
        const u32 middle = (index + end) / 2;
        if (entries[middle].first_tile <= number) index = middle;
        else end = middle;
    }
    const Entry entry = entries[index];
    const u32 tile_of_entry = number - entry.first_tile;
    const u64 begin = (u64)tile_of_entry * entry.tile_bytes;
    const u64 source = entry.source + begin, left = entry.bytes - begin;
    Tile tile;
    const u32 head = (u32)source & 15;
    tile.source = {(const u8 *)shared.image, head};
    tile.bytes = left < entry.tile_bytes ? (u32)left : entry.tile_bytes;
    tile.destination = entry.destination + (u64)tile_of_entry * entry.tile_arrived;
    tile.target = entry.conversion >> 8;
    tile.factors = {(const float *)((const u8 *)entries + entry.factors), entry.factor_run,
                    entry.factor_before + (u32)begin};
    every_thread([&](u32 thread) {
        constexpr u32 MOST = (GRANULES + THREADS - 1) / THREADS;
        stage<MOST>(shared.image, source - head, (head + tile.bytes + 15) / 16, thread);
        stage_done();
    });
    barrier();
    decode_staged(tile, entry.conversion & 255, shared.scales);
}

#if defined(__CUDACC__)
// One thread block a tile. 32 registers a thread let an SM hold as many as it has threads for, which keeps enough bytes
// in flight; the bound keeps a compiler from spending many more.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define BLOCKS_PER_SM 6
#else
#define BLOCKS_PER_SM 4
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
    decode_block(const Entry *__restrict__ entries, u32 count) {
    __shared__ Shared shared;
    decode_tile(entries, count, blockIdx.x, shared);
}
#endif
