//! Decoding against golden vectors: what ggml makes of the same bytes.
//!
//! `data/quant/<TYPE>.enc.q` is the output of ggml's encoders at four magnitudes, `.rnd.q` is random bytes, NaN and
//! infinite scales among them; `.f32` beside each is what ggml decodes it to.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use half::{bf16, f16};
use offload_core::decode::{DecodeError, Float, decode, decode_by_definition, is_supported};
use offload_core::encoding::Encoding;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/quant")
}

/// Golden vectors: a name, the encoding, encoded bytes and the f32 numbers that ggml decodes them to.
fn golden() -> Vec<(String, Encoding, Vec<u8>, Vec<f32>)> {
    let mut vectors = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "q") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let encoding = Encoding::from_name(name.split('.').next().unwrap()).unwrap();
        let numbers = fs::read(path.with_extension("f32")).unwrap();
        let numbers = numbers
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        vectors.push((name, encoding, fs::read(path).unwrap(), numbers));
    }
    vectors.sort_by(|a, b| a.0.cmp(&b.0));
    vectors
}

fn decoded(encoding: Encoding, encoded: &[u8], target: Float) -> Vec<u8> {
    let numbers = encoded.len() as u64 / encoding.quant_block_bytes() * encoding.quant_block_len();
    let mut arrived = vec![0xaa; usize::try_from(numbers * target.bytes()).unwrap()];
    decode(encoding, encoded, target, &mut arrived).unwrap();
    arrived
}

fn decoded_by_definition(encoding: Encoding, encoded: &[u8], target: Float) -> Vec<u8> {
    let mut arrived = vec![0xaa; decoded(encoding, encoded, target).len()];
    decode_by_definition(encoding, encoded, target, &mut arrived).unwrap();
    arrived
}

fn to_f32s(arrived: &[u8]) -> Vec<f32> {
    arrived
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// Compares bits, NaN as a class.
fn assert_same(name: &str, got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len(), "{name}");
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!(
            got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan()),
            "{name}: number {i} is {got:e}, ggml has {wanted:e}"
        );
    }
}

#[test]
fn every_golden_vector_decodes_bit_for_bit() {
    for (name, encoding, encoded, wanted) in golden() {
        for decoded in [decoded, decoded_by_definition] {
            let got = to_f32s(&decoded(encoding, &encoded, Float::F32));
            assert_same(&name, &got, &wanted);
        }
    }
}

/// Every code of the small element types, every f16 and bf16, and every way in which an f32 can round to 16 bits: its
/// lower 16 bits decide, with every upper half.
#[test]
fn every_element_equals_the_definition_in_every_target() {
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let lower = [
        0, 1, 0x0fff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff,
    ];
    let floats: Vec<u8> = (0..=u16::MAX)
        .flat_map(|upper| lower.map(|lower| (u32::from(upper) << 16) | lower))
        .flat_map(u32::to_le_bytes)
        .collect();
    let elements = [
        (Encoding::F8E4M3, &bytes),
        (Encoding::F8E5M2, &bytes),
        (Encoding::F16, &halves),
        (Encoding::BF16, &halves),
        (Encoding::F32, &floats),
    ];
    for (encoding, encoded) in elements {
        let got = decoded(encoding, encoded, Float::F32);
        let wanted = decoded_by_definition(encoding, encoded, Float::F32);
        assert_same(encoding.name(), &to_f32s(&got), &to_f32s(&wanted));
        for target in [Float::F16, Float::BF16] {
            let got = decoded(encoding, encoded, target);
            let wanted = decoded_by_definition(encoding, encoded, target);
            let infinity = if target == Float::F16 { 0x7c00 } else { 0x7f80 };
            let numbers = got.as_chunks::<2>().0.iter().zip(wanted.as_chunks::<2>().0);
            for (i, (&got, &wanted)) in numbers.enumerate() {
                let [got, wanted] = [got, wanted].map(u16::from_le_bytes);
                let both_nan = got & 0x7fff > infinity && wanted & 0x7fff > infinity;
                assert!(
                    got == wanted || both_nan,
                    "{encoding} to {target}: number {i} is {got:#06x}, not {wanted:#06x}"
                );
            }
        }
    }
}

