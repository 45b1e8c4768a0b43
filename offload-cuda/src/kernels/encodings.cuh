// The encodings: how a quant block lies in memory and what its numbers are. Layouts are those of ggml-common.h; what
// each means is spelled out once more, and simpler, in offload-core/src/decode, with which this must agree bit for bit.
//
// Two kinds. A `Quantized` encoding gives 8 consecutive numbers as 8 bytes, `codes`, and what they share as a `Scale`:
// number = (code - BIAS) * scale.factor + scale.offset. Every product is exact in f32, so that only the addition
// rounds and a fused multiply-add gives what a multiplication and an addition give. A `Float` encoding gives 8
// numbers, `numbers`.

#pragma once

#include "codebooks.cuh"
#include "primitives.cuh"

struct Scale {
    float factor;
    float offset;
};

// Encoded bytes in shared memory, from any byte on. Offsets that are known when this is compiled are part of the load
// instruction, so that a quant block's fields cost one address and one shift altogether.
struct Bytes {
    const u8 *image;  // aligned to 16
    u32 begin;

    BOTH u32 byte(u32 at) const { return (image + begin)[at]; }

    // Two bytes.
    BOTH u32 half(u32 at) const { return byte(at) | (byte(at + 1) << 8); }

    // `COUNT` words, from a multiple of 4 on. Reads up to 4 bytes more, which do not matter.
    template <u32 COUNT>
    BOTH void read(u32 at, u32 (&values)[COUNT]) const {
        const u32 *from = (const u32 *)(image + (begin & ~3u) + at);
        u32 low = from[0];
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            const u32 high = from[i + 1];
            values[i] = funnel(low, high, 8 * begin);
            low = high;
        }
    }

    // As `read`, for whole granules. Where they are aligned they are read in one piece: neighbours that read a word
    // each, 16 or 32 bytes apart, would ask the same few banks.
    template <u32 COUNT>
    BOTH void read_granules(u32 at, u32 (&values)[COUNT]) const {
        static_assert(COUNT % 4 == 0, "a granule has four words");
        if (begin % 16 != 0) return read(at, values);
#pragma unroll
        for (u32 i = 0; i < COUNT; i += 4) {
            load_16(image + begin + at + 4 * i, values[i], values[i + 1], values[i + 2], values[i + 3]);
        }
    }

    BOTH u32 word(u32 at) const {
        u32 value[1];
        read(at, value);
        return value[0];
    }

    // The bytes from `at` on, which need not be a multiple of 4.
    BOTH Bytes from(u32 at) const { return {image, begin + at}; }
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
    static BOTH Scale scale(const Bytes &block, u32) { return {float_of_half(block.half(0)), -0.0f}; }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) { codes_at<2>(block, group, q); }
    template <u32 AT>
    static BOTH void codes_at(const Bytes &block, u32 group, u32 (&q)[2]) {
        block.from(AT).read(8 * (group & 1), q);
        q[0] = nibbles(q[0], group >> 1);
        q[1] = nibbles(q[1], group >> 1);
    }
};

// f16 d; f16 minimum; 16 bytes.
struct Q4_1 {
    static constexpr u32 BYTES = 20, LEN = 32, SHARE = 32, BIAS = 0;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32) {
        const u32 pair = block.word(0);
        return {float_of_half(pair), float_of_half(pair >> 16)};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        Q4_0::codes_at<4>(block, group, q);
    }
};

// f16 d; the fifth bits, number i's at bit i; 16 bytes.
struct Q5_0 {
    static constexpr u32 BYTES = 22, LEN = 32, SHARE = 32, BIAS = 16;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32) { return {float_of_half(block.half(0)), -0.0f}; }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) { codes_at<2>(block, group, q); }
    template <u32 AT>
    static BOTH void codes_at(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 fifth = block.byte(AT + group);
        Q4_0::codes_at<AT + 4>(block, group, q);
        q[0] |= spread<4>(fifth);
        q[1] |= spread<4>(fifth >> 4);
    }
};

// f16 d; f16 minimum; the fifth bits; 16 bytes.
struct Q5_1 {
    static constexpr u32 BYTES = 24, LEN = 32, SHARE = 32, BIAS = 0;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) { return Q4_1::scale(block, share); }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        Q5_0::codes_at<4>(block, group, q);
    }
};

