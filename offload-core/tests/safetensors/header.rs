//! Hostile headers: lengths, JSON, keys, metadata.

use offload_core::format::safetensors::{Flaw, SafetensorsError};

use crate::raw::{file, header_refusal, open, refusal, tensor, two_tensors};

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = two_tensors();
    assert!(open(&whole).is_ok());
    let header_end = whole.len() - 11;
    for len in 0..whole.len() {
        let error = open(&whole[..len]).expect_err("cut off");
        let expected = match &error {
            SafetensorsError::Truncated { file_len, .. } => {
                *file_len == len as u64 && len < header_end
            }
            SafetensorsError::DataTruncated { file_len, .. } => {
                *file_len == len as u64 && len >= header_end
            }
            _ => false,
        };
        assert!(expected, "cut at {len}: {error:?}");
    }
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    let mut bytes = two_tensors();
    let len = bytes.len();
    for extra in 1..20 {
        bytes.push(0);
        let error = refusal(&bytes);
        let wanted = format!("goes on to byte {}, its tensors end at {len}", len + extra);
        assert!(error.contains(&wanted), "{error}");
    }
    assert!(header_refusal("{}", 1).contains("goes on to byte 11, its tensors end at 10"));
}

#[test]
fn header_lengths_that_lie_are_refused() {
    let sound = two_tensors();
    let header_bytes = sound.len() as u64 - 8 - 11;
    let limit = 100_000_000;
    for (len, wanted) in [
        (
            0,
            "expected an object, without anything before it, found the end",
        ),
        (1, "expected a key, found the end"),
        (header_bytes - 3, "',' or '}', found the end"),
        // The data that follows is no JSON.
        (header_bytes + 1, "expected the end, found '\\0'"),
        (header_bytes + 12, "the header needs"),
        (limit, "the header needs 100000000 bytes at 8"),
        (
            limit + 1,
            "a header of 100000001 bytes, at most 100000000 are allowed",
        ),
        (1 << 32, "a header of 4294967296 bytes"),
        (1 << 63, "a header of 9223372036854775808 bytes"),
        (u64::MAX - 7, "a header of 18446744073709551608 bytes"),
        (u64::MAX, "a header of 18446744073709551615 bytes"),
    ] {
        let mut bytes = sound.clone();
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        let error = refusal(&bytes);
        assert!(error.contains(wanted), "{len}: {error}");
    }
}

