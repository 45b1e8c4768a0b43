//! Hostile GGUF counts and tensor entries: for every field that a file can lie in, the lies around its limits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod raw_gguf;

use offload_core::format::gguf::{Gguf, GgufError};
use offload_core::source::Source;
use raw_gguf::{
    ARRAY, BOOL, HUGE, I32, Raw, STRING, U8, U32, U64, array, entry, one_tensor, open, orig_shape,
    refusal, string, tensor,
};

const F32: u32 = 0;
const F16: u32 = 1;
const Q8_0: u32 = 8;
const Q4_K: u32 = 12;

#[test]
fn a_file_cut_anywhere_in_its_header_is_refused() {
    let raw = one_tensor()
        .metadata(entry("general.architecture", STRING, string("wan")))
        .metadata(entry("n", U64, 7u64.to_le_bytes()))
        .metadata(entry("flag", BOOL, [1]))
        .metadata(entry(
            "list",
            ARRAY,
            array(STRING, 2, [string("x"), string("yz")].concat()),
        ))
        .metadata(orig_shape("a", &[64]))
        .alignment(64);
    let whole = raw.bytes();
    assert!(open(&whole).is_ok());
    let header_bytes = raw.header().len();
    for len in 0..whole.len() {
        let error = open(&whole[..len]).expect_err("cut off");
        let expected = match &error {
            GgufError::Truncated { file_len, .. } => *file_len == len as u64,
            GgufError::DataTruncated { .. } => len >= header_bytes,
            // Counts and lengths may show before the end that the rest does not suffice.
            GgufError::Malformed { flaw, .. } => {
                flaw.to_string().contains("bytes that follow")
                    || flaw.to_string().contains("bytes follow")
            }
            _ => false,
        };
        assert!(expected, "cut at {len}: {error:?}");
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    for count in HUGE {
        let mut raw = one_tensor();
        raw.tensor_count = Some(count);
        assert!(refusal(&raw).contains("tensors cannot lie"), "{count}");
        let mut raw = one_tensor();
        raw.metadata_count = Some(count);
        assert!(
            refusal(&raw).contains("metadata entries cannot lie"),
            "{count}"
        );
    }
}

#[test]
fn counts_that_would_fit_but_lie_are_refused() {
    // Every count up to what the zeros of the data section could be taken for.
    for count in [0, 2, 3, 8, 12] {
        let mut raw = one_tensor();
        raw.tensor_count = Some(count);
        let result = raw.open();
        if count == 0 {
            assert!(result.unwrap().tensors().is_empty());
        } else {
            assert!(result.is_err(), "{count}");
        }
        let mut raw = one_tensor();
        raw.metadata_count = Some(count);
        assert_eq!(raw.open().is_ok(), count == 0, "{count}");
    }
}

#[test]
fn names_have_1_to_255_bytes_and_are_no_paths() {
    let with = |name: &[u8]| Raw::default().tensor(tensor(name, &[2], F32, 0)).open();
    for good in [
        &[b'n'; 255][..],
        b"a",
        b"blocks.0.self_attn.q.weight",
        b"model/layer_0/kernel:0",
        b"..a",
        b"a..b/...",
        "\u{fc}".as_bytes(),
    ] {
        assert!(with(good).is_ok(), "{:?}", String::from_utf8_lossy(good));
    }
    for bad in [
        &b""[..],
        &[b'n'; 256],
        b"\xff",
        b"a\0b",
        b"\0",
        b"a\0",
        b"a\nb",
        b"..",
        b".",
        b"../a",
        b"a/../b",
        b"a/..",
        b"./a",
        b"/etc/passwd",
        b"..\\a",
        b"a\\b",
        b"\\\\server\\share",
        b"C:/a",
        b"C:a",
    ] {
        assert!(with(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
    }
}

#[test]
fn a_name_stands_once() {
    let raw = Raw::default()
        .tensor(tensor("a", &[2], F32, 0))
        .tensor(tensor("b", &[2], F32, 32))
        .tensor(tensor("a", &[4], F16, 64));
    assert!(refusal(&raw).contains("tensor a stands twice"));
}

#[test]
fn tensors_have_0_to_8_dimensions() {
    for count in 0..=8 {
        let gguf = Raw::default()
            .tensor(tensor("a", &vec![1; count], F32, 0))
            .open()
            .unwrap();
        assert_eq!(gguf.tensors()[0].shape(), vec![1; count]);
        assert_eq!(gguf.tensors()[0].source().len(), 4);
    }
    for count in [9u32, 10, 255, 1_000_000, 1 << 30, 1 << 31, u32::MAX] {
        let lie = [&string("a")[..], &count.to_le_bytes(), &[1; 200]].concat();
        assert!(
            refusal(&Raw::default().tensor(lie)).contains("dimensions, at most 8"),
            "{count}"
        );
    }
}

#[test]
fn dimensions_that_multiply_to_too_much_are_refused() {
    for dims in [
        &[u64::MAX][..],
        &[1 << 63],
        &[1 << 62],
        &[(1 << 40) + 1],
        &[1 << 41],
        &[1 << 32, 1 << 32],
        &[1 << 32, 1 << 32, 1],
        &[(1 << 63) - 1, 2],
        &[1 << 63, 2],
        &[1 << 21, 1 << 21, 1 << 21, 1 << 21],
        &[u64::MAX, u64::MAX],
        &[3, 6_148_914_691_236_517_206],
    ] {
        for type_id in [F32, F16, Q8_0, Q4_K] {
            let raw = Raw::default().tensor(tensor("a", dims, type_id, 0));
            assert!(
                refusal(&raw).contains("more than 1099511627776 elements"),
                "{dims:?}"
            );
        }
    }
    // As many elements as allowed, but not in this file.
    let raw = Raw::default().tensor(tensor("a", &[1 << 20, 1 << 20], F32, 0));
    assert!(matches!(raw.open(), Err(GgufError::DataTruncated { bytes, .. }) if bytes == 1 << 42));
}

#[test]
fn a_zero_dimension_hides_no_overflow() {
    for dims in [
        &[0, u64::MAX, 2][..],
        &[1 << 32, 0, 1 << 32],
        &[1 << 32, 1 << 32, 0],
        &[0, 1 << 41],
        &[0, 0, u64::MAX],
    ] {
        let raw = Raw::default().tensor(tensor("a", dims, F32, 0));
        assert!(
            refusal(&raw).contains("more than 1099511627776 elements"),
            "{dims:?}"
        );
    }
    let raw = Raw::default().tensor(tensor("a", &[0, 4], Q4_K, 0));
    let gguf = raw.open().unwrap();
    assert_eq!(gguf.tensors()[0].shape(), [4, 0]);
    assert!(gguf.tensors()[0].source().is_empty());
}

#[test]
fn rows_are_whole_quant_blocks_whatever_the_total() {
    for (dims, type_id) in [
        (&[31][..], Q8_0),
        (&[33], Q8_0),
        (&[16, 2], Q8_0),
        (&[1, 32], Q8_0),
        (&[128, 2], Q4_K),
        (&[255], Q4_K),
        (&[257], Q4_K),
        (&[384, 2], Q4_K),
        (&[1], Q4_K),
        (&[], Q4_K),
        (&[16, 0], Q8_0),
    ] {
        let raw = Raw::default()
            .tensor(tensor("a", dims, type_id, 0))
            .data_bytes(4096);
        assert!(refusal(&raw).contains("not a whole number of"), "{dims:?}");
    }
}

#[test]
fn types_that_no_file_can_have_are_refused_each_in_its_way() {
    for (ids, wanted) in [
        (&[4, 5, 31, 32, 33, 36, 37, 38][..], "which ggml removed"),
        (&[9, 15], "which never stands in files"),
        (
            &[43, 44, 99, 256, 1 << 31, u32::MAX],
            "which does not exist",
        ),
    ] {
        for &id in ids {
            let raw = Raw::default()
                .tensor(tensor("a", &[256], id, 0))
                .data_bytes(4096);
            assert!(refusal(&raw).contains(wanted), "{id}");
        }
    }
    for id in (0..43).filter(|id| ![4, 5, 9, 15, 31, 32, 33, 36, 37, 38].contains(id)) {
        let raw = Raw::default()
            .tensor(tensor("a", &[256], id, 0))
            .data_bytes(4096);
        assert!(raw.open().is_ok(), "{id}");
    }
}

#[test]
fn offsets_are_multiples_of_the_alignment() {
    for (alignment, offset, sound) in [
        (1, 1, true),
        (8, 8, true),
        (8, 12, false),
        (32, 32, true),
        (32, 1, false),
        (32, 16, false),
        (64, 32, false),
        (64, 128, true),
    ] {
        let raw = Raw::default()
            .tensor(tensor("a", &[2], F32, offset))
            .alignment(alignment);
        assert_eq!(raw.open().is_ok(), sound, "{offset} in {alignment}");
    }
}

#[test]
fn offsets_that_wrap_are_refused() {
    for offset in [1u64 << 63, u64::MAX - 31, u64::MAX - 63, u64::MAX - 255] {
        for dims in [&[8][..], &[16], &[64], &[1 << 20], &[1 << 38], &[0]] {
            let raw = Raw::default().tensor(tensor("a", dims, F32, offset));
            let error = raw.open().unwrap_err().to_string();
            assert!(
                error.contains("overflows 64 bits") || error.contains("ends at byte"),
                "{error}"
            );
        }
    }
}

#[test]
fn data_ends_with_the_file_and_not_a_byte_later() {
    for (dims, type_id, bytes) in [
        (&[8][..], F32, 32),
        (&[9], F32, 36),
        (&[1], 24, 1),
        (&[32, 3], Q8_0, 102),
        (&[256, 2], Q4_K, 288),
    ] {
        for offset in [0, 32, 320] {
            let raw = Raw::default().tensor(tensor("a", dims, type_id, offset as u64));
            assert!(raw.clone().data_bytes(offset + bytes).open().is_ok());
            let short = raw.data_bytes(offset + bytes - 1);
            assert!(
                matches!(short.open(), Err(GgufError::DataTruncated { .. })),
                "{dims:?} at {offset}"
            );
        }
    }
}

#[test]
fn tensors_that_share_a_byte_are_refused_in_either_order() {
    let pair = |first: (&[u64], u64), second: (&[u64], u64)| {
        Raw::default()
            .alignment(1)
            .tensor(tensor("a", first.0, 24, first.1))
            .tensor(tensor("b", second.0, 24, second.1))
    };
    assert!(pair((&[10], 0), (&[10], 10)).open().is_ok());
    assert!(pair((&[10], 10), (&[10], 0)).open().is_ok());
    for (first, second) in [
        ((&[10][..], 0), (&[10][..], 9)),
        ((&[10], 9), (&[10], 0)),
        ((&[10], 0), (&[10], 0)),
        ((&[100], 0), (&[1], 50)),
        ((&[1], 50), (&[100], 0)),
        ((&[1], 0), (&[1], 0)),
        ((&[100], 0), (&[1], 99)),
    ] {
        let error = refusal(&pair(first, second));
        assert!(error.contains("begins at byte"), "{error}");
    }
    // A third that covers two neighbours.
    let raw = pair((&[10], 0), (&[10], 20)).tensor(tensor("c", &[30], 24, 0));
    assert!(raw.open().is_err());
}

#[test]
fn empty_tensors_share_no_bytes_with_any() {
    let raw = Raw::default()
        .tensor(tensor("a", &[64], F32, 0))
        .tensor(tensor("b", &[0], F32, 0))
        .tensor(tensor("c", &[0, 7], F32, 128))
        .tensor(tensor("d", &[0], F32, 256));
    let gguf = raw.open().unwrap();
    assert_eq!(gguf.tensors().len(), 4);
    assert_inside(&gguf, raw.bytes().len() as u64);
}

#[test]
fn an_empty_tensor_after_the_last_byte_may_lie_in_padding_that_is_not_there() {
    let raw = Raw::default()
        .tensor(tensor("a", &[25], F32, 0))
        .tensor(tensor("b", &[0], F32, 128))
        .data_bytes(100);
    let gguf = raw.open().unwrap();
    assert_inside(&gguf, raw.bytes().len() as u64);
    for offset in [160, 1 << 20, 1 << 52] {
        let raw = Raw::default()
            .tensor(tensor("a", &[25], F32, 0))
            .tensor(tensor("b", &[0], F32, offset))
            .data_bytes(100);
        assert!(raw.open().is_err(), "{offset}");
    }
    // Nothing but an empty tensor, and no padding after the header.
    let raw = Raw::default().tensor(tensor("a", &[0], F32, 0));
    let header = raw.header();
    assert_inside(&open(&header).unwrap(), header.len() as u64);
}

#[test]
fn a_file_without_tensors_needs_no_data_section() {
    let raw = Raw::default().metadata(entry("x", U8, [1])).data_bytes(0);
    let gguf = raw.open().unwrap();
    assert!(gguf.tensors().is_empty());
    assert_eq!(gguf.metadata("x").unwrap().as_u64(), Some(1));
    assert!(Raw::default().data_bytes(0).open().is_ok());
}

#[test]
fn gaps_any_order_and_what_follows_the_last_tensor_are_no_flaw() {
    let raw = Raw::default()
        .tensor(tensor("a", &[8], F32, 1024))
        .tensor(tensor("b", &[8], F32, 0))
        .tensor(tensor("c", &[8], F32, 512))
        .data_bytes(5000);
    let gguf = raw.open().unwrap();
    let names: Vec<_> = gguf.tensors().iter().map(|t| t.name()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn an_original_shape_replaces_the_stored_one() {
    for shape in [
        &[64][..],
        &[2, 32],
        &[4, 16],
        &[2, 2, 2, 2, 2, 2],
        &[1, 1, 1, 1, 1, 1, 8, 8],
    ] {
        let gguf = one_tensor()
            .metadata(orig_shape("a", shape))
            .open()
            .unwrap();
        let wanted: Vec<u64> = shape.iter().map(|&dim| dim as u64).collect();
        assert_eq!(gguf.tensor("a").unwrap().shape(), wanted);
        assert_eq!(gguf.tensor("a").unwrap().source().len(), 256);
    }
}

#[test]
fn an_original_shape_may_have_rows_that_split_quant_blocks() {
    let raw = Raw::default()
        .tensor(tensor("a", &[256, 9], Q4_K, 0))
        .metadata(orig_shape("a", &[64, 4, 3, 3]))
        .data_bytes(9 * 144);
    let gguf = raw.open().unwrap();
    assert_eq!(gguf.tensors()[0].shape(), [64, 4, 3, 3]);
    assert_eq!(gguf.tensors()[0].source().len(), 9 * 144);
    assert_eq!(gguf.tensors()[0].element_count(), 256 * 9);
}

#[test]
fn original_shapes_of_other_elements_are_refused() {
    for shape in [
        &[63][..],
        &[65],
        &[7, 9],
        &[0],
        &[0, 64],
        &[1],
        &[i32::MAX, i32::MAX, i32::MAX],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16, 64],
        &[1 << 30, 1 << 30, 1 << 4],
    ] {
        let raw = one_tensor().metadata(orig_shape("a", shape));
        assert!(
            refusal(&raw).contains("but 64 elements are stored"),
            "{shape:?}"
        );
    }
}

#[test]
fn original_shapes_that_are_no_dimensions_are_refused() {
    for shape in [
        &[-64][..],
        &[-8, -8],
        &[i32::MIN],
        &[],
        &[64, 1, 1, 1, 1, 1, 1, 1, 1],
    ] {
        let raw = one_tensor().metadata(orig_shape("a", shape));
        assert!(
            refusal(&raw).contains("the original shape of tensor a is no array"),
            "{shape:?}"
        );
    }
    let key = "comfy.gguf.orig_shape.a";
    for value in [
        entry(key, U32, 64u32.to_le_bytes()),
        entry(key, STRING, string("64")),
        entry(key, U64, 64u64.to_le_bytes()),
        entry(key, ARRAY, array(U32, 1, 64u32.to_le_bytes())),
        entry(key, ARRAY, array(U64, 1, 64u64.to_le_bytes())),
        entry(key, ARRAY, array(STRING, 1, string("64"))),
        entry(
            key,
            ARRAY,
            array(ARRAY, 1, array(I32, 1, 64i32.to_le_bytes())),
        ),
    ] {
        assert!(refusal(&one_tensor().metadata(value)).contains("is no array"));
    }
    for len in HUGE {
        let lie = entry(key, ARRAY, array(I32, len, 64i32.to_le_bytes()));
        assert!(one_tensor().metadata(lie).open().is_err());
    }
}

#[test]
fn an_original_shape_of_no_tensor_is_passed_over() {
    let gguf = one_tensor().metadata(orig_shape("b", &[7])).open().unwrap();
    assert_eq!(gguf.tensors()[0].shape(), [2, 32]);
}

#[test]
fn version_2_reads_as_version_3_does() {
    let mut raw = one_tensor().metadata(entry("x", U8, [1]));
    raw.version = 2;
    let gguf = raw.open().unwrap();
    assert_eq!(gguf.version(), 2);
    assert_eq!(gguf.tensors()[0].shape(), [2, 32]);
}

fn assert_inside(gguf: &Gguf, file_len: u64) {
    for tensor in gguf.tensors() {
        let Source::File { range, .. } = tensor.source() else {
            panic!("{} is in memory", tensor.name());
        };
        assert!(
            range.start <= range.end && range.end <= file_len,
            "{range:?}"
        );
    }
}