// f16 d; 32 signed bytes.
struct Q8_0 {
    static constexpr u32 BYTES = 34, LEN = 32, SHARE = 32, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32) { return {float_of_half(block.half(0)), -0.0f}; }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        block.from(2).read(8 * group, q);
        q[0] ^= 0x80808080;
        q[1] ^= 0x80808080;
    }
};

// --- K-quants: 256 numbers share an f16, each 16 or 32 a small integer on top. ---

// Two bits of each of 8 numbers: 32 bytes hold 128 numbers, number i in byte i % 32.
BOTH void two_bits(const Bytes &block, u32 at, u32 group, u32 (&q)[2]) {
    const u32 shift = 2 * ((group >> 2) & 3);
    block.read(at + 32 * (group >> 4) + 8 * (group & 3), q);
    q[0] = (q[0] >> shift) & 0x03030303;
    q[1] = (q[1] >> shift) & 0x03030303;
}

// 16 bytes of a 4-bit scale below and a 4-bit minimum above; 64 bytes of 2-bit codes; f16 d; f16 dmin.
struct Q2_K {
    static constexpr u32 BYTES = 84, LEN = 256, SHARE = 16, BIAS = 0;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        const u32 pair = block.word(80), both = block.byte(share);
        return {float_of_half(pair) * float_of_small(both & 15),
                -(float_of_half(pair >> 16) * float_of_small(both >> 4))};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) { two_bits(block, 16, group, q); }
};

// 32 bytes of third bits; 64 bytes of the two below; 12 bytes of 6-bit scales; f16 d.
struct Q3_K {
    static constexpr u32 BYTES = 110, LEN = 256, SHARE = 16, BIAS = 4;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        const u32 low = (block.byte(96 + (share & 7)) >> (4 * (share >> 3))) & 15;
        const u32 high = (block.byte(104 + (share & 3)) >> (2 * (share >> 2))) & 3;
        const float factor = float_of_small(low | (high << 4)) - 32.0f;
        return {float_of_half(block.half(108)) * factor, -0.0f};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        u32 third[2];
        block.read(8 * (group & 3), third);
        two_bits(block, 32, group, q);
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
    static BOTH Scale scale(const Bytes &block, u32 share) {
        u32 header[4];
        block.read(0, header);
        const u32 shift = 8 * (share & 3);
        const u32 first = header[1] >> shift, second = header[2] >> shift, third = header[3] >> shift;
        const bool early = share < 4;
        const u32 factor = early ? first & 63 : (third & 15) | ((first >> 2) & 48);
        const u32 minimum = early ? second & 63 : ((third >> 4) & 15) | ((second >> 2) & 48);
        return {float_of_half(header[0]) * float_of_small(factor),
                -(float_of_half(header[0] >> 16) * float_of_small(minimum))};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) { codes_at<16>(block, group, q); }
    template <u32 AT>
    static BOTH void codes_at(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 upper = (group >> 2) & 1;
        block.read(AT + 32 * (group >> 3) + 8 * (group & 3), q);
        q[0] = nibbles(q[0], upper);
        q[1] = nibbles(q[1], upper);
    }
};

// As Q4_K, with 32 bytes of fifth bits before the codes.
struct Q5_K {
    static constexpr u32 BYTES = 176, LEN = 256, SHARE = 32, BIAS = 0;
    static constexpr bool SCALES_AHEAD = true;
    static BOTH Scale scale(const Bytes &block, u32 share) { return Q4_K::scale(block, share); }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        u32 fifth[2];
        block.read(16 + 8 * (group & 3), fifth);
        Q4_K::codes_at<48>(block, group, q);
        q[0] |= ((fifth[0] >> (group >> 2)) & 0x01010101) << 4;
        q[1] |= ((fifth[1] >> (group >> 2)) & 0x01010101) << 4;
    }
};

// 128 bytes of lower halves, of each 128 numbers the first 64 below; 64 bytes of upper 2 bits; 16 signed bytes of
// scales; f16 d.
struct Q6_K {
    static constexpr u32 BYTES = 210, LEN = 256, SHARE = 16, BIAS = 32;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        const float factor = float_of_small(block.byte(192 + share) ^ 128) - 128.0f;
        return {float_of_half(block.half(208)) * factor, -0.0f};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        u32 low[2];
        const u32 upper = (group >> 3) & 1;
        block.read(64 * (group >> 4) + 8 * (group & 7), low);
        two_bits(block, 128, group, q);
        q[0] = nibbles(low[0], upper) | (q[0] << 4);
        q[1] = nibbles(low[1], upper) | (q[1] << 4);
    }
};

