//! Hostile tensor entries: for every field that a header can lie in, the lies around its limits.

use crate::raw::{file, header_refusal, open, tensor};

/// A header of one tensor with these fields as they stand.
fn fields(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn fields_that_are_missing_or_of_another_kind_are_refused() {
    for (header, wanted) in [
        (r#"{"a":{}}"#.to_owned(), "tensor a has no dtype"),
        (
            r#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#.to_owned(),
            "tensor a has no shape",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1]}}"#.to_owned(),
            "tensor a has no data_offsets",
        ),
        (
            r#"{"a":{"shape":[1],"data_offsets":[0,1]}}"#.to_owned(),
            "tensor a has no dtype",
        ),
        (
            r#"{"a":{"DTYPE":"U8","shape":[1],"data_offsets":[0,1]}}"#.to_owned(),
            "tensor a has no dtype",
        ),
        (
            r#"{"a":["U8",[1],[0,1]]}"#.to_owned(),
            "expected an object that describes a tensor",
        ),
        (
            r#"{"a":"U8"}"#.to_owned(),
            "expected an object that describes a tensor",
        ),
        (
            r#"{"a":null}"#.to_owned(),
            "expected an object that describes a tensor",
        ),
        (fields("1", "[1]", "[0,1]"), "expected a dtype, a string"),
        (fields("null", "[1]", "[0,1]"), "expected a dtype, a string"),
        (
            fields(r#"{"U8":null}"#, "[1]", "[0,1]"),
            "expected a dtype, a string",
        ),
        (
            fields(r#""U8""#, "1", "[0,1]"),
            "expected a shape, an array",
        ),
        (
            fields(r#""U8""#, "null", "[0,1]"),
            "expected a shape, an array",
        ),
        (
            fields(r#""U8""#, r#"{"0":1}"#, "[0,1]"),
            "expected a shape, an array",
        ),
        (
            fields(r#""U8""#, "[[1]]", "[0,1]"),
            "expected a whole number",
        ),
        (
            fields(r#""U8""#, "[1]", "0"),
            "expected an array of two offsets",
        ),
        (
            fields(r#""U8""#, "[1]", "null"),
            "expected an array of two offsets",
        ),
        (
            fields(r#""U8""#, "[1]", "[]"),
            "expected an array of two offsets",
        ),
        (
            fields(r#""U8""#, "[1]", "[0]"),
            "expected an array of two offsets",
        ),
        (
            fields(r#""U8""#, "[1]", "[0,1,1]"),
            "expected an array of two offsets",
        ),
        (
            fields(r#""U8""#, "[1]", r#"{"0":0,"1":1}"#),
            "expected an array of two offsets",
        ),
    ] {
        let error = header_refusal(&header, 1);
        assert!(error.contains(wanted), "{header}: {error}");
    }
}

#[test]
fn numbers_are_whole_and_fit() {
    let not_whole = "no whole number from 0 to 2^64 - 1";
    for (number, wanted) in [
        ("-1", not_whole),
        ("-0", not_whole),
        ("1.0", not_whole),
        ("1.5", not_whole),
        ("1e0", not_whole),
        ("1E+2", not_whole),
        ("0.1e1", not_whole),
        ("18446744073709551616", not_whole),
        ("18446744073709551617", not_whole),
        ("36893488147419103233", not_whole),
        ("340282366920938463463374607431768211457", not_whole),
        ("1e999", "expected a number that binary64 holds"),
        ("-", "expected a digit"),
        ("1.", "expected a digit"),
        ("1e", "expected a digit"),
        ("1e+", "expected a digit"),
        ("01", "expected ',' or ']', found '1'"),
        ("0x1", "expected ',' or ']', found 'x'"),
        ("1_0", "expected ',' or ']', found '_'"),
        ("1 0", "expected ',' or ']', found '0'"),
        (".5", "expected a whole number"),
        ("+1", "expected a whole number"),
        ("NaN", "expected a whole number"),
        ("Infinity", "expected a whole number"),
        ("\"1\"", "expected a whole number"),
        ("null", "expected a whole number"),
        ("true", "expected a whole number"),
        ("[1]", "expected a whole number"),
        ("\u{661}", "expected a whole number"),
    ] {
        for (shape, offsets) in [
            (format!("[{number}]"), "[0,1]".to_owned()),
            ("[1]".to_owned(), format!("[{number},1]")),
            ("[1]".to_owned(), format!("[0,{number}]")),
        ] {
            let error = header_refusal(fields(r#""U8""#, &shape, &offsets), 1);
            assert!(error.contains(wanted), "{shape} {offsets}: {error}");
        }
    }
    // A number of any length is refused, and shown in part.
    let error = header_refusal(
        fields(r#""U8""#, &format!("[{}]", "9".repeat(300)), "[0,1]"),
        1,
    );
    assert!(
        error.contains(&"9".repeat(40)) && !error.contains(&"9".repeat(41)),
        "{error}"
    );
}

#[test]
fn shapes_that_overflow_are_refused_even_behind_a_zero() {
    for shape in [
        &[1u64 << 32, 1 << 32][..],
        &[0, 1 << 32, 1 << 32],
        &[1 << 32, 0, 1 << 32],
        &[1 << 32, 1 << 32, 0],
        &[u64::MAX, 2],
        &[0, u64::MAX, 2],
        &[1 << 62],
        &[0, 1 << 62],
        &[u64::MAX],
        &[3, 6_148_914_691_236_517_206],
        &[1 << 21, 1 << 21, 1 << 21, 1 << 21],
    ] {
        for (begin, end) in [(0, 0), (0, 4), (0, u64::MAX)] {
            let header = format!("{{{}}}", tensor("a", "F32", shape, begin, end));
            let error = header_refusal(header, 4);
            assert!(
                error.contains("in F32 overflows 64 bits"),
                "{shape:?}: {error}"
            );
        }
    }
    // It would fit 64 bits, but not this file.
    let header = format!("{{{}}}", tensor("a", "U8", &[1 << 40], 0, 1 << 40));
    assert!(header_refusal(header, 4).contains("tensor a has 1099511627776 bytes at"));
}

#[test]
fn shapes_have_up_to_64_dimensions() {
    let with = |count: usize| format!("{{{}}}", tensor("a", "U8", &vec![1; count], 0, 1));
    assert_eq!(
        open(&file(with(64), 1)).unwrap().tensors()[0].shape().len(),
        64
    );
    for count in [65, 1_000_000] {
        assert!(header_refusal(with(count), 1).contains("tensor a has more than 64 dimensions"));
    }
}

#[test]
fn dtypes_that_do_not_exist_are_refused() {
    for dtype in [
        "",
        "f32",
        "F32 ",
        "F",
        "FLOAT32",
        "F128",
        "F8",
        "F8_E3M4",
        "Q4_K",
        "I4",
        "U128",
        "BF16\\u0000",
    ] {
        let error = header_refusal(format!("{{{}}}", tensor("a", dtype, &[4], 0, 4)), 4);
        assert!(error.contains("tensor a is of dtype"), "{error}");
        assert!(error.contains("which does not exist"), "{error}");
    }
}

#[test]
fn names_are_not_empty_and_no_paths() {
    for bad in [
        "",
        "a\\u0000b",
        "\\u0000",
        "a\\n",
        "..",
        ".",
        "../a",
        "a/../b",
        "a/..",
        "./a",
        "/etc/passwd",
        "..\\\\a",
        "a\\\\b",
        "C:/a",
        "C:a",
        "\\u002e\\u002e/a",
    ] {
        let error = header_refusal(format!("{{{}}}", tensor(bad, "U8", &[1], 0, 1)), 1);
        assert!(error.contains("tensor name"), "{bad}: {error}");
    }
    let long = "n".repeat(65_536);
    let error = header_refusal(format!("{{{}}}", tensor(&long, "U8", &[1], 0, 1)), 1);
    assert!(
        error.contains("a tensor name of 65536 bytes, at most 65535"),
        "{error}"
    );
}

#[test]
fn offsets_have_the_bytes_of_the_shape() {
    for (begin, end, wanted) in [
        (0, 7, "shape [2] in F32 needs 8 bytes, its offsets have 7"),
        (0, 9, "needs 8 bytes, its offsets have 9"),
        (0, 0, "needs 8 bytes, its offsets have 0"),
        (8, 0, "tensor a has offsets 8 to 0"),
        (
            u64::MAX,
            0,
            "tensor a has offsets 18446744073709551615 to 0",
        ),
        (0, u64::MAX, "its offsets have 18446744073709551615"),
        (
            u64::MAX - 8,
            u64::MAX,
            "begins at offset 18446744073709551607, but",
        ),
        (
            1,
            9,
            "begins at offset 1, but the tensors before it end at 0",
        ),
        (
            8,
            16,
            "begins at offset 8, but the tensors before it end at 0",
        ),
    ] {
        let header = format!("{{{}}}", tensor("a", "F32", &[2], begin, end));
        let error = header_refusal(header, 8);
        assert!(error.contains(wanted), "{begin}..{end}: {error}");
    }
}

#[test]
fn tensors_cover_the_data_each_byte_once() {
    let pair = |first: (u64, u64), second: (u64, u64)| {
        let bytes = |range: (u64, u64)| [range.1 - range.0];
        let a = tensor("a", "U8", &bytes(first), first.0, first.1);
        let b = tensor("b", "U8", &bytes(second), second.0, second.1);
        [format!("{{{a},{b}}}"), format!("{{{b},{a}}}")]
    };
    for header in pair((0, 10), (10, 20)) {
        assert!(open(&file(header, 20)).is_ok());
    }
    for (first, second, wanted) in [
        (
            (0, 10),
            (9, 19),
            "tensor b begins at offset 9, before tensor a ends at 10",
        ),
        (
            (0, 10),
            (11, 21),
            "tensor b begins at offset 11, but the tensors before it end at 10",
        ),
        ((0, 10), (0, 10), "begins at offset 0, before tensor"),
        (
            (0, 20),
            (5, 10),
            "tensor b begins at offset 5, before tensor a ends at 20",
        ),
        (
            (0, 20),
            (0, 5),
            "tensor a begins at offset 0, before tensor b ends at 5",
        ),
        (
            (0, 20),
            (5, 5),
            "tensor b begins at offset 5, before tensor a ends at 20",
        ),
        ((0, 10), (20, 20), "tensor b begins at offset 20, but"),
        (
            (5, 10),
            (10, 20),
            "tensor a begins at offset 5, but the tensors before it end at 0",
        ),
        (
            (0, 10),
            (u64::MAX - 1, u64::MAX),
            "tensor b begins at offset 18446744073709551614, but",
        ),
    ] {
        for header in pair(first, second) {
            let error = header_refusal(&header, 20);
            assert!(error.contains(wanted), "{header}: {error}");
        }
    }
}

#[test]
fn data_ends_with_the_file() {
    let header = format!("{{{}}}", tensor("a", "F32", &[2], 0, 8));
    assert!(open(&file(&header, 8)).is_ok());
    let begin = 8 + header.len();
    let error = header_refusal(&header, 7);
    let wanted = format!(
        "ends at byte {}: tensor a has 8 bytes at {begin}",
        begin + 7
    );
    assert!(error.contains(&wanted), "{error}");
    assert!(header_refusal(&header, 9).contains("goes on to byte"));
    // The end would lie past 2^64.
    let halves = format!(
        "{{{},{}}}",
        tensor("a", "U8", &[1 << 63], 0, 1 << 63),
        tensor("b", "U8", &[(1 << 63) - 1], 1 << 63, u64::MAX)
    );
    assert!(header_refusal(halves, 8).contains("tensor a has 9223372036854775808 bytes at"));
}