/// Headers that are not JSON of an object, and what is found.
const NOT_JSON: &[(&[u8], &str)] = &[
    (
        b" {}",
        "byte 8: expected an object, without anything before it, found ' '",
    ),
    (b"\n{}", "without anything before it, found '\\n'"),
    (
        b"\xef\xbb\xbf{}",
        "without anything before it, found '\\u{feff}'",
    ),
    (b"[]", "without anything before it, found '['"),
    (b"null", "found 'n'"),
    (b"\"a\"", "found '\"'"),
    (b"1", "found '1'"),
    (b"    ", "found ' '"),
    (b"\0\0\0\0", "found '\\0'"),
    (b"{", "byte 9: expected a key, found the end"),
    (b"{}\0", "byte 10: expected the end, found '\\0'"),
    (b"{}\0\0\0\0", "expected the end, found '\\0'"),
    (b"{}{}", "expected the end, found '{'"),
    (b"{},", "expected the end, found ','"),
    (b"{} x", "expected the end, found 'x'"),
    (b"{}\x0b", "expected the end, found '\\u{b}'"),
    (b"{}\xc2\xa0", "expected the end, found '\\u{a0}'"),
    (b"{,}", "expected a key, found ','"),
    (b"{a:1}", "expected a key, found 'a'"),
    (b"{'a':1}", "expected a key, found '\\''"),
    (b"{1:1}", "expected a key, found '1'"),
    (b"{\"a\"}", "expected ':', found '}'"),
    (
        b"{\"a\":}",
        "expected an object that describes a tensor, found '}'",
    ),
    (b"{\"a", "found the end"),
    (b"{\"a\\", "expected an escape, found the end"),
    (
        b"{\"a\n\"",
        "an escape of what must be escaped, found '\\n'",
    ),
    (b"{\"\0\"", "an escape of what must be escaped, found '\\0'"),
    (b"{\"\\x\"", "expected an escape, found 'x'"),
    (b"{\"\\u12", "four hexadecimal digits"),
    (b"{\"\\u12g4\"", "four hexadecimal digits"),
    (b"{\"\\u+123\"", "four hexadecimal digits"),
    (b"{/**/}", "expected a key, found '/'"),
    (b"{\"\xff\":{}}", "byte 10: the header is not utf-8"),
    (b"{\"\xc0\xaf\":{}}", "byte 10: the header is not utf-8"),
    (b"{\"\xed\xa0\x80\":{}}", "byte 10: the header is not utf-8"),
    (b"{\"a\xf0\x9f\x98", "byte 11: the header is not utf-8"),
    (b"{} \xff", "byte 11: the header is not utf-8"),
    (b"{\"\\ud800\":{}}", "not of a lone surrogate"),
    (b"{\"\\ud800x\":{}}", "not of a lone surrogate"),
    (b"{\"\\udc00\":{}}", "not of a lone surrogate"),
    (b"{\"\\ud800\\ud800\":{}}", "not of a lone surrogate"),
    (b"{\"\\ud800\\u0061\":{}}", "not of a lone surrogate"),
    (
        b"{\"\\ud800\\n\":{}}",
        "a second escape of a surrogate pair",
    ),
];

#[test]
fn headers_that_are_no_object_are_refused() {
    for (header, wanted) in NOT_JSON {
        let error = header_refusal(header, 0);
        assert!(
            error.contains(wanted),
            "{:?}: {error}",
            String::from_utf8_lossy(header)
        );
    }
}

#[test]
fn a_separator_too_many_or_too_few_is_refused() {
    let (a, b) = (tensor("a", "U8", &[1], 0, 1), tensor("b", "U8", &[1], 1, 2));
    for header in [
        format!("{{{a},}}"),
        format!("{{{a} {b}}}"),
        format!("{{{a},,{b}}}"),
        format!("{{{a};{b}}}"),
        format!("{{{a},{b}"),
        format!("{{{a},{b}]"),
        format!("{{{}}}", a.replace("[1]", "[1,]")),
        format!("{{{}}}", a.replace("[1]", "[,1]")),
        format!("{{{}}}", a.replace("[1]", "[1 1]")),
        format!("{{{}}}", a.replace("[1]", "[1")),
        format!("{{{}}}", a.replace(":[1]", "[1]")),
    ] {
        assert!(header_refusal(&header, 2).contains("expected"), "{header}");
    }
}

