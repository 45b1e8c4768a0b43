// The encodings: how a quant block lies in memory and what its numbers are. Layouts are those of ggml-common.h; what
// each means is spelled out once more, and simpler, in offload-core/src/decode, with which this must agree bit for bit.
//
// Two kinds. A `Quantized` encoding gives 8 consecutive numbers as 8 bytes, `codes`, and what they share as a `Scale`:
// number = (code - BIAS) * scale.factor + scale.offset. Every product is exact in f32, so that only the addition
// rounds and a fused multiply-add gives what a multiplication and an addition give. A `Float` encoding gives 8
// numbers, `numbers`.

#pragma once

#include "primitives.cuh"

struct Scale {
    float factor;
    float offset;
};

// A tile's encoded bytes in shared memory. `words` is aligned to 16 bytes; a quant block may begin at any byte.
struct Image {
    const u32 *words;

    BOTH u32 byte(u32 at) const { return ((const u8 *)words)[at]; }

    // Two bytes. The bank is shared with the neighbours: reading bytes costs no more than reading a word.
    BOTH u32 half(u32 at) const { return byte(at) | (byte(at + 1) << 8); }

    // `COUNT` words from any byte on. Reads up to 4 bytes more than these, which do not matter.
    template <u32 COUNT>
    BOTH void read(u32 at, u32 (&values)[COUNT]) const {
        const u32 *from = words + (at >> 2);
        const u32 shift = (at & 3) * 8;
        u32 low = from[0];
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            const u32 high = from[i + 1];
            values[i] = funnel(low, high, shift);
            low = high;
        }
    }

    BOTH u32 word(u32 at) const {
        u32 value[1];
        read(at, value);
        return value[0];
    }
};

// An integer below 2^23 as a float: 2^23 + n is a float whose lower bits are n.
constexpr u32 TWO_TO_23 = 0x4b000000;

BOTH float float_of_small(u32 n) { return float_of_bits(TWO_TO_23 | n) - 8388608.0f; }

// The 4-bit halves of four bytes: the lower ones if `upper` is 0, the upper ones if it is 1.
BOTH u32 nibbles(u32 word, u32 upper) { return (word >> (4 * upper)) & 0x0f0f0f0f; }

// Bits 0 to 3 of `bits` as bit `AT` of bytes 0 to 3.
template <u32 AT>
BOTH u32 spread(u32 bits) {
    return ((bits & 15) * (0x00204081u << AT)) & (0x01010101u << AT);
}

// Four entries, each a byte, of a table of 16; `codes` are the four indices.
BOTH u32 look_up(u32 codes, u32 t0, u32 t1, u32 t2, u32 t3) {
    // `choose` takes digits, not bytes: 0d0c0b0a to dcba.
    const u32 digits = choose(codes | (codes >> 4), 0, 0x4420);
    const u32 in_eight = digits & 0x7777;
    const u32 below = choose(t0, t1, in_eight), above = choose(t2, t3, in_eight);
    return choose(below, above, 0x3210 | ((digits & 0x8888) >> 1));
}

// --- 32 numbers share a scale. A byte holds number i below and i + 16 above. ---

// f16 d; 16 bytes.
struct Q4_0 {
    static constexpr u32 BYTES = 18, LEN = 32, SHARE = 32, BIAS = 8;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Image &image, u32 at, u32) { return {float_of_half(image.half(at)), -0.0f}; }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        image.read(at + 2 + 8 * (group & 1), q);
        q[0] = nibbles(q[0], group >> 1);
        q[1] = nibbles(q[1], group >> 1);
    }
};

// f16 d; f16 minimum; 16 bytes.
struct Q4_1 {
    static constexpr u32 BYTES = 20, LEN = 32, SHARE = 32, BIAS = 0;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Image &image, u32 at, u32) {
        const u32 pair = image.word(at);
        return {float_of_half(pair), float_of_half(pair >> 16)};
    }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        image.read(at + 4 + 8 * (group & 1), q);
        q[0] = nibbles(q[0], group >> 1);
        q[1] = nibbles(q[1], group >> 1);
    }
};