// --- 4-bit codes that stand for entries of a table. ---

// Entries of IQ4_NL and IQ4_XS, plus 128.
BOTH void look_up_iq4(u32 (&q)[2]) {
    for (u32 &codes : q) codes = look_up(codes, 0x3f2d1801, 0x766a5d4f, 0xa6998d81, 0xf1d9c5b5);
}

// Entries of MXFP4 and NVFP4, twice the number, plus 12. Both zeros are plus zero.
BOTH void look_up_fp4(u32 (&q)[2]) {
    for (u32 &codes : q) codes = look_up(codes, 0x0f0e0d0c, 0x18141210, 0x090a0b0c, 0x00040608);
}

// As Q4_0, with a table.
struct IQ4_NL {
    static constexpr u32 BYTES = 18, LEN = 32, SHARE = 32, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) { return Q4_0::scale(block, share); }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        Q4_0::codes(block, group, q);
        look_up_iq4(q);
    }
};

// f16 d; upper 2 bits of 8 scales; lower 4 bits of them; 128 bytes, of each 16 the numbers as in IQ4_NL.
struct IQ4_XS {
    static constexpr u32 BYTES = 136, LEN = 256, SHARE = 32, BIAS = 128;
    static constexpr bool SCALES_AHEAD = true;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        const u32 low = (block.byte(4 + (share >> 1)) >> (4 * (share & 1))) & 15;
        const u32 high = (block.byte(2 + (share >> 2)) >> (2 * (share & 3))) & 3;
        return {float_of_half(block.half(0)) * (float_of_small(low | (high << 4)) - 32.0f), -0.0f};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 upper = (group >> 1) & 1;
        block.read(8 + 16 * (group >> 2) + 8 * (group & 1), q);
        q[0] = nibbles(q[0], upper);
        q[1] = nibbles(q[1], upper);
        look_up_iq4(q);
    }
};

// Exponent of the scale (E8M0, where 255 is no NaN); 16 bytes as in Q4_0.
struct MXFP4 {
    static constexpr u32 BYTES = 17, LEN = 32, SHARE = 32, BIAS = 12;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32) {
        // Half of it, for doubled numbers. The two smallest are denormal.
        const u32 exponent = block.byte(0);
        return {float_of_bits(exponent < 2 ? 0x00200000 << exponent : (exponent - 1) << 23), -0.0f};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        Q4_0::codes_at<1>(block, group, q);
        look_up_fp4(q);
    }
};

// Four scales (E4M3 without sign, 127 is zero) of 16 numbers each; 32 bytes, of each 8 the first 8 numbers below.
struct NVFP4 {
    static constexpr u32 BYTES = 36, LEN = 64, SHARE = 16, BIAS = 12;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        // As in F8_E4M3, and halved.
        const u32 code = block.byte(share);
        return {code == 0x7f ? 0.0f : float_of_half((code & 0x7f) << 7) * 128.0f, -0.0f};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        block.read(4 + 8 * (group >> 1), q);
        q[0] = nibbles(q[0], group & 1);
        q[1] = nibbles(q[1], group & 1);
        look_up_fp4(q);
    }
};

// --- 1 and 2 bits. ---

// Bits 2i and 2i + 1 of the lower 8 bits, as byte i.
BOTH u32 spread_pairs(u32 bits) {
    return (bits & 3) | ((bits & 12) << 6) | ((bits & 48) << 12) | ((bits & 192) << 18);
}

// f16 d; 128 signs, 1 is plus.
struct Q1_0 {
    static constexpr u32 BYTES = 18, LEN = 128, SHARE = 128, BIAS = 1;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32) { return {float_of_half(block.half(0)), -0.0f}; }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 signs = block.byte(2 + group);
        q[0] = spread<1>(signs);
        q[1] = spread<1>(signs >> 4);
    }
};

