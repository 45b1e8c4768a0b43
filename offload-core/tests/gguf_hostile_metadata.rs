//! Hostile GGUF metadata: for every field that a file can lie in, the lies around its limits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod raw_gguf;

use std::io::{Seek, SeekFrom, Write};

use offload_core::format::gguf::{Gguf, GgufError};
use raw_gguf::{
    ARRAY, BOOL, HUGE, Raw, STRING, U8, U32, U64, array, entry, one_tensor, orig_shape, refusal,
    string, tensor,
};

const F32: u32 = 0;

#[test]
fn string_lengths_past_the_end_are_refused() {
    for len in HUGE {
        let len_bytes = len.to_le_bytes();
        let lies = [
            Raw::default().metadata([&len_bytes[..], b"key", &[0; 32]].concat()),
            Raw::default().metadata(entry("x", STRING, [&len_bytes[..], b"value"].concat())),
            Raw::default().metadata(entry(
                "x",
                ARRAY,
                array(STRING, 1, [&len_bytes[..], b"value"].concat()),
            )),
            Raw::default().tensor([&len_bytes[..], b"name", &[0; 32]].concat()),
        ];
        for raw in lies {
            assert!(raw.open().is_err(), "{len}");
        }
    }
    // One byte too long, to the end of the file and past it.
    let raw = Raw::default().data_bytes(0);
    let fits = raw.clone().metadata(entry("x", STRING, string("value")));
    assert!(fits.open().is_ok());
    let lie = raw.metadata(entry(
        "x",
        STRING,
        [&6u64.to_le_bytes()[..], b"value"].concat(),
    ));
    assert!(refusal(&lie).contains("metadata string needs 6 bytes"));
}