// f16 d; the fifth bits, number i's at bit i; 16 bytes.
struct Q5_0 {
    static constexpr u32 BYTES = 22, LEN = 32, SHARE = 32, BIAS = 16;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Image &image, u32 at, u32) { return {float_of_half(image.half(at)), -0.0f}; }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        const u32 fifth = image.byte(at + 2 + group);
        image.read(at + 6 + 8 * (group & 1), q);
        q[0] = nibbles(q[0], group >> 1) | spread<4>(fifth);
        q[1] = nibbles(q[1], group >> 1) | spread<4>(fifth >> 4);
    }
};

// f16 d; f16 minimum; the fifth bits; 16 bytes.
struct Q5_1 {
    static constexpr u32 BYTES = 24, LEN = 32, SHARE = 32, BIAS = 0;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Image &image, u32 at, u32 share) { return Q4_1::scale(image, at, share); }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        Q5_0::codes(image, at + 2, group, q);
    }
};

// f16 d; 32 signed bytes.
struct Q8_0 {
    static constexpr u32 BYTES = 34, LEN = 32, SHARE = 32, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Image &image, u32 at, u32) { return {float_of_half(image.half(at)), -0.0f}; }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        image.read(at + 2 + 8 * group, q);
        q[0] ^= 0x80808080;
        q[1] ^= 0x80808080;
    }
};

// --- K-quants: 256 numbers share an f16, each 16 or 32 a small integer on top. ---

// Two bits of each of 8 numbers: 32 bytes hold 128 numbers, number i in byte i % 32.
BOTH void two_bits(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
    const u32 shift = 2 * ((group >> 2) & 3);
    image.read(at + 32 * (group >> 4) + 8 * (group & 3), q);
    q[0] = (q[0] >> shift) & 0x03030303;
    q[1] = (q[1] >> shift) & 0x03030303;
}

// 16 bytes of a 4-bit scale below and a 4-bit minimum above; 64 bytes of 2-bit codes; f16 d; f16 dmin.
struct Q2_K {
    static constexpr u32 BYTES = 84, LEN = 256, SHARE = 16, BIAS = 0;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Image &image, u32 at, u32 share) {
        const u32 pair = image.word(at + 80), both = image.byte(at + share);
        return {float_of_half(pair) * float_of_small(both & 15),
                -(float_of_half(pair >> 16) * float_of_small(both >> 4))};
    }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) { two_bits(image, at + 16, group, q); }
};

// 32 bytes of third bits; 64 bytes of the two below; 12 bytes of 6-bit scales; f16 d.
struct Q3_K {
    static constexpr u32 BYTES = 110, LEN = 256, SHARE = 16, BIAS = 4;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Image &image, u32 at, u32 share) {
        const u32 low = (image.byte(at + 96 + (share & 7)) >> (4 * (share >> 3))) & 15;
        const u32 high = (image.byte(at + 104 + (share & 3)) >> (2 * (share >> 2))) & 3;
        const float factor = float_of_small(low | (high << 4)) - 32.0f;
        return {float_of_half(image.half(at + 108)) * factor, -0.0f};
    }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        u32 third[2];
        image.read(at + 8 * (group & 3), third);
        two_bits(image, at + 32, group, q);
        q[0] |= ((third[0] >> (group >> 2)) & 0x01010101) << 2;
        q[1] |= ((third[1] >> (group >> 2)) & 0x01010101) << 2;
    }
};

// f16 d; f16 dmin; 12 bytes of 6-bit scales and minimums; 128 bytes of 4-bit codes.
struct Q4_K {
    static constexpr u32 BYTES = 144, LEN = 256, SHARE = 32, BIAS = 0;
    static constexpr bool SCALES_AHEAD = true;
    // Of the 12 bytes, 0 to 3 hold the first four scales, 4 to 7 the first four minimums, 8 to 11 the lower 4 bits of
    // the others, the scale's below; their upper 2 bits lie on top of the first 8 bytes.
    static BOTH Scale scale(const Image &image, u32 at, u32 share) {
        u32 header[4];
        image.read(at, header);
        const u32 shift = 8 * (share & 3);
        const u32 first = header[1] >> shift, second = header[2] >> shift, third = header[3] >> shift;
        const bool early = share < 4;
        const u32 factor = early ? first & 63 : (third & 15) | ((first >> 2) & 48);
        const u32 minimum = early ? second & 63 : ((third >> 4) & 15) | ((second >> 2) & 48);
        return {float_of_half(header[0]) * float_of_small(factor),
                -(float_of_half(header[0] >> 16) * float_of_small(minimum))};
    }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        const u32 upper = (group >> 2) & 1;
        image.read(at + 16 + 32 * (group >> 3) + 8 * (group & 3), q);
        q[0] = nibbles(q[0], upper);
        q[1] = nibbles(q[1], upper);
    }
};