#[test]
fn narrower_targets_are_the_f32_numbers_rounded_once() {
    for (name, encoding, encoded, wanted) in golden() {
        let f16s = decoded(encoding, &encoded, Float::F16);
        let bf16s = decoded(encoding, &encoded, Float::BF16);
        for (i, wanted) in wanted.iter().enumerate() {
            let at = 2 * i..2 * i + 2;
            let got = f16::from_le_bytes(f16s[at.clone()].try_into().unwrap());
            let rounded = f16::from_f32(*wanted);
            assert!(
                got.to_bits() == rounded.to_bits() || (got.is_nan() && rounded.is_nan()),
                "{name}: number {i} as f16 is {got}, not {rounded}"
            );
            let got = bf16::from_le_bytes(bf16s[at].try_into().unwrap());
            let rounded = bf16::from_f32(*wanted);
            assert!(
                got.to_bits() == rounded.to_bits() || (got.is_nan() && rounded.is_nan()),
                "{name}: number {i} as bf16 is {got}, not {rounded}"
            );
        }
    }
}

#[test]
fn every_golden_file_is_used_and_every_quant_format_has_one() {
    let used: BTreeSet<String> = golden()
        .iter()
        .flat_map(|(name, ..)| [format!("{name}.q"), format!("{name}.f32")])
        .chain(["all_types.gguf".to_owned()])
        .collect();
    let there: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(used, there);
    let covered: BTreeSet<Encoding> = golden().into_iter().map(|v| v.1).collect();
    for &encoding in Encoding::ALL {
        if encoding.quant_block_len() > 1 {
            assert!(covered.contains(&encoding), "{encoding} has no vectors");
        }
    }
}

#[test]
fn input_and_output_may_lie_at_any_address() {
    for (name, encoding, encoded, wanted) in golden() {
        for shift in 1..4 {
            let mut input = vec![0; shift];
            input.extend_from_slice(&encoded);
            let mut output = vec![0; shift + 4 * wanted.len()];
            decode(encoding, &input[shift..], Float::F32, &mut output[shift..]).unwrap();
            assert_same(&name, &to_f32s(&output[shift..]), &wanted);
        }
    }
}

#[test]
fn quant_blocks_decode_alone_as_they_do_together() {
    for (name, encoding, encoded, wanted) in golden() {
        let block = usize::try_from(encoding.quant_block_bytes()).unwrap();
        let alone: Vec<f32> = encoded
            .chunks_exact(block)
            .flat_map(|block| to_f32s(&decoded(encoding, block, Float::F32)))
            .collect();
        assert_same(&name, &alone, &wanted);
    }
}

#[test]
fn no_bytes_decode_to_no_numbers() {
    for &encoding in Encoding::ALL {
        for target in [Float::F32, Float::F16, Float::BF16] {
            let result = decode(encoding, &[], target, &mut []);
            assert_eq!(result.is_ok(), is_supported(encoding), "{encoding}");
        }
    }
}

#[test]
fn what_holds_no_weights_is_refused_and_all_else_is_supported() {
    use Encoding::{Bool, C64, F8E4M3Fnuz, F8E5M2Fnuz, F8E8M0};
    use Encoding::{I8, I16, I32, I64, U8, U16, U32, U64};
    for &encoding in Encoding::ALL {
        let integer = matches!(encoding, Bool | I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64);
        let refused = integer || matches!(encoding, C64 | F8E8M0 | F8E4M3Fnuz | F8E5M2Fnuz);
        assert_eq!(is_supported(encoding), !refused, "{encoding}");
        if refused {
            let error = decode(encoding, &[0; 8], Float::F32, &mut []).unwrap_err();
            assert_eq!(error, DecodeError::Unsupported { encoding });
        }
    }
}