// f16 d; 16 bytes of four numbers each.
struct Q2_0 {
    static constexpr u32 BYTES = 18, LEN = 64, SHARE = 64, BIAS = 1;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32) { return {float_of_half(block.half(0)), -0.0f}; }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        q[0] = spread_pairs(block.byte(2 + 2 * group));
        q[1] = spread_pairs(block.byte(3 + 2 * group));
    }
};

// Base 3, five digits to a byte, the first the most significant, as a fraction of 256: multiplied by 3, the digit is
// what overflows. 32 bytes hold 160 numbers, 16 hold 80, and 4 hold the last 16, four digits each; f16 d.
struct TQ1_0 {
    static constexpr u32 BYTES = 54, LEN = 256, SHARE = 256, BIAS = 1;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32) { return {float_of_half(block.half(52)), -0.0f}; }
    static BOTH u32 digits(u32 word, u32 digit) {
        const u32 power = choose(0x1b090301, 0x51, 0x5550 | digit);
        const u32 even = ((word & 0x00ff00ff) * power) & 0x00ff00ff;
        const u32 odd = (((word >> 8) & 0x00ff00ff) * power) & 0x00ff00ff;
        return ((even * 3 >> 8) & 0x00030003) | ((odd * 3) & 0x03000300);
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        u32 from = 8 * (group & 3), first = group >> 2, second = first;
        if (group >= 30) {
            from = 48;
            first = 2 * (group - 30);
            second = first + 1;
        } else if (group >= 20) {
            from = 32 + 8 * (group & 1);
            first = second = (group - 20) >> 1;
        }
        block.read(from, q);
        q[1] = digits(group >= 30 ? q[0] : q[1], second);
        q[0] = digits(q[0], first);
    }
};

// 64 bytes of 2-bit codes; f16 d.
struct TQ2_0 {
    static constexpr u32 BYTES = 66, LEN = 256, SHARE = 256, BIAS = 1;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32) { return {float_of_half(block.half(64)), -0.0f}; }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) { two_bits(block, 0, group, q); }
};

// --- Codes that stand for rows of 4 or 8 numbers. ---

// Four numbers of a row that has 2 bits for each, the lowest 8 of which are used; `table` has a byte for each of 0..3.
BOTH u32 row_of_pairs(u32 row, u32 table) {
    return choose(table, 0, (row & 3) | ((row & 12) << 2) | ((row & 48) << 4) | ((row & 192) << 6));
}

// Negates the four numbers whose bits are set, and adds 128. None is zero, so that no byte carries into the next.
BOTH u32 with_signs(u32 numbers, u32 signs) {
    const u32 ones = spread<0>(signs);
    return ((numbers ^ (ones * 255)) + ones) ^ 0x80808080;
}

// The 8 signs that 7 bits stand for: an even number of them is minus.
BOTH u32 even_signs(u32 code) { return code | ((population(code) & 1) << 7); }

// A row of 8 of the IQ2 codebooks.
BOTH void iq2_row(u32 row, u32 signs, u32 (&q)[2]) {
    constexpr u32 TABLE = 8 | (25 << 8) | (43 << 16);
    q[0] = with_signs(row_of_pairs(row, TABLE), signs);
    q[1] = with_signs(row_of_pairs(row >> 8, TABLE), signs >> 4);
}

// A 4-bit scale of the IQ2 formats.
BOTH Scale iq2_scale(u32 d, u32 scale) {
    return {float_of_half(d) * (0.5f + float_of_small(scale)) * 0.25f, -0.0f};
}

// f16 d; for each 32 numbers 4 codes and a word of four 7-bit sign codes and, on top, the scale.
struct IQ2_XXS {
    static constexpr u32 BYTES = 66, LEN = 256, SHARE = 32, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        return iq2_scale(block.half(0), block.byte(9 + 8 * share) >> 4);
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 in_share = group & 3, share = 8 * (group >> 2);
        const u32 signs = (block.from(6).word(share) >> (7 * in_share)) & 127;
        iq2_row(CODEBOOK_ROW(IQ2_XXS, block.byte(2 + share + in_share)), even_signs(signs), q);
    }
};

// f16 d; 32 words of a 9-bit code and a sign code; 4-bit scales.
struct IQ2_XS {
    static constexpr u32 BYTES = 74, LEN = 256, SHARE = 16, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        return iq2_scale(block.half(0), (block.byte(66 + (share >> 1)) >> (4 * (share & 1))) & 15);
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 code = block.half(2 + 2 * group);
        iq2_row(CODEBOOK_ROW(IQ2_XS, code & 511), even_signs(code >> 9), q);
    }
};