#[test]
fn keys_stand_once_in_every_object_however_they_are_escaped() {
    let a = tensor("a", "U8", &[1], 0, 1);
    let metadata = r#""__metadata__":{"k":"v"}"#;
    for (header, wanted) in [
        (format!("{{{a},{a}}}"), "tensor a stands twice"),
        (
            format!("{{{a},{}}}", tensor("\\u0061", "U8", &[1], 0, 1)),
            "tensor a stands twice",
        ),
        (
            format!("{{{a},{}}}", tensor("a", "I8", &[1], 1, 2)),
            "tensor a stands twice",
        ),
        (
            format!("{{{metadata},{metadata}}}"),
            r#"key "__metadata__" stands twice in the header"#,
        ),
        (
            format!(r#"{{{metadata},{a},"_\u005fmetadata__":{{}}}}"#),
            r#"key "__metadata__" stands twice in the header"#,
        ),
        (
            r#"{"__metadata__":{"k":"v","k":"v"}}"#.to_owned(),
            r#"key "k" stands twice in the metadata"#,
        ),
        (
            r#"{"__metadata__":{"k":"v","\u006b":"w"}}"#.to_owned(),
            r#"key "k" stands twice in the metadata"#,
        ),
        (
            format!("{{{}}}", a.replace(r#""shape""#, r#""dtype":"U8","shape""#)),
            r#"key "dtype" stands twice in a tensor's description"#,
        ),
        (
            format!(
                "{{{}}}",
                a.replace(r#""dtype""#, r#""shap\u0065":[1],"dtype""#)
            ),
            r#"key "shape" stands twice in a tensor's description"#,
        ),
        (
            format!("{{{}}}", a.replace("]}", r#"],"data_offsets":[0,1]}"#)),
            r#"key "data_offsets" stands twice in a tensor's description"#,
        ),
        (
            format!("{{{}}}", a.replace("]}", r#"],"x":1,"x":1}"#)),
            r#"key "x" stands twice in a tensor's description"#,
        ),
        (
            format!("{{{}}}", a.replace("]}", r#"],"x":[{"y":1,"z":2,"y":1}]}"#)),
            r#"key "y" stands twice in an object"#,
        ),
    ] {
        let error = header_refusal(&header, 1);
        assert!(error.contains(wanted), "{header}: {error}");
    }
    // In different objects they may.
    let header = format!(
        r#"{{"__metadata__":{{"a":"a","dtype":"x"}},{},{}}}"#,
        tensor("a", "U8", &[1], 0, 1),
        tensor("dtype", "U8", &[1], 1, 2)
    );
    assert!(open(&file(header, 2)).is_ok());
}

#[test]
fn metadata_is_text_by_text() {
    for value in ["1", "null", "true", "[]", "{}", "[\"a\"]"] {
        let error = header_refusal(format!(r#"{{"__metadata__":{{"k":{value}}}}}"#), 0);
        assert!(error.contains("expected metadata, a string"), "{error}");
        if value != "{}" {
            let error = header_refusal(format!(r#"{{"__metadata__":{value}}}"#), 0);
            assert!(error.contains("expected metadata, an object"), "{error}");
        }
    }
    // A tensor's description is not.
    let header = format!("{{{}}}", tensor("__metadata__", "U8", &[1], 0, 1));
    assert!(header_refusal(header, 1).contains("expected metadata, a string"));
}

#[test]
fn values_lie_in_values_only_so_deep() {
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let a = tensor("a", "U8", &[1], 0, 1);
        a.replace("]}", &format!("],\"x\":{open}{close}}}"))
    };
    for depth in [1, 15, 16] {
        assert!(open(&file(format!("{{{}}}", nested(depth)), 1)).is_ok());
    }
    for depth in [17, 128, 10_000, 1_000_000] {
        let error = header_refusal(format!("{{{}}}", nested(depth)), 1);
        assert!(error.contains("deeper than 16"), "{error}");
    }
    for deep in [
        "[".repeat(1_000_000),
        r#"{"a":"#.repeat(1_000_000),
        format!("{{\"a\":{}", "[".repeat(1_000_000)),
        format!(r#"{{"a":{{"x":{}"#, r#"{"a":"#.repeat(1_000_000)),
    ] {
        header_refusal(deep, 0);
    }
}

#[test]
fn a_flaw_says_where_it_is() {
    let header = format!(
        "{{{},  {}}}",
        tensor("a", "U8", &[1], 0, 1),
        tensor("b", "Q4_K", &[1], 1, 2)
    );
    let at = 8 + header.find("\"b\"").unwrap() as u64;
    let error = open(&file(header, 2)).unwrap_err();
    let SafetensorsError::Malformed { offset, flaw, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(offset, at);
    let (tensor, dtype) = ("b".to_owned(), "Q4_K".to_owned());
    assert_eq!(flaw, Flaw::UnknownDtype { tensor, dtype });
}