#[test]
fn f32_passes_through_with_its_bits() {
    let encoded: Vec<u8> = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 8.0, f32::INFINITY]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .chain(0x7fa0_1234_u32.to_le_bytes())
        .collect();
    assert_eq!(decoded(Encoding::F32, &encoded, Float::F32), encoded);
}

#[test]
fn rounding_is_to_nearest_even() {
    // Halfway between two neighbours, once with an even and once with an odd one below.
    let cases = [
        (1.0 + 1.0 / 2048.0, 1.0, 1.0),
        (1.0 + 3.0 / 2048.0, 1.0 + 2.0 / 1024.0, 1.0),
        (1.0 + 1.0 / 256.0, 1.0 + 1.0 / 256.0, 1.0),
        (1.0 + 3.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 2.0 / 128.0),
    ];
    for (number, as_f16, as_bf16) in cases {
        let encoded = f32::to_le_bytes(number);
        assert_eq!(
            decoded(Encoding::F32, &encoded, Float::F16),
            f16::from_f32(as_f16).to_le_bytes()
        );
        assert_eq!(
            decoded(Encoding::F32, &encoded, Float::BF16),
            bf16::from_f32(as_bf16).to_le_bytes()
        );
    }
}

#[test]
fn f64_is_rounded_to_f32() {
    for number in [0.1, -1e300, 1e-46, 16_777_217.0, f64::NEG_INFINITY, -0.0] {
        #[expect(clippy::cast_possible_truncation, reason = "the definition")]
        let wanted = number as f32;
        assert_eq!(
            decoded(Encoding::F64, &number.to_le_bytes(), Float::F32),
            wanted.to_le_bytes()
        );
    }
}

#[test]
fn all_256_e4m3_numbers_follow_the_ocp_definition() {
    for byte in 0..=255u8 {
        let got = to_f32s(&decoded(Encoding::F8E4M3, &[byte], Float::F32))[0];
        if byte & 0x7f == 0x7f {
            assert!(got.is_nan(), "{byte:#04x} is {got}");
            continue;
        }
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
        };
        let wanted = magnitude * if byte < 128 { 1.0 } else { -1.0 };
        assert_eq!(got.to_bits(), wanted.to_bits(), "{byte:#04x}");
    }
    assert_eq!(
        to_f32s(&decoded(Encoding::F8E4M3, &[0x7e], Float::F32)),
        [448.0]
    );
}

#[test]
fn all_256_e5m2_numbers_follow_the_ocp_definition() {
    for byte in 0..=255u8 {
        let got = to_f32s(&decoded(Encoding::F8E5M2, &[byte], Float::F32))[0];
        let (exponent, mantissa) = (i32::from(byte >> 2 & 31), f32::from(byte & 3));
        let magnitude = match (exponent, byte & 3) {
            (31, 0) => f32::INFINITY,
            (31, _) => f32::NAN,
            (0, _) => mantissa / 4.0 * 2f32.powi(-14),
            _ => (1.0 + mantissa / 4.0) * 2f32.powi(exponent - 15),
        };
        let wanted = magnitude * if byte < 128 { 1.0 } else { -1.0 };
        assert!(
            got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan()),
            "{byte:#04x} is {got}, not {wanted}"
        );
    }
}

#[test]
#[should_panic(expected = "contract: 35 bytes are not a whole number of Q8_0 quant blocks of 34")]
fn a_torn_quant_block_breaks_the_contract() {
    let _ = decode(Encoding::Q8_0, &[0; 35], Float::F32, &mut [0; 128]);
}

#[test]
#[should_panic(expected = "contract: 32 numbers as BF16 do not fill 65 bytes")]
fn a_destination_of_another_length_breaks_the_contract() {
    let _ = decode(Encoding::Q8_0, &[0; 34], Float::BF16, &mut [0; 65]);
}