#[test]
fn keys_have_1_to_65535_bytes_of_printable_utf8() {
    let with = |key: &[u8]| Raw::default().metadata(entry(key, U8, [0])).open();
    assert!(with(&[b'k'; 65_535]).is_ok());
    assert!(with("gr\u{f6}\u{df}e".as_bytes()).is_ok());
    for bad in [
        &b""[..],
        &[b'k'; 65_536],
        b"\xff",
        b"a\xc3",
        b"\xed\xa0\x80",
        b"general.alignment\0",
        b"a\nb",
        b"\x1b[2J",
    ] {
        assert!(with(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn value_types_end_at_12() {
    for type_id in [13, 14, 77, 255, 256, 0x0400_0000, 1 << 31, u32::MAX] {
        let scalar = Raw::default().metadata(entry("x", type_id, [0; 16]));
        assert!(refusal(&scalar).contains(&format!("metadata x is of type {type_id},")));
        for len in [0, 1] {
            let raw = Raw::default().metadata(entry("x", ARRAY, array(type_id, len, [0; 16])));
            assert!(refusal(&raw).contains(&format!("metadata x is of type {type_id},")));
        }
        let nested = array(ARRAY, 1, array(type_id, 1, [0; 16]));
        assert!(
            Raw::default()
                .metadata(entry("x", ARRAY, nested))
                .open()
                .is_err()
        );
    }
}

#[test]
fn array_lengths_past_the_end_are_refused_for_every_element_type() {
    for element_type in 0..=12 {
        for len in HUGE {
            let raw = Raw::default().metadata(entry("x", ARRAY, array(element_type, len, [])));
            let error = refusal(&raw);
            assert!(
                error.contains("an array of"),
                "{element_type} {len}: {error}"
            );
            let nested = array(ARRAY, 1, array(element_type, len, []));
            assert!(
                Raw::default()
                    .metadata(entry("x", ARRAY, nested))
                    .open()
                    .is_err()
            );
        }
    }
}

#[test]
fn arrays_that_end_with_the_file_are_taken_and_one_element_more_is_not() {
    let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];
    for (element_type, size) in sizes.into_iter().enumerate() {
        let raw = |len| {
            let elements = vec![0; 6 * size];
            Raw::default().data_bytes(0).metadata(entry(
                "x",
                ARRAY,
                array(element_type as u32, len, elements),
            ))
        };
        assert!(raw(6).open().is_ok(), "{element_type}");
        assert!(raw(7).open().is_err(), "{element_type}");
    }
}

#[test]
fn arrays_nest_four_deep_and_no_deeper() {
    let nest = |depth: usize, innermost_len| {
        (1..depth).fold(
            array(U8, innermost_len, vec![0; innermost_len as usize]),
            |inner, _| array(ARRAY, 1, inner),
        )
    };
    for depth in 1..=4 {
        for len in [0, 1, 5] {
            let raw = Raw::default().metadata(entry("x", ARRAY, nest(depth, len)));
            assert!(raw.open().is_ok(), "{depth}");
        }
    }
    for depth in [5, 6, 64, 65, 10_000] {
        let raw = Raw::default().metadata(entry("x", ARRAY, nest(depth, 1)));
        assert!(
            refusal(&raw).contains("nests arrays deeper than 4"),
            "{depth}"
        );
    }
    // Siblings at every level: what follows is still found.
    let leaf = array(U8, 1, [9]);
    let pair = |inner: &[u8]| array(ARRAY, 2, [inner, inner].concat());
    let raw = one_tensor()
        .metadata(entry("x", ARRAY, pair(&pair(&pair(&leaf)))))
        .metadata(entry("y", U8, [5]));
    let gguf = raw.open().unwrap();
    assert_eq!(gguf.metadata("y").unwrap().as_u64(), Some(5));
    assert_eq!(gguf.tensors().len(), 1);
}

#[test]
fn truth_values_are_0_or_1_also_in_arrays() {
    for byte in 0..=255u8 {
        let sound = byte < 2;
        let scalar = Raw::default().metadata(entry("x", BOOL, [byte]));
        assert_eq!(scalar.open().is_ok(), sound, "{byte}");
        let list = Raw::default().metadata(entry("x", ARRAY, array(BOOL, 3, [1, 0, byte])));
        assert_eq!(list.open().is_ok(), sound, "{byte}");
    }
}

#[test]
fn strings_are_utf8_without_nul() {
    let with = |text: &[u8]| {
        Raw::default()
            .metadata(entry("x", STRING, string(text)))
            .open()
    };
    assert!(with(b"").is_ok());
    assert!(with(b"line\nline\t{% jinja %}").is_ok());
    assert!(with(b"\xff").is_err());
    assert!(with(b"a\0b").is_err());
}

#[test]
fn a_key_stands_once_whatever_its_types() {
    let values = [
        (U32, 64u32.to_le_bytes().to_vec()),
        (U8, vec![1]),
        (STRING, string("x")),
        (ARRAY, array(U8, 1, [1])),
    ];
    for (first_type, first) in &values {
        for (second_type, second) in &values {
            let raw = Raw::default()
                .metadata(entry("x", *first_type, first))
                .metadata(entry("y", U8, [0]))
                .metadata(entry("x", *second_type, second));
            assert!(refusal(&raw).contains("metadata key x stands twice"));
        }
    }
    let raw = one_tensor().alignment(32).alignment(64);
    assert!(refusal(&raw).contains("general.alignment stands twice"));
    let raw = one_tensor()
        .metadata(orig_shape("a", &[64]))
        .metadata(orig_shape("a", &[8, 8]));
    assert!(refusal(&raw).contains("stands twice"));
}

#[test]
fn the_alignment_is_a_u32_power_of_two_up_to_a_mebibyte() {
    for power in 0..32 {
        let raw = Raw::default()
            .tensor(tensor("a", &[2], F32, 0))
            .alignment(1 << power.min(20));
        assert_eq!(raw.open().unwrap().alignment(), 1 << power.min(20));
        let raw = Raw::default().metadata(entry(
            "general.alignment",
            U32,
            (1u32 << power).to_le_bytes(),
        ));
        assert_eq!(raw.open().is_ok(), power <= 20, "2^{power}");
    }
    for bad in [0u32, 3, 5, 24, 31, 33, 48, 0x0010_0001, u32::MAX] {
        let raw = Raw::default().metadata(entry("general.alignment", U32, bad.to_le_bytes()));
        assert!(refusal(&raw).contains(&format!("general.alignment is {bad},")));
    }
}

#[test]
fn an_alignment_of_another_type_is_refused() {
    for type_id in (0..=12).filter(|&t| t != U32) {
        let value = match type_id {
            STRING => string("32"),
            ARRAY => array(U32, 1, 32u32.to_le_bytes()),
            BOOL => vec![1],
            _ => 32u64.to_le_bytes().to_vec(),
        };
        let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 10, 16, 8, 8, 8];
        let value = &value[..sizes[type_id as usize]];
        let raw = Raw::default().metadata(entry("general.alignment", type_id, value));
        assert!(
            refusal(&raw).contains("general.alignment is of another type"),
            "{type_id}"
        );
    }
}

#[test]
fn a_header_longer_than_a_window_is_read_whole() {
    // Strings before, across and after the borders of what is read at a time.
    for len in [65_400, 65_535, 65_536, 65_537, 200_000] {
        let raw = one_tensor()
            .metadata(entry("long", STRING, string(vec![b'x'; len])))
            .metadata(entry("list", ARRAY, array(U64, 20_000, vec![0; 160_000])))
            .metadata(entry("after", U32, 7u32.to_le_bytes()));
        let gguf = raw.open().unwrap();
        assert_eq!(gguf.metadata("long").unwrap().as_str().unwrap().len(), len);
        assert_eq!(gguf.metadata("after").unwrap().as_u64(), Some(7));
        assert_eq!(gguf.tensors()[0].name(), "a");
    }
}

#[test]
fn a_header_of_more_than_256_mebibytes_is_refused() {
    const LIMIT: u64 = 256 << 20;
    let open = |array_len: u64, after: &[u8]| {
        // A sparse file: the array is a hole.
        let mut raw = Raw::default().metadata(entry("x", ARRAY, array(U8, array_len, [])));
        raw.metadata_count = Some(2);
        let head = raw.header();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut out = file.as_file();
        out.write_all(&head).unwrap();
        out.seek(SeekFrom::Current(array_len as i64)).unwrap();
        out.write_all(after).unwrap();
        out.set_len(LIMIT + (1 << 20)).unwrap();
        Gguf::open(file.path())
    };
    let head_bytes = Raw::default()
        .metadata(entry("x", ARRAY, array(U8, 0, [])))
        .header()
        .len() as u64;
    let next = entry("y", STRING, string([b'y'; 100]));
    let to_limit = LIMIT - head_bytes - next.len() as u64;
    assert!(open(to_limit, &next).is_ok());
    for over in 1..=next.len() as u64 {
        assert!(
            matches!(
                open(to_limit + over, &next),
                Err(GgufError::HeaderTooLong { limit: LIMIT, .. })
            ),
            "{over}"
        );
    }
    assert!(matches!(
        open(LIMIT, &next),
        Err(GgufError::Malformed { .. })
    ));
}
