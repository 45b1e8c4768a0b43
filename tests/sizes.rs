//! Sizes as the programs read them.

#[path = "../examples/support/size.rs"]
mod size;

use size::parse_size;

#[test]
fn sizes_read_as_written() {
    for (text, bytes) in [
        ("8GiB", 8 << 30),
        ("900MiB", 900 << 20),
        ("1.5 GiB", 3 << 29),
        ("2GB", 2_000_000_000),
        ("64KiB", 64 << 10),
        ("4096", 4096),
        ("0", 0),
        ("18446744073709551615", u64::MAX),
        ("9007199254740993", 9_007_199_254_740_993),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
}

#[test]
fn what_is_no_size_is_refused_by_its_text() {
    for text in [
        "",
        " ",
        "GiB",
        "-1",
        "-1GiB",
        "8 apples",
        "1e400GiB",
        "99999999999999999999",
        "inf",
        "nan",
        "99999999999EiB",
        ".5GiB",
    ] {
        let error = parse_size(text).expect_err(text);
        assert!(error.contains(text), "{error}");
    }
}