// As Q4_K, with 32 bytes of fifth bits before the codes.
struct Q5_K {
    static constexpr u32 BYTES = 176, LEN = 256, SHARE = 32, BIAS = 0;
    static constexpr bool SCALES_AHEAD = true;
    static BOTH Scale scale(const Image &image, u32 at, u32 share) { return Q4_K::scale(image, at, share); }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        u32 fifth[2];
        image.read(at + 16 + 8 * (group & 3), fifth);
        Q4_K::codes(image, at + 32, group, q);
        q[0] |= ((fifth[0] >> (group >> 2)) & 0x01010101) << 4;
        q[1] |= ((fifth[1] >> (group >> 2)) & 0x01010101) << 4;
    }
};

// 128 bytes of lower halves, of each 128 numbers the first 64 below; 64 bytes of upper 2 bits; 16 signed bytes of
// scales; f16 d.
struct Q6_K {
    static constexpr u32 BYTES = 210, LEN = 256, SHARE = 16, BIAS = 32;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Image &image, u32 at, u32 share) {
        const float factor = float_of_small(image.byte(at + 192 + share) ^ 128) - 128.0f;
        return {float_of_half(image.half(at + 208)) * factor, -0.0f};
    }
    static BOTH void codes(const Image &image, u32 at, u32 group, u32 (&q)[2]) {
        u32 low[2];
        const u32 upper = (group >> 3) & 1;
        image.read(at + 64 * (group >> 4) + 8 * (group & 7), low);
        two_bits(image, at + 128, group, q);
        q[0] = nibbles(low[0], upper) | (q[0] << 4);
        q[1] = nibbles(low[1], upper) | (q[1] << 4);
    }
};

// --- Floats: no scale. ---

struct F32 {
    static constexpr u32 BYTES = 4;
    static BOTH void numbers(const Image &image, u32 at, float (&x)[8]) {
        u32 words[8];
        image.read(at, words);
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = float_of_bits(words[i]);
    }
};

struct F64 {
    static constexpr u32 BYTES = 8;
    static BOTH void numbers(const Image &image, u32 at, float (&x)[8]) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 words[2];
            image.read(at + 8 * i, words);
            x[i] = float_of_double(words[0], words[1]);
        }
    }
};

struct F16 {
    static constexpr u32 BYTES = 2;
    static BOTH void numbers(const Image &image, u32 at, float (&x)[8]) {
        u32 words[4];
        image.read(at, words);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[2 * i] = float_of_half(words[i] & 0xffff);
            x[2 * i + 1] = float_of_half(words[i] >> 16);
        }
    }
};

struct BF16 {
    static constexpr u32 BYTES = 2;
    static BOTH void numbers(const Image &image, u32 at, float (&x)[8]) {
        u32 words[4];
        image.read(at, words);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[2 * i] = float_of_bits(words[i] << 16);
            x[2 * i + 1] = float_of_bits(words[i] & 0xffff0000);
        }
    }
};

// OCP E4M3FN. Moved into an f16, sign and all, it is 2^-8 of what it stands for, denormals too; all ones is NaN.
struct F8_E4M3 {
    static constexpr u32 BYTES = 1;
    static BOTH void numbers(const Image &image, u32 at, float (&x)[8]) {
        u32 words[2];
        image.read(at, words);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const u32 code = (words[i / 4] >> (8 * (i % 4))) & 255;
            const float value = float_of_half(((code & 0x80) << 8) | ((code & 0x7f) << 7)) * 256.0f;
            x[i] = (code & 0x7f) == 0x7f ? float_of_bits(0x7fc00000) : value;
        }
    }
};

// OCP E5M2: the upper half of an f16.
struct F8_E5M2 {
    static constexpr u32 BYTES = 1;
    static BOTH void numbers(const Image &image, u32 at, float (&x)[8]) {
        u32 words[2];
        image.read(at, words);
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = float_of_half(((words[i / 4] >> (8 * (i % 4))) & 255) << 8);
    }
};