// f16 d; lower 8 bits of 32 codes; signs; upper 2 bits; 4-bit scales.
struct IQ2_S {
    static constexpr u32 BYTES = 82, LEN = 256, SHARE = 16, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        return iq2_scale(block.half(0), (block.byte(74 + (share >> 1)) >> (4 * (share & 1))) & 15);
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 high = (block.byte(66 + (group >> 2)) >> (2 * (group & 3))) & 3;
        iq2_row(CODEBOOK_ROW(IQ2_S, block.byte(2 + group) | (high << 8)), block.byte(34 + group), q);
    }
};

// f16 d; 64 codes of 4 numbers; words of sign codes and scale as in IQ2_XXS.
struct IQ3_XXS {
    static constexpr u32 BYTES = 98, LEN = 256, SHARE = 32, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        const float factor = 0.5f + float_of_small(block.byte(69 + 4 * share) >> 4);
        return {float_of_half(block.half(0)) * factor * 0.5f, -0.0f};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 word = block.from(66).word(4 * (group >> 2));
        const u32 signs = even_signs((word >> (7 * (group & 3))) & 127);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 row = CODEBOOK_ROW(IQ3_XXS, block.byte(2 + 2 * group + i));
            q[i] = with_signs(choose(0x1c140c04, 0x3e342c24, row), signs >> (4 * i));
        }
    }
};

// f16 d; lower 8 bits of 64 codes of 4 numbers; their ninth bits; signs; 4-bit scales.
struct IQ3_S {
    static constexpr u32 BYTES = 110, LEN = 256, SHARE = 32, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        const u32 scale = (block.byte(106 + (share >> 1)) >> (4 * (share & 1))) & 15;
        return {float_of_half(block.half(0)) * float_of_small(1 + 2 * scale), -0.0f};
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 ninth = block.byte(66 + (group >> 2)) >> (2 * (group & 3));
        const u32 signs = block.byte(74 + group);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 row = CODEBOOK_ROW(IQ3_S, block.byte(2 + 2 * group + i) | (((ninth >> i) & 1) << 8));
            q[i] = with_signs(choose(0x07050301, 0x0f0d0b09, row), signs >> (4 * i));
        }
    }
};

// A row of 8 of the IQ1 codebook, whose numbers are -1, 0 and 1, plus or minus an eighth: in eighths, plus 128.
BOTH void iq1_row(u32 row, bool negative, u32 (&q)[2]) {
    const u32 table = negative ? 0x7f877f77 : 0x81898179;
    q[0] = row_of_pairs(row, table);
    q[1] = row_of_pairs(row >> 8, table);
}

// A 3-bit scale of the IQ1 formats, for eighths.
BOTH Scale iq1_scale(u32 d, u32 scale) {
    return {float_of_half(d) * float_of_small(1 + 2 * (scale & 7)) * 0.125f, -0.0f};
}

// f16 d; lower 8 bits of 32 codes; for each 32 numbers a word of four upper 3 bits, the scale and the eighth's sign.
struct IQ1_S {
    static constexpr u32 BYTES = 50, LEN = 256, SHARE = 32, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        return iq1_scale(block.half(0), block.byte(35 + 2 * share) >> 4);
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 word = block.half(34 + 2 * (group >> 2)), high = (word >> (3 * (group & 3))) & 7;
        iq1_row(CODEBOOK_ROW(IQ1_S, block.byte(2 + group) | (high << 8)), (word & 0x8000) != 0, q);
    }
};

// Lower 8 bits of 32 codes; their upper 3 bits and the eighth's sign; four words of four 3-bit scales each, whose upper
// 4 bits make an f16, the lowest first.
struct IQ1_M {
    static constexpr u32 BYTES = 56, LEN = 256, SHARE = 16, BIAS = 128;
    static constexpr bool SCALES_AHEAD = false;
    static BOTH Scale scale(const Bytes &block, u32 share) {
        u32 words[2];
        block.read(48, words);
        const u32 d = ((words[0] >> 12) & 0xf) | ((words[0] >> 24) & 0xf0) | ((words[1] >> 4) & 0xf00) |
                      ((words[1] >> 16) & 0xf000);
        const u32 pair = share < 8 ? words[0] : words[1];
        return iq1_scale(d, pair >> (16 * ((share >> 2) & 1) + 3 * (share & 3)));
    }
    static BOTH void codes(const Bytes &block, u32 group, u32 (&q)[2]) {
        const u32 high = block.byte(32 + (group >> 1)) >> (4 * (group & 1));
        iq1_row(CODEBOOK_ROW(IQ1_S, block.byte(group) | ((high & 7) << 8)), (high & 8) != 0, q);
    }
};

// --- Floats: no scale. ---

struct F32 {
    static constexpr u32 BYTES = 4;
    static BOTH void numbers(const Bytes &bytes, float (&x)[8]) {
        u32 words[8];
        bytes.read_granules(0, words);
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = float_of_bits(words[i]);
    }
};

struct F64 {
    static constexpr u32 BYTES = 8;
    static BOTH void numbers(const Bytes &bytes, float (&x)[8]) {
        u32 words[16];
        bytes.read_granules(0, words);
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = float_of_double(words[2 * i], words[2 * i + 1]);
    }
};

struct F16 {
    static constexpr u32 BYTES = 2;
    static BOTH void numbers(const Bytes &bytes, float (&x)[8]) {
        u32 words[4];
        bytes.read_granules(0, words);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[2 * i] = float_of_half(words[i] & 0xffff);
            x[2 * i + 1] = float_of_half(words[i] >> 16);
        }
    }
};

struct BF16 {
    static constexpr u32 BYTES = 2;
    static BOTH void numbers(const Bytes &bytes, float (&x)[8]) {
        u32 words[4];
        bytes.read_granules(0, words);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[2 * i] = float_of_bits(words[i] << 16);
            x[2 * i + 1] = float_of_bits(words[i] & 0xffff0000);
        }
    }
};

// Four bytes as the upper halves of four f16, in order.
BOTH void upper_halves(u32 bytes, u32 (&pairs)[2]) {
    pairs[0] = choose(bytes, 0, 0x1404);
    pairs[1] = choose(bytes, 0, 0x3424);
}

// OCP E4M3FN. Moved into an f16, where the exponent begins a bit lower, it is 2^-8 of what it stands for, denormals
// too. All ones is NaN: one more bit above makes it one of f16.
struct F8_E4M3 {
    static constexpr u32 BYTES = 1;
    static BOTH void numbers(const Bytes &bytes, float (&x)[8]) {
        u32 words[2];
        bytes.read(0, words);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 magnitudes = words[i] & 0x7f7f7f7f;
            u32 signs[2], pairs[2];
            upper_halves(words[i], signs);
            upper_halves(magnitudes | ((magnitudes + 0x01010101) & 0x80808080), pairs);
#pragma unroll
            for (u32 k = 0; k < 2; k++) {
                const u32 pair = (pairs[k] >> 1) | (signs[k] & 0x80008000);
                x[4 * i + 2 * k] = float_of_half(pair & 0xffff) * 256.0f;
                x[4 * i + 2 * k + 1] = float_of_half(pair >> 16) * 256.0f;
            }
        }
    }
};

// OCP E5M2: the upper half of an f16.
struct F8_E5M2 {
    static constexpr u32 BYTES = 1;
    static BOTH void numbers(const Bytes &bytes, float (&x)[8]) {
        u32 words[2];
        bytes.read(0, words);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 pairs[2];
            upper_halves(words[i], pairs);
#pragma unroll
            for (u32 k = 0; k < 2; k++) {
                x[4 * i + 2 * k] = float_of_half(pairs[k] & 0xffff);
                x[4 * i + 2 * k + 1] = float_of_half(pairs[k] >> 16);
            }
        }
    }
};

// Signed integers, numbers only with a scale.
struct I8 {
    static constexpr u32 BYTES = 1;
    static BOTH void numbers(const Bytes &bytes, float (&x)[8]) {
        u32 words[2];
        bytes.read(0, words);
#pragma unroll
        for (u32 k = 0; k < 8; k++) {
            const u32 lifted = choose(words[k / 4] ^ 0x80808080, TWO_TO_23, 0x7440 | (k % 4));
            x[k] = float_of_bits(lifted) - (8388608.0f + 128.0f);
        }
    }
};
